//! `argv`: a program runs with its words as they are, without a shell; and the settings and backends that refuse it.

use cc_executor_actors::{outcome::Status, rpc::code};
use serde_json::json;

use crate::common::{
    client::code_and_param,
    service::{Service, run_to_exit},
    stub::Stub,
};

/// Words that a shell would change, cut or drop.
const WORDS: [&str; 9] = ["", "a b", "$HOME", "*", "it's", "\"", "\\", "-n", "ü\n\t"];

#[test]
fn words_reach_the_program_as_they_are() {
    let service = Service::start();
    let mut client = service.connect();
    let printed: Vec<_> = WORDS.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
    let argv = [&["printf", "%s\\0"], WORDS.as_slice()].concat();
    let recording = client.run(json!({ "argv": argv }));
    assert_eq!((recording.status(), recording.stdout), (Status::Completed, printed.clone()));
    let words = [&["--exec", "--"], argv.as_slice()].concat();
    assert_eq!(service.run(&words).stdout, printed, "from the command line");
    let cat = client.run(json!({ "argv": ["sh", "-c", "echo $#; exit 3", "name", "", ""], "executor": "exec" }));
    assert_eq!((cat.text().as_str(), cat.end["exit_code"].as_i64()), ("2\n", Some(3)));
}

#[test]
fn the_longest_word_runs_and_a_missing_program_has_the_exit_code_of_a_shell() {
    let service = Service::start();
    let mut client = service.connect();
    let longest = "x".repeat(131_071);
    let recording = client.run(json!({ "argv": ["printf", "%s", longest] }));
    assert_eq!(recording.stdout.len(), longest.len());
    for (words, exit_code) in [(["no such program", "x"], 127), (["/etc", ""], 126), (["", "x"], 127)] {
        let output = service.run(&[&["--exec", "--"], words.as_slice()].concat());
        assert_eq!(output.status.code(), Some(exit_code), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_disabled_executor_does_not_exist() {
    let service = Service::with(&["serve", "--disable-executors", "exec, python"], &[]);
    let mut client = service.connect();
    assert_eq!(client.connected.as_ref().unwrap().executors, Some(vec!["claude".to_owned(), "shell".to_owned()]));
    for params in [json!({ "argv": ["true"] }), json!({ "command": "1", "executor": "python" })] {
        let error = client.call("execute", params).unwrap_err();
        assert_eq!(code_and_param(&error), (code::NOT_ALLOWED, Some("executor")), "{error}");
    }
    let (_, stderr, exit) = run_to_exit(&mut service.run_command(&["--exec", "--", "true"]));
    assert_eq!(exit, 64, "{stderr}");
    assert!(stderr.contains("there is no executor \"exec\": there are claude, shell"), "{stderr}");
}

#[test]
fn the_legacy_image_takes_no_words() {
    let image = Stub::legacy("/execute/stream", |_, _| panic!("nothing is sent"));
    let service = Service::gateway(&image.url());
    let mut client = service.connect();
    let error = client.call("execute", json!({ "argv": ["true"] })).unwrap_err();
    assert_eq!(code_and_param(&error), (code::NOT_ALLOWED, Some("argv")), "{error}");
}

#[test]
fn a_repeated_request_has_the_same_words() {
    let service = Service::start();
    let id = "00000000-0000-4000-8000-00000000a59b";
    let execute = |params: serde_json::Value| {
        let mut client = service.connect();
        let mut all = json!({ "executionId": id, "onDisconnect": "detach" });
        all.as_object_mut().unwrap().extend(params.as_object().unwrap().clone());
        client.call("execute", all)
    };
    execute(json!({ "argv": ["sleep", "1000"] })).unwrap();
    execute(json!({ "argv": ["sleep", "1000"] })).unwrap();
    for other in [json!({ "argv": ["sleep 1000"] }), json!({ "command": "sleep 1000" })] {
        let error = execute(other).unwrap_err();
        assert_eq!(error.code, code::PARAMS);
        assert!(error.message.contains("exists already, with another command"), "{error}");
    }
}
