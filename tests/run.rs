//! `cc-executor run`: its flags, output and exit codes; and a service that ends under it.

use std::{
    fs,
    io::Read,
    os::unix::process::CommandExt,
    process::Stdio,
    time::{Duration, Instant},
};

use cc_executor_actors::outcome::{Reason, Status};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::common::{
    PATIENCE, procs,
    service::{BINARY, Service, binary, binary_under, kill, output_of, run_to_exit, text_and_code},
    temp::TempPath,
    wait_until,
};

#[test]
fn run_gives_the_output_and_exit_code_of_the_command() {
    let service = Service::start();
    let result = service.run(&["--", "python3 -c \"print(\\\"RESULT:::\\\" + str(24 * 7))\""]);
    assert_eq!(text_and_code(&result), ("RESULT:::168\n".to_owned(), 0));

    let both = service.run(&["--", "echo out; echo err >&2; exit 3"]);
    assert_eq!(text_and_code(&both), ("out\n".to_owned(), 3));
    assert_eq!(both.stderr, b"err\n");

    assert_eq!(text_and_code(&service.run(&["--", "kill -9 $$"])), (String::new(), 137));
    assert_eq!(
        text_and_code(&service.run(&["--", "printf", "%s-", "a", "b"])),
        ("a-b-".to_owned(), 0),
        "words are joined"
    );
    assert_eq!(text_and_code(&service.run(&["--executor", "python", "--", "print(42 * 17)"])), ("714\n".to_owned(), 0));
    assert_eq!(text_and_code(&service.run(&["--cwd", "/tmp", "--", "pwd"])), ("/tmp\n".to_owned(), 0));
    assert_eq!(
        text_and_code(&service.run(&["--", "cat; echo after"])),
        ("after\n".to_owned(), 0),
        "standard input is empty"
    );
}

#[test]
fn every_ending_has_its_exit_code() {
    let service = Service::with(
        &["serve", "--executors", r#"{"gone":["/no/such/program"],"plain":["/etc/passwd"]}"#],
        &[("CC_EXECUTOR_MAX_EXECUTIONS", "1"), ("CC_EXECUTOR_MAX_QUEUED", "0")],
    );
    let code = |arguments: &[&str]| {
        let output = service.run(arguments);
        assert!(output.status.success() || !output.stderr.is_empty(), "{arguments:?} explains the failure");
        text_and_code(&output).1
    };
    assert_eq!(code(&["--timeout", "0.2", "--", "sleep 30"]), 124);
    assert_eq!(code(&["--executor", "gone", "--", "x"]), 127);
    assert_eq!(code(&["--executor", "plain", "--", "x"]), 126);
    assert_eq!(code(&["--cwd", "/no/such/directory", "--", "x"]), 126);
    assert_eq!(code(&["--executor", "none", "--", "x"]), 64);
    assert_eq!(code(&["--timeout", "99999999", "--", "x"]), 64, "above the limit of the service");

    let mut client = service.connect();
    client.execute(json!({ "command": "sleep 30" }));
    assert_eq!(code(&["--", "true"]), 75, "all executions are taken");
    client.disconnect();

    let (_, stderr, code) = run_to_exit(binary().args(["run", "--url", "ws://127.0.0.1:1", "--", "true"]));
    assert_eq!(code, 69);
    assert!(stderr.contains("cc-executor serve"), "the message says what to do: {stderr}");
}

#[test]
fn run_needs_the_token_of_the_service() {
    const TOKEN: &str = "open-sesame-and-25-more-characters";
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    assert_eq!(text_and_code(&service.run(&["--", "true"])).1, 77);
    let with = |name: &str, value: &str| output_of(service.run_command(&["--", "echo in"]).env(name, value));
    assert_eq!(text_and_code(&with("CC_EXECUTOR_TOKEN", "wrong")).1, 77);
    assert_eq!(text_and_code(&with("CC_EXECUTOR_TOKEN", TOKEN)), ("in\n".to_owned(), 0));
    let file = TempPath::with_content("token", format!("{TOKEN}\n"));
    file.set_mode(0o644);
    let readable = with("CC_EXECUTOR_TOKEN_FILE", file.as_str());
    assert_eq!(readable.status.code(), Some(64), "every user can read the token");
    assert!(String::from_utf8_lossy(&readable.stderr).contains("chmod 600"), "{readable:?}");
    file.set_mode(0o640);
    let of_group = with("CC_EXECUTOR_TOKEN_FILE", file.as_str());
    assert_eq!((text_and_code(&of_group), of_group.stderr.len()), (("in\n".to_owned(), 0), 0));
}

#[test]
fn first_ctrl_c_cancels_and_second_exits_at_once() {
    let service = Service::start();
    let mark = procs::mark();
    let interrupt = |command: &str| {
        let mut run =
            service.run_command(&["--", command]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        run.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        kill(run.id(), Signal::INT);
        run
    };
    let mut run = interrupt(&format!("echo ready; exec sleep {mark}"));
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert!(procs::with_argument(&mark).is_empty(), "the process is gone before run exits");

    let mut run = interrupt(&format!("trap '' TERM; echo ready; sleep {mark}; sleep {mark}"));
    let mut start = [0; 12];
    run.stderr.as_mut().unwrap().read_exact(&mut start).unwrap();
    let at = Instant::now();
    kill(run.id(), Signal::INT);
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert!(at.elapsed() < Duration::from_secs(2), "the second Ctrl-C does not wait for the grace period");
    procs::wait_for(&mark, 0, PATIENCE);
}

#[test]
fn closed_stdout_of_run_cancels_the_command() {
    let service = Service::start();
    let mark = procs::mark();
    let command = format!("sleep {mark} & while echo line; do :; done");
    let mut run = service.run_command(&["--", &command]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = [0; 5];
    let mut stdout = run.stdout.take().unwrap();
    stdout.read_exact(&mut line).unwrap();
    drop(stdout);
    assert_eq!(run.wait().unwrap().code(), Some(141));
    procs::wait_for(&mark, 0, Duration::from_secs(1));
}

#[test]
fn stats_are_the_last_line_of_standard_error() {
    let service = Service::start();
    let run = |arguments: &[&str]| {
        let output = service.run(arguments);
        (text_and_code(&output), String::from_utf8(output.stderr).unwrap())
    };
    let command = "echo out; echo err >&2; python3 -c 'x = bytes([1]) * 50_000_000'; exit 3";
    let (ended, stderr) = run(&["--stats", "--", command]);
    assert_eq!(ended, ("out\n".to_owned(), 3));
    let lines: Vec<_> = stderr.lines().collect();
    let [error, stats] = lines.as_slice() else { panic!("two lines: {stderr}") };
    assert_eq!(*error, "err");
    let parts: Vec<_> = stats.split(", ").collect();
    assert!(parts[0].ends_with(" s") && parts[1].starts_with("cpu 0.") && parts[1].ends_with(" s system"), "{stats}");
    let largest: u64 =
        parts[2].strip_prefix("largest process ").and_then(|rest| rest.strip_suffix(" MB")?.parse().ok()).unwrap();
    assert!((50..100).contains(&largest), "{stats}");
    assert_eq!(run(&["--", command]).1, "err\n", "only on request");
    let (json, stderr) = run(&["--json", "--stats", "--", command]);
    assert_eq!((json.1, stderr.as_str()), (3, ""), "the messages have it");
}

#[test]
fn run_json_prints_the_messages_of_the_service() {
    let service = Service::start();
    let (text, code) = text_and_code(&service.run(&["--json", "--", "echo hi; exit 2"]));
    let messages: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let methods: Vec<_> = messages.iter().map(|message| message["method"].as_str().unwrap_or("response")).collect();
    assert_eq!(methods, ["connected", "response", "statusUpdate", "output", "statusUpdate"]);
    assert_eq!((code, messages[4]["params"]["exit_code"].as_i64()), (2, Some(2)));
}

#[test]
fn healthcheck_distinguishes_ready_from_alive() {
    let service = Service::start();
    let health = |url: &str| run_to_exit(binary().args(["healthcheck", "--url", url])).2;
    assert_eq!(health(&format!("{}/ready", service.url())), 0);
    assert_eq!(health("http://127.0.0.1:1/ready"), 1);
    let alone = Service::gateway_without_backend("http://127.0.0.1:1");
    assert_eq!(health(&format!("{}/health", alone.url())), 0, "the gateway is alive");
    assert_eq!(health(&format!("{}/ready", alone.url())), 1, "the gateway is not ready");
}

#[test]
fn used_port_and_bad_settings_are_reported_in_one_line_each() {
    let service = Service::start();
    let run = |arguments: &[&str]| run_to_exit(binary().args(arguments));
    let (_, stderr, code) = run(&["serve", "--bind", &service.address.to_string()]);
    assert_eq!((code, stderr.lines().count()), (1, 1), "{stderr}");
    assert!(stderr.contains(&service.address.to_string()) && stderr.contains("--bind"));
    let (_, stderr, code) =
        run(&["serve", "--bind", "0.0.0.0:0", "--max-sessions", "no", "--default-executor", "none"]);
    assert_eq!((code, stderr.lines().count()), (64, 3), "{stderr}");
}

#[test]
fn sigterm_cancels_running_commands() {
    let mut service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    let idle = service.connect();
    client.execute(json!({ "command": format!("sleep {mark}") }));
    procs::wait_for(&mark, 1, PATIENCE);
    service.signal(Signal::TERM);
    let recording = client.record();
    assert_eq!(recording.ending(), (Status::Cancelled, Reason::Drained));
    assert_eq!(client.close_code(), 1001);
    drop(idle);
    assert_eq!(service.wait(Duration::from_secs(10)).code(), Some(0));
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn killed_service_leaves_no_process() {
    let mut service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    client.execute(json!({ "command": format!("setsid sleep {mark} & (trap '' TERM; sleep {mark}) & sleep {mark}") }));
    procs::wait_for(&mark, 3, PATIENCE);
    service.signal(Signal::KILL);
    service.wait(PATIENCE);
    wait_until("the tree is gone", Duration::from_secs(1), || procs::with_argument(&mark).is_empty());
}

#[test]
fn ctrl_c_in_the_terminal_of_the_service_leaves_no_process() {
    // A terminal sends SIGINT to every process of the foreground group, shims included.
    let mut command = binary();
    command.args(["serve", "--bind", "127.0.0.1:0"]).process_group(0);
    let mut service = Service::spawn(command);
    let mark = procs::mark();
    let mut client = service.connect();
    client.execute(json!({ "command": format!("trap '' INT TERM; setsid sleep {mark} & sleep {mark}; sleep {mark}") }));
    procs::wait_for(&mark, 2, PATIENCE);
    let group = Pid::from_raw(i32::try_from(service.pid()).unwrap()).unwrap();
    kill_process_group(group, Signal::INT).unwrap();
    let recording = client.record();
    assert_eq!((recording.reason(), &recording.end["cancel"]["verified"]), (Reason::Drained, &json!(true)));
    assert_eq!(service.wait(Duration::from_secs(10)).code(), Some(0));
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn command_inherits_the_original_descriptor_limit() {
    let mut command = binary_under("bash");
    command.args(["-c", "ulimit -Sn 300; exec \"$0\" serve --bind 127.0.0.1:0"]).arg(BINARY);
    let service = Service::spawn(command);
    assert_eq!(service.run(&["--", "ulimit -Sn"]).stdout, b"300\n");
    let limits = fs::read_to_string(format!("/proc/{}/limits", service.pid())).unwrap();
    let own = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(!own.contains(" 300 "), "the service has raised its own limit: {own}");
}
