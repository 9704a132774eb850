//! The output of `check` for people, and healthy services with unusual settings, which must pass.

use std::{fs, process::Stdio};

use serde_json::json;

use crate::{
    check::{ALL, QUICK, check},
    common::{
        service::{Service, binary, output_of, run_to_exit},
        tampering_proxy::TamperingProxy,
        temp::TempPath,
    },
};

/// Runs `check` against a service: standard output, standard error, and the exit code.
fn run(service: &Service, arguments: &[&str]) -> (String, String, i32) {
    run_to_exit(service.client_command(&["check"]).args(arguments))
}

#[test]
fn check_prints_one_line_per_check_and_totals() {
    let service = Service::start();
    let (out, err, code) = run(&service, &["--only", "stress,basic"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines.len(), code), (3, 0), "{out}");
    assert!(lines[0].starts_with("ok    basic ") && lines[0].ends_with(" s  RESULT:::168"), "{out}");
    assert!(lines[1].starts_with("ok    stress "), "{out}");
    assert!(lines[2].starts_with("2 passed, 0 failed, in "), "{out}");
    // The name is printed when a check begins, so that a hanging check can be recognised.
    assert_eq!(err, "...   basic\n...   stress\n");
}

#[test]
fn check_list_names_all_checks_and_unknown_names_are_refused() {
    let (out, _, code) = run_to_exit(binary().args(["check", "--list"]));
    let names: Vec<_> = out.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!((names, code), (ALL.to_vec(), 0));
    let (_, err, code) = run_to_exit(binary().args(["check", "--only", "basic,advanced"]));
    assert_eq!(code, 64);
    assert!(err.contains("\"advanced\"") && err.contains("races, slow-client"), "{err}");
}

#[test]
fn check_reports_an_unreachable_service_once() {
    let (out, err, code) = run_to_exit(binary().args(["check", "--url", "http://127.0.0.1:1"]));
    assert_eq!((out.as_str(), err.lines().count(), code), ("", 1, 69), "{err}");
}

#[test]
fn unreadable_log_is_an_error_and_unhelpful_log_is_explained() {
    let service = Service::start();
    for file in ["/no/such/file", "/"] {
        let (out, err, code) = run(&service, &["--logs", file]);
        assert_eq!((out.as_str(), code), ("", 64));
        assert!(err.contains("cannot read"), "{err}");
    }
    let log = TempPath::new("check-log");
    for (text, explanation) in [
        ("a log for people\n", "no JSON log line in "),
        (
            "{\"time\":\"2026-01-02T03:04:05.000Z\",\"event\":\"session.opened\",\"session_id\":\"other\"}\n",
            "no line of this session in ",
        ),
    ] {
        fs::write(&*log, text).unwrap();
        let proxy =
            TamperingProxy::start(service.address, |_, _, message| message["params"]["content"] != "RESULT:::168\n");
        let (results, _, code) = check(&proxy.url(), &["--only", "basic", "--logs", log.as_str()]);
        assert_eq!(code, 1);
        assert!(results[0]["log"][0].as_str().unwrap().starts_with(explanation), "{results:?}");
    }
}

#[test]
fn closed_stdout_does_not_change_the_exit_code_of_check() {
    let service = Service::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = binary();
    command.args(["check", "--only", "basic,limits", "--url", &service.url()]);
    let output = output_of(command.stdout(writer).stderr(Stdio::piped()));
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), err.as_str()), (Some(0), "...   basic\n...   limits\n"));
}

#[test]
fn checks_pass_with_token_and_separate_backend() {
    let token = [("CC_EXECUTOR_TOKEN", "open-sesame-and-25-more-characters")];
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_TOKEN", "of-the-backend-and-25-more-characters")]);
    let service = Service::gateway_with(
        &backend.url(),
        &[token[0], ("CC_EXECUTOR_BACKEND_TOKEN", "of-the-backend-and-25-more-characters")],
    );
    let only = ["check", "--only", &QUICK.join(","), "--url", &service.url()];
    assert_eq!(run_to_exit(binary().args(only)).2, 77);
    let (out, _, code) = run_to_exit(binary().args(only).envs(token));
    assert_eq!(code, 0, "{out}");
}

#[test]
fn checks_pass_with_small_configured_limits() {
    // A short queue, a default executor that is not the shell, and no retention.
    let few = ["--max-executions", "4", "--max-queued", "3", "--retention-ms", "0", "--max-detach-ms", "5000"];
    let service = Service::with(&[&["serve", "--default-executor", "python"], few.as_slice()].concat(), &[]);
    let (results, summary, code) = check(&service.url(), &["--only", &QUICK.join(",")]);
    assert_eq!((code, &summary["failed"]), (0, &json!(0)), "{results:?}");
    // A ring that is smaller than the output of the check: the margin behind acknowledged output keeps the rest.
    let service = Service::with(&["serve", "--ring-bytes", "65536"], &[]);
    let (results, _, code) = check(&service.url(), &["--only", "detach"]);
    assert_eq!(code, 0, "{results:?}");
    let evidence = results[0]["evidence"].as_str().unwrap();
    assert!(!evidence.contains("retained after the end"), "all of it is retained: {results:?}");
}
