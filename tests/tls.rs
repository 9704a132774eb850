//! TLS between clients, gateway and backend, with a CA of the test: behind nginx, and with servers that break it.

mod broken;
mod endings;

use serde_json::Value;

use crate::common::{
    certificates::TestCa,
    client_process::ClientProcess,
    nginx::{Nginx, PREFIX},
    service::{Service, binary, run_to_exit, text_and_code},
};

const WHAT: &str = "TLS behind nginx";
const TOKEN: &str = "behind-nginx-and-32-characters-long";

/// A service behind nginx.
struct TlsSetup {
    service: Service,
    nginx: Nginx,
    ca: TestCa,
}

impl TlsSetup {
    fn start() -> Option<TlsSetup> {
        let ca = TestCa::new("tls");
        let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
        let certificate = ca.certificate(&["localhost", "127.0.0.1"]);
        let nginx = Nginx::start(WHAT, service.address, &[certificate])?;
        Some(TlsSetup { service, nginx, ca })
    }

    /// A client command with the token and the CA.
    fn command(&self, url: &str, words: &[&str]) -> std::process::Command {
        let mut command = binary();
        command.arg(words[0]).args(["--url", url, "--ca-file", &self.ca.file()]).args(&words[1..]);
        command.env("CC_EXECUTOR_TOKEN", TOKEN);
        command
    }

    fn run_to_exit(&self, url: &str, words: &[&str]) -> (String, String, i32) {
        run_to_exit(&mut self.command(url, words))
    }
}

#[test]
fn every_command_goes_through_nginx_with_and_without_a_prefix() {
    let Some(setup) = TlsSetup::start() else { return };
    let port = setup.nginx.addresses[0].port();
    for url in [
        format!("wss://127.0.0.1:{port}"),
        format!("https://localhost:{port}{PREFIX}"),
        format!("wss://localhost:{port}{PREFIX}/ws/mcp"),
        format!("https://localhost:{port}{PREFIX}/ws"),
    ] {
        let call = |words: &[&str]| setup.run_to_exit(&url, words);
        let (stdout, stderr, code) = call(&["run", "--", "echo out; echo err >&2; exit 3"]);
        assert_eq!((stdout.as_str(), stderr.as_str(), code), ("out\n", "err\n", 3), "{url}");
        let (id, stderr, code) = call(&["run", "--detach", "--", "seq 1 200000; exec sleep 1000"]);
        assert_eq!((stderr.as_str(), code), ("", 0), "{url}");
        let id = id.trim();
        let mut attached = ClientProcess::start(&mut setup.command(&url, &["attach", id]));
        attached.expect_stdout(&(1..=200_000).map(|n| format!("{n}\n")).collect::<String>());
        let (list, stderr, code) = call(&["ps", "--all", "--json"]);
        assert_eq!((stderr.as_str(), code), ("", 0), "{url}");
        let list: Value = serde_json::from_str(&list).unwrap();
        assert!(list["executions"].as_array().unwrap().iter().any(|of| of["executionId"] == id), "{list}");
        let (stdout, stderr, code) = call(&["output", "-n", "2", id]);
        assert_eq!((stdout.as_str(), stderr.as_str(), code), ("199999\n200000\n", "", 0), "{url}");
        let (stdout, stderr, code) = call(&["cancel", id]);
        assert!(code == 0 && stdout.starts_with("CANCELLED"), "{url}: {stdout}{stderr}");
        attached.finish(std::time::Duration::from_secs(20));
        assert_eq!(call(&["healthcheck"]), (String::new(), String::new(), 0), "{url}");
        let (stdout, stderr, code) = call(&["check", "--only", "basic,detach,large-output"]);
        assert_eq!(code, 0, "{url}: {stdout}{stderr}");
    }
    // Any form of the URL suits healthcheck.
    for path in ["/ready", "/health", &format!("{PREFIX}/healthz")] {
        let url = format!("https://localhost:{port}{path}");
        assert_eq!(setup.run_to_exit(&url, &["healthcheck"]), (String::new(), String::new(), 0), "{url}");
    }
}

#[test]
fn the_system_s_certificates_are_those_of_ssl_cert_file() {
    let Some(setup) = TlsSetup::start() else { return };
    let run = |url: &str, ca: &str| {
        let mut command = binary();
        command.args(["run", "--url", url, "--", "echo ok"]).env("CC_EXECUTOR_TOKEN", TOKEN);
        run_to_exit(command.env("SSL_CERT_FILE", ca).env("SSL_CERT_DIR", "/nowhere"))
    };
    let url = format!("wss://{}", setup.nginx.addresses[0]);
    assert_eq!(run(&url, &setup.ca.file()), ("ok\n".to_owned(), String::new(), 0));
    // A machine without certificates: an error for TLS, and nothing for a plain URL.
    let (_, stderr, code) = run(&url, "/nowhere/certificates.pem");
    assert!(code == 64 && stderr.contains("no CA certificates were found on this machine; install"), "{code} {stderr}");
    assert_eq!(run(&setup.service.url(), "/nowhere/certificates.pem").2, 0);
}

#[test]
fn a_token_is_checked_behind_nginx_and_a_redirect_is_not_followed() {
    let Some(setup) = TlsSetup::start() else { return };
    let url = format!("wss://{}", setup.nginx.addresses[0]);
    let mut command = setup.command(&url, &["run", "--", "true"]);
    let (_, stderr, code) = run_to_exit(command.env("CC_EXECUTOR_TOKEN", "wrong"));
    assert!(code == 77 && stderr.contains("refused the token in CC_EXECUTOR_TOKEN"), "{stderr}");
    let mut command = setup.command(&url, &["run", "--", "true"]);
    let (_, stderr, code) = run_to_exit(command.env_remove("CC_EXECUTOR_TOKEN"));
    assert!(code == 77 && stderr.contains("needs a token, and no token was sent"), "{stderr}");
    for words in [["run", "--", "true"].as_slice(), &["ps"]] {
        let (_, stderr, code) = setup.run_to_exit(&format!("{url}/moved"), words);
        let reason = "302 Found, a redirect, which is not followed, because the token would go with it";
        assert!(code == 69 && stderr.contains(reason), "{stderr}");
    }
    let (_, stderr, code) = setup.run_to_exit(&format!("{url}/elsewhere"), &["run", "--", "true"]);
    assert!(code == 69 && stderr.contains("answers 404 Not Found"), "{stderr}");
}

#[test]
fn a_gateway_reaches_its_backend_through_tls() {
    let ca = TestCa::new("backend");
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_BACKEND_TOKEN", TOKEN)]);
    let certificate = ca.certificate(&["localhost"]);
    let Some(nginx) = Nginx::start(WHAT, backend.address, &[certificate]) else { return };
    let url = format!("https://localhost:{}{PREFIX}", nginx.addresses[0].port());
    let file = ca.file();
    let env = [
        ("CC_EXECUTOR_BACKEND_URL", url.as_str()),
        ("CC_EXECUTOR_BACKEND_TOKEN", TOKEN),
        ("CC_EXECUTOR_CA_FILE", &file),
    ];
    let gateway = Service::with(&["serve"], &env);
    gateway.wait_for_event("backend.up", 1);
    // `run` compares counts and digests.
    let output = gateway.run(&["--", "seq 1 1000000; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout.len(), 6_888_896);
    let id = text_and_code(&gateway.run(&["--detach", "--", "exec sleep 1000"])).0;
    let (stdout, stderr, code) = run_to_exit(&mut gateway.client_command(&["cancel", id.trim()]));
    assert!(code == 0 && stdout.starts_with("CANCELLED"), "{stdout}{stderr}");

    let unknown_ca = Service::with(&["serve"], &env[..2]);
    let (_, stderr, code) = run_to_exit(&mut unknown_ca.run_command(&["--", "true"]));
    let reason = "TLS: the certificate of localhost is signed by no CA that is trusted here; if it is the right one, name the file of its CA with --ca-file";
    assert!(code == 69 && stderr.contains(reason), "{stderr}");
}
