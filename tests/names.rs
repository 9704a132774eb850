//! Names of executions, and the commands that take one: an id, the beginning of an id, or a name.

use cc_executor_actors::rpc::code;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    backend_caller::{BackendCaller, backend_with_token},
    client::code_and_param,
    procs,
    service::{Service, run_to_exit},
    temp, wait_until,
};

fn detach(service: &Service, command: &str, more: &[&str]) -> String {
    let words = [&["run", "-d"], more, &["--", command]].concat();
    let (stdout, stderr, exit) = run_to_exit(&mut service.client_command(&words));
    assert_eq!(exit, 0, "{stderr}");
    stdout.trim().to_owned()
}

fn status_of(service: &Service, id: &str) -> Value {
    service.get(&format!("/executions?match={id}"))["executions"][0].clone()
}

#[test]
fn each_command_takes_a_name_or_the_beginning_of_an_id() {
    let service = Service::start();
    let output = |words: &[&str]| run_to_exit(&mut service.client_command(words));
    let mark = procs::mark();
    let command =
        format!("trap 'echo got it' USR1; echo begun; while :; do sleep 0.05 {mark} 2>/dev/null || sleep 0.05; done");
    let id = detach(&service, &command, &["--name", "nightly"]);
    wait_until("it has written", PATIENCE, || status_of(&service, &id)["offsets"]["stdout"] == 6);
    for reference in ["nightly", &id[..8], &id[..3], &id.to_uppercase()[..12], &id] {
        assert_eq!(output(&["output", reference]), ("begun\n".to_owned(), String::new(), 0), "{reference}");
    }
    assert_eq!(output(&["pause", "nightly"]), (String::new(), String::new(), 0));
    assert_eq!(status_of(&service, &id)["status"], "PAUSED");
    assert_eq!(output(&["resume", &id[..8]]).2, 0);
    assert_eq!(status_of(&service, &id)["status"], "RUNNING");
    assert_eq!(output(&["signal", "nightly", "usr1"]).2, 0);
    wait_until("the signal has come", PATIENCE, || output(&["output", "nightly"]).0 == "begun\ngot it\n");
    assert_eq!(output(&["signal", "nightly", "10"]).2, 0);
    let (_, stderr, exit) = output(&["signal", "nightly", "stop"]);
    assert!(exit == 64 && stderr.contains("must be the name or the number of one of SIGHUP"), "{stderr}");
    assert_eq!(output(&["cancel", "nightly"]).0, "CANCELLED canceled, every process gone\n");
    let (again, _, exit) = output(&["cancel", "nightly"]);
    assert!(exit == 0 && again.starts_with("had already ended: CANCELLED canceled"), "{again}");
    assert_eq!(output(&["attach", "nightly"]).2, 143);
}

#[test]
fn a_name_is_unique_among_the_running_and_free_afterwards() {
    let service = Service::start();
    let first = detach(&service, "sleep 1000", &["--name", "build"]);
    let mut client = service.connect();
    let error = client.call("execute", json!({ "command": "true", "name": "build" })).unwrap_err();
    assert_eq!(code_and_param(&error), (code::PARAMS, Some("name")), "{error}");
    assert_eq!(error.data.as_ref().unwrap()["executionId"], first);
    let (_, stderr, exit) = run_to_exit(&mut service.run_command(&["--name", "build", "--", "true"]));
    assert!(exit == 64 && stderr.starts_with("cc-executor: --name: name build is taken by execution "), "{stderr}");
    assert_eq!(run_to_exit(&mut service.client_command(&["cancel", "build"])).2, 0);
    let second = detach(&service, "echo second", &["--name", "build"]);
    let output = |reference: &str| run_to_exit(&mut service.client_command(&["attach", reference])).0;
    assert_eq!(output("build"), "second\n", "the newest has the name");
    assert_eq!(output(&first), "");
    let all = service.get("/executions?match=build");
    assert_eq!((&all["total"], &all["executions"][0]["executionId"]), (&json!(1), &json!(second)));
    let listed = run_to_exit(&mut service.client_command(&["ps", "--filter", "name=buil"])).0;
    assert_eq!(listed.lines().filter(|line| line.contains("build")).count(), 2, "{listed}");
}

#[test]
fn several_matches_are_listed_and_none_is_an_error() {
    let service = Service::start();
    let mut client = service.connect();
    for at in 0..3 {
        let id = format!("abcd000{at}-0000-4000-8000-000000000000");
        client.run(json!({ "command": format!("exit {at}"), "executionId": id }));
    }
    let output = |words: &[&str]| run_to_exit(&mut service.client_command(words));
    let (stdout, stderr, exit) = output(&["cancel", "abcd"]);
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!((stdout.as_str(), exit, lines.len()), ("", 64, 4), "{stderr}");
    assert_eq!(lines[3], "cc-executor: 3 executions match abcd: give more of the id");
    assert!(
        lines[1].contains("abcd0001-0000-4000-8000-000000000000  -  FAILED") && lines[1].ends_with("exit 1"),
        "{stderr}"
    );
    assert_eq!(output(&["output", "abcd0002"]).2, 0);
    let (_, stderr, exit) = output(&["output", "abce"]);
    assert_eq!(
        (stderr.as_str(), exit),
        ("cc-executor: no execution of yours matches abce: `cc-executor ps --all` lists them\n", 69)
    );
    for (query, part) in [
        ("match=a/b", "match must be the id of an execution, the beginning of its id, or its name"),
        ("match=abcd&after=a1", "leave out after or match"),
        ("match=", "match must be"),
    ] {
        let refused = service.get(&format!("/executions?{query}"));
        assert_eq!(refused["code"], code::PARAMS, "{query}: {refused}");
        assert!(refused["message"].as_str().unwrap().contains(part), "{refused}");
    }
}

#[test]
fn a_name_belongs_to_its_client() {
    let backend = backend_with_token(&[]);
    let (ann, bob) = (BackendCaller::client(&backend, "ann"), BackendCaller::client(&backend, "bob"));
    let mut ids = Vec::new();
    for caller in [&ann, &bob] {
        let execute = json!({ "command": "true", "name": "build" });
        let response = caller.run(&execute);
        assert_eq!(response.status, 200, "{}", response.body);
        let (status, page) = caller.ask("GET /executions?match=build");
        assert_eq!((status, &page["total"]), (200, &json!(1)), "{page}");
        ids.push(page["executions"][0]["executionId"].as_str().unwrap().to_owned());
    }
    assert_ne!(ids[0], ids[1]);
    assert_eq!(bob.ask(&format!("GET /executions?match={}", &ids[0][..12])).1["total"], 0, "unknown to others");
    assert_eq!(BackendCaller::operator(&backend).ask("GET /executions?match=build").1["total"], 2);
}

#[test]
fn a_name_outlives_the_backend() {
    let directory = temp::directory("names");
    let arguments = ["serve", "--state-dir", directory.to_str().unwrap()];
    let mut service = Service::with(&arguments, &[]);
    let id = detach(&service, "echo kept", &["--name", "report"]);
    wait_until("it has ended", PATIENCE, || status_of(&service, &id)["status"] == "COMPLETED");
    service.signal(rustix::process::Signal::TERM);
    service.wait(PATIENCE);
    let service = Service::with(&arguments, &[]);
    assert_eq!(run_to_exit(&mut service.client_command(&["output", "report"])).0, "kept\n");
    assert_eq!(status_of(&service, &id)["name"], "report");
}

#[test]
fn a_command_that_nobody_reads_is_shown_as_waiting() {
    let service = Service::with(&["serve", "--state-dir", "none", "--ring-bytes", "65536"], &[]);
    let id = detach(&service, "yes", &["--name", "flood"]);
    let ps = |words: &[&str]| run_to_exit(&mut service.client_command(&[&["ps"], words].concat())).0;
    wait_until("it waits", PATIENCE, || ps(&["--filter", "state=waiting", "-q"]) == format!("{id}\n"));
    assert!(ps(&[]).lines().any(|line| line.contains("flood  WAITING")), "{}", ps(&[]));
    assert_eq!(ps(&["--filter", "state=running", "-q"]), "");
    let dropping = detach(&service, "yes", &["--overflow", "drop", "--name", "lossy"]);
    wait_until("it has written more than is kept", PATIENCE, || {
        status_of(&service, &dropping)["offsets"]["stdout"].as_u64() > Some(10 << 20)
    });
    assert_eq!(ps(&["--filter", "state=running", "-q"]), format!("{dropping}\n"), "it never waits");
}
