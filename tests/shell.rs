//! What a shell sees: completion of commands, names and ids, the installed files, and the check of ports.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{
    PATIENCE,
    listener::TestListener,
    service::{BINARY, Service, binary, output_of, run_to_exit},
    temp, wait_until,
};

/// What the binary answers to the script of bash when a line is completed at its last word.
fn completed(url: &str, line: &[&str]) -> Vec<String> {
    let mut command = binary();
    command.args(["--", "cc-executor"]).args(line).env("CC_EXECUTOR_URL", url).stdin(Stdio::null());
    command.env("CC_EXECUTOR_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", line.len().to_string());
    let (stdout, stderr, exit) = run_to_exit(&mut command);
    assert_eq!((stderr.as_str(), exit), ("", 0), "{line:?}");
    stdout.lines().map(str::to_owned).collect()
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name))
}

#[test]
fn names_and_ids_are_completed_by_the_service() {
    let service = Service::start();
    let (id, _, _) = run_to_exit(&mut service.client_command(&["run", "-d", "--name", "nightly", "--", "sleep 1000"]));
    let short = &id[..8];
    for command in ["attach", "cancel", "output", "pause", "resume", "signal"] {
        assert_eq!(completed(&service.url(), &[command, "ni"]), ["nightly"], "{command}");
        assert_eq!(completed(&service.url(), &[command, &id[..2]]), [short], "{command}");
    }
    assert_eq!(completed("http://127.0.0.1:1", &["cancel", "--url", &service.url(), "ni"]), ["nightly"]);
    assert_eq!(completed(&service.url(), &["run", "--stall-t"]), ["--stall-timeout"]);
    let commands = completed(&service.url(), &["p"]);
    assert!(commands.contains(&"ps".to_owned()) && commands.contains(&"pause".to_owned()), "{commands:?}");
}

#[test]
fn completion_is_quick_and_silent_without_a_service() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // It accepts connections, and never answers.
    let mut held = Vec::new();
    let frozen = TestListener::start(move |stream| held.push(stream));
    for url in [format!("http://{closed}"), format!("http://{}", frozen.address), "no url".to_owned()] {
        let begun = Instant::now();
        assert_eq!(completed(&url, &["attach", "n"]), Vec::<String>::new(), "{url}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{url} took {:?}", begun.elapsed());
    }
}

#[test]
fn the_installed_files_work_together() {
    let prefix = temp::directory("install");
    let installed = output_of(script("install.sh").arg(BINARY).arg(&*prefix));
    assert!(installed.status.success(), "{installed:?}");
    let pages: Vec<_> =
        fs::read_dir(prefix.join("share/man/man1")).unwrap().map(|page| page.unwrap().file_name()).collect();
    for page in ["cc-executor.1", "cc-executor-run.1", "cc-executor-completions.1", "cc-executor-man.1"] {
        assert!(pages.iter().any(|name| name == page), "{page}: {pages:?}");
    }
    let completions = prefix.join("share/bash-completion/completions/cc-executor");
    let check = format!(
        "PATH={}:$PATH; source {}; COMP_WORDS=(cc-executor serve --max-sess); COMP_CWORD=2; \
         _clap_complete_cc_executor cc-executor --max-sess serve; echo \"${{COMPREPLY[@]}}\"",
        prefix.join("bin").display(),
        completions.display()
    );
    let words = output_of(Command::new("bash").args(["-c", &check]));
    assert_eq!(String::from_utf8_lossy(&words.stdout), "--max-sessions --max-sessions-per-address\n", "{words:?}");
}

#[test]
fn a_taken_port_is_reported_with_its_process() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let taken = output_of(script("free-ports.sh").arg(&port));
    let stderr = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert_eq!(taken.status.code(), Some(1), "{stderr}");
    let expected = format!("port {port} is taken by ");
    assert!(stderr.starts_with(&expected) && stderr.contains(&format!("(process {})", std::process::id())), "{stderr}");
    drop(listener);
    // A process that another test has forked may hold the descriptor for a moment.
    wait_until("the port is free", PATIENCE, || output_of(script("free-ports.sh").arg(&port)).status.success());
}
