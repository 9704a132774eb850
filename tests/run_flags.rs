//! Flags of `run` that change the request: variables, durations, detaching, what is printed.

use std::{fs, time::Instant};

use crate::common::{
    PATIENCE,
    service::{Service, run_to_exit},
    temp::TempPath,
    wait_until,
};

#[test]
fn variables_come_from_flags_from_files_and_from_the_client() {
    let service = Service::start();
    let file = TempPath::with_content("env", "# a comment\nA=file\nB=from the file\nPASSED\nNOT_SET_ANYWHERE\n");
    let print = "echo \"$A|$B|$C|$PASSED|${NOT_SET_ANYWHERE-unset}|$ALSO\"";
    let mut command =
        service.run_command(&["--env-file", file.as_str(), "-e", "A=flag", "-eC=", "--env", "ALSO", "--", print]);
    let (stdout, stderr, exit) = run_to_exit(command.envs([("PASSED", "from the client"), ("ALSO", "too")]));
    assert_eq!((stdout.as_str(), exit), ("flag|from the file||from the client|unset|too\n", 0), "{stderr}");
    fs::write(&*file, "A=1\nno name here=2\n").unwrap();
    let (_, stderr, exit) = run_to_exit(&mut service.run_command(&["--env-file", file.as_str(), "--", "true"]));
    assert!(exit == 64 && stderr.contains(": line 2 must be NAME=VALUE"), "{stderr}");
    let (_, stderr, exit) = run_to_exit(&mut service.run_command(&["-e", "=secret", "--", "true"]));
    assert!(exit == 64 && stderr.contains("--env must be NAME=VALUE") && !stderr.contains("secret"), "{stderr}");
}

#[test]
fn a_duration_has_units_or_is_in_seconds() {
    let service = Service::start();
    for timeout in ["300ms", "0.3", "0.3s"] {
        let begun = Instant::now();
        let (_, stderr, exit) = run_to_exit(&mut service.run_command(&["--timeout", timeout, "--", "sleep 1000"]));
        assert_eq!(exit, 124, "{timeout}: {stderr}");
        assert!(begun.elapsed() < PATIENCE, "{timeout}");
    }
    let (_, stderr, exit) = run_to_exit(&mut service.run_command(&["--timeout", "1 hour", "--", "true"]));
    assert!(
        exit == 64 && stderr.contains("--timeout must be a duration such as 30, 2.5, 90s, 5m or 1h30m"),
        "{stderr}"
    );
    let (_, stderr, exit) = run_to_exit(&mut service.run_command(&["--detach=2h", "--", "true"]));
    assert!(exit == 64 && stderr.contains("--detach or --reconnect: detachMs must be"), "{stderr}");
}

#[test]
fn a_detached_command_runs_for_its_duration() {
    let service = Service::start();
    let (id, stderr, exit) = run_to_exit(&mut service.client_command(&["run", "--detach=300ms", "--", "sleep 1000"]));
    assert_eq!(exit, 0, "{stderr}");
    let path = format!("/executions?match={}", id.trim());
    wait_until("it was ended", PATIENCE, || service.get(&path)["executions"][0]["ending"]["reason"] == "disconnected");
}

#[test]
fn overflow_needs_an_execution_that_outlives_its_client() {
    let service = Service::start();
    let (_, stderr, exit) = run_to_exit(&mut service.run_command(&["--overflow", "drop", "--", "true"]));
    assert!(exit == 64 && stderr.contains("add --detach or --reconnect"), "{stderr}");
    let (stdout, stderr, exit) =
        run_to_exit(&mut service.run_command(&["--overflow=drop", "--reconnect", "--", "echo x"]));
    assert_eq!((stdout.as_str(), stderr.as_str(), exit), ("x\n", "", 0));
    let (_, stderr, exit) = run_to_exit(&mut service.run_command(&["--overflow", "keep", "-d", "--", "true"]));
    assert!(exit == 64 && stderr.contains("must be one of wait, drop"), "{stderr}");
}
