//! Each way in which TLS with a service can fail has a message of its own, which says what to do.

use std::{
    io::{Read, Write},
    net::Shutdown,
};

use crate::common::{
    certificates::TestCa,
    listener::TestListener,
    nginx::Nginx,
    service::{Service, binary, run_to_exit},
    stub::{Stub, respond},
};

/// The error of `run` and `ps` with this URL: one line, and 69.
fn error_of(url: &str, ca_file: &str) -> String {
    let mut lines = Vec::new();
    for words in [["ps"].as_slice(), &["run", "--", "true"]] {
        let mut command = binary();
        command.arg(words[0]).args(["--url", url, "--ca-file", ca_file]).args(&words[1..]);
        let (stdout, stderr, code) = run_to_exit(&mut command);
        assert_eq!((stdout.as_str(), code, stderr.lines().count()), ("", 69, 1), "{words:?} {stderr}");
        lines.push(stderr);
    }
    lines.join("")
}

fn assert_error(url: &str, ca_file: &str, parts: &[&str]) {
    let error = error_of(url, ca_file);
    for part in parts {
        assert_eq!(error.matches(part).count(), 2, "{part}: {error}");
    }
}

#[test]
fn a_certificate_that_is_not_accepted_says_why() {
    let (ca, other) = (TestCa::new("own"), TestCa::new("other"));
    let service = Service::start();
    let names = ["localhost", "127.0.0.1"];
    let certificates =
        [ca.certificate(&names), ca.expired_certificate(&names), ca.certificate(&["a.example", "b.example"])];
    let Some(nginx) = Nginx::start("certificates that are not accepted", service.address, &certificates) else {
        return;
    };
    let url = |at: usize| format!("wss://{}", nginx.addresses[at]);
    let unknown = "TLS: the certificate of 127.0.0.1 is signed by no CA that is trusted here";
    assert_error(&url(0), &other.file(), &[unknown, "name the file of its CA with --ca-file"]);
    assert_error(&url(1), &ca.file(), &["TLS: the certificate of 127.0.0.1 has expired"]);
    let for_others = "TLS: the certificate is not for 127.0.0.1, but for ";
    assert_error(&url(2), &ca.file(), &[for_others, "a.example", "b.example", "use the host name that is in it"]);
    // A plain request at the port of TLS.
    let plain = format!("ws://{}", nginx.addresses[0]);
    let error = error_of(&plain, &ca.file());
    let advice = format!("speaks TLS at this port; use wss://{}", nginx.addresses[0]);
    assert_eq!(error.matches(&advice).count(), 2, "{error}");
}

#[test]
fn a_port_of_the_wrong_kind_says_which_it_is() {
    let ca = TestCa::new("ports");
    let service = Service::start();
    let plain = format!("127.0.0.1 does not speak TLS at port {}; use ws:// or http://", service.address.port());
    assert_error(&format!("wss://{}", service.address), &ca.file(), &["TLS: ", &plain]);
    for (answer, scheme, parts) in [
        // A TLS alert, as servers without pages of HTML answer a plain request.
        (
            &b"\x15\x03\x01\x00\x02\x02\x46"[..],
            "ws",
            ["speaks TLS at this port; use wss://127.0.0.1:", "cc-executor: "],
        ),
        (
            b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
            "ws",
            ["is not a cc-executor service: its answer is not HTTP", "check the host"],
        ),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "wss", ["TLS: ", "127.0.0.1"]),
        (b"", "wss", ["TLS: 127.0.0.1 closed the connection in the handshake", "use ws:// or http://"]),
    ] {
        let server = TestListener::start(move |mut stream| {
            // A request, and a ClientHello, are shorter than this.
            let _ = stream.read(&mut [0; 4_096]);
            let _ = stream.write_all(answer);
            let _ = stream.shutdown(Shutdown::Both);
        });
        let url = format!("{scheme}://{}", server.address);
        let error = error_of(&url, &ca.file());
        assert!(parts.iter().all(|part| error.contains(part)), "{answer:?}: {error}");
    }
    // A web server that upgrades nothing.
    let page = Stub::start(|_, stream| respond(stream, 200, "<html>"));
    let mut command = binary();
    let (_, stderr, code) = run_to_exit(command.args(["run", "--url", &page.url(), "--", "true"]));
    let reason = "is not a cc-executor service: it answers 200 OK; check the host";
    assert!(code == 69 && stderr.contains(reason), "{stderr}");
}

#[test]
fn a_name_that_cannot_be_resolved_is_named() {
    let ca = TestCa::new("names");
    for scheme in ["ws", "wss"] {
        let parts = ["cannot reach ", "the host name \"no-such-host.invalid\" cannot be resolved"];
        assert_error(&format!("{scheme}://no-such-host.invalid"), &ca.file(), &parts);
    }
}
