//! The client commands say why a service refuses them, in the words of the service.

use std::{
    io::{Read, Write},
    net::TcpListener,
};

use cc_executor_actors::rpc::{ErrorObject, code};
use serde_json::json;

use crate::common::{
    listener::TestListener,
    service::{Service, binary, run_to_exit},
};

const TOKEN: &str = "open-sesame-7-and-25-more-characters";

#[test]
fn the_reason_of_a_refused_request_is_shown() {
    let service = Service::start();
    let other_name = format!("ws://0.0.0.0:{}", service.address.port());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Service::gateway_without_backend(&format!("http://{closed}"));
    for (command, url, code, reason) in [
        ("ps", other_name.clone(), 77, "0.0.0.0:"),
        ("run", other_name, 77, "is not allowed without a token: use localhost, set a token, or add the name to"),
        ("ps", gateway.url(), 69, "cannot reach the backend at http://127.0.0.1:"),
    ] {
        let words = [command, "--url", &url, "--", "true"];
        let words = if command == "run" { &words[..] } else { &words[..3] };
        let (_, stderr, exit) = run_to_exit(binary().args(words));
        assert_eq!((exit, stderr.lines().count()), (code, 1), "{stderr}");
        assert!(stderr.contains(reason) && !stderr.contains("is not a cc-executor service"), "{stderr}");
    }
}

#[test]
fn a_wrong_token_is_told_from_a_missing_one() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    for (token, reason) in [
        (None, "needs a token, and no token was sent; set CC_EXECUTOR_TOKEN or"),
        (Some("x"), "refused the token in CC_EXECUTOR_TOKEN; set it"),
    ] {
        for words in [["ps"].as_slice(), &["run", "--", "true"]] {
            let mut command = binary();
            command.args(words).env("CC_EXECUTOR_URL", service.url());
            command.envs(token.map(|token| ("CC_EXECUTOR_TOKEN", token)));
            let (_, stderr, exit) = run_to_exit(&mut command);
            assert!(exit == 77 && stderr.contains(reason), "{words:?}: {stderr}");
        }
    }
}

/// A message of a service can hold a value of another client.
#[test]
fn a_message_of_the_service_cannot_steer_the_terminal() {
    let stub = TestListener::start(|mut stream| {
        // A request for a list is shorter than this.
        let _ = stream.read(&mut [0; 4_096]);
        let body = json!(ErrorObject::new(code::FULL, "full\u{1b}[2K\rof \u{9b}31m\u{202e}")).to_string();
        let head = format!("HTTP/1.1 429 Too Many Requests\r\nContent-Length: {}", body.len());
        let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes());
    });
    let url = format!("http://{}", stub.address);
    let (_, stderr, exit) = run_to_exit(binary().args(["ps", "--url", &url]));
    let shown = "answers 429 Too Many Requests: full\\u001b[2K\\rof \\u009b31m\\u202e\n";
    assert!(exit == 75 && stderr.ends_with(shown), "{exit} {stderr:?}");
}
