//! Rules of the source code that a search can check: which files may use or contain what.

use std::{fs, path::Path, process::Command};

use crate::common::sources::{SourceFile, read_sources, root};

/// Files of pure logic: no actor, runtime, clock or I/O.
const PURE: &[&str] = &[
    "actors/src/activity.rs",
    "actors/src/agent/",
    "actors/src/clock.rs",
    "actors/src/id.rs",
    "actors/src/protocol.rs",
    "actors/src/protocol/",
    "actors/src/rpc.rs",
    "actors/src/rpc/",
    "actors/src/ws/",
    "actors/src/output/",
    "actors/src/outcome.rs",
    "actors/src/peer.rs",
    "actors/src/session/liveness.rs",
    "actors/src/session/phase.rs",
    "actors/src/session/phase/current.rs",
    "actors/src/session/phase/open.rs",
    "actors/src/session/phase/requests.rs",
    "actors/src/session/phase/step.rs",
    "actors/src/backend_api.rs",
    "actors/src/backend_api/",
    "actors/src/backend_client/body_end.rs",
    "actors/src/backend_client/error.rs",
    "actors/src/backend_client/hold.rs",
    "actors/src/backend_client/known.rs",
    "actors/src/execution/legacy/step.rs",
    "actors/src/execution/state.rs",
    "src/backend/job/outcome.rs",
    "src/backend/job/life.rs",
    "src/backend/job/clocks.rs",
    "src/backend/deadlines.rs",
    "src/backend/shim/protocol.rs",
    "src/backend/subreaper/protocol.rs",
    "actors/src/client.rs",
    "actors/src/share.rs",
    "actors/src/excerpt.rs",
    "actors/src/rpc/unique.rs",
    "src/backend/registry/error.rs",
    "src/backend/registry/fair_queue.rs",
    "src/backend/registry/places.rs",
    "src/backend/registry/record.rs",
    "src/backend/registry/record/",
    "src/backend/registry/retention.rs",
    "src/backend/registry/retention/",
    "src/backend/registry/withdrawn.rs",
    "src/backend/holds.rs",
    "src/backend/byte_range.rs",
    "src/server/authentication.rs",
    "src/server/local_users.rs",
    "src/server/tokens/table.rs",
    "src/backend/output_buffer/ring.rs",
    "src/console/visible.rs",
    "src/logging/limit.rs",
    "src/logging/line.rs",
    "src/logging/queue.rs",
    "src/server/admission.rs",
    "src/server/guess_limit.rs",
    "src/cli/escape.rs",
    "src/cli/exit_code.rs",
    "src/outgoing/url.rs",
    "src/cli/service/source.rs",
    "src/config/unknown.rs",
    "src/cli/progress.rs",
    "src/cli/usage_line.rs",
    "src/cli/ps_table.rs",
    "src/cli/silence.rs",
    "src/cli/reconnect.rs",
    "src/cli/session_loop/action.rs",
    "src/cli/session_loop/state.rs",
    "src/cli/session_loop/event.rs",
    "src/cli/session_loop/state/ending.rs",
    "src/cli/session_loop/state/reconnecting.rs",
    "src/cli/session_loop/state/terminal.rs",
];

/// The entries of the top level, besides dot files and lock files.
const TOP: &[&str] = &["Cargo.toml", "src", "actors", "tests", "benches", "deploy", "Makefile", "README.md"];

/// Every Rust file of the workspace, with its path from the root.
fn sources() -> Vec<SourceFile> {
    read_sources(&["src", "actors/src", "tests", "benches"])
}

/// The lines of a file that are code, up to its tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn every_file_has_a_module_doc() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "{name} has no module doc");
    }
}

/// A file that grows past this has more than one idea, and is split by them.
const MAX_LINES: usize = 400;

#[test]
fn no_file_is_longer_than_its_one_idea() {
    for (name, text) in sources().into_iter().filter(|(name, _)| !name.ends_with("tests.rs")) {
        let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
        let n_lines = text[..end].lines().count();
        assert!(n_lines <= MAX_LINES, "{name} has {n_lines} lines without its tests, more than {MAX_LINES}: split it");
    }
}

#[test]
fn only_the_console_module_prints() {
    // `println!` and `print!` panic if a write fails, for instance to a closed pipe or a full disk.
    let macros = ["println!", "print!", "dbg!"];
    let handles = [
        ("src/console.rs", ["io::stdout()", "io::stderr()"].as_slice()),
        // The size of the terminal.
        ("src/cli/terminal.rs", &["tcgetwinsize(stdout())"]),
        // The descriptors of a shim, which are not those of the client.
        ("src/backend/", &["io::stdout().as_fd()"]),
    ];
    for (name, text) in
        sources().into_iter().filter(|(name, _)| name.starts_with("src/") || name.starts_with("actors/"))
    {
        for line in code(&text) {
            for word in macros {
                assert!(!line.contains(word), "{name} prints: {line}");
            }
            if line.contains("stdout()") {
                let allowed = handles
                    .iter()
                    .any(|(of, words)| name.starts_with(of) && words.iter().any(|word| line.contains(word)));
                assert!(allowed, "{name} uses standard output: {line}");
            }
        }
    }
}

#[test]
fn pure_files_use_no_actor_runtime_or_io() {
    let forbidden = [
        "actix",
        "tokio",
        "awc",
        "Instant::now",
        "SystemTime::now",
        "std::fs",
        "std::net",
        "std::process",
        "std::thread",
    ];
    for (name, text) in sources() {
        if PURE.iter().any(|pure| name == *pure || (pure.ends_with('/') && name.starts_with(pure))) {
            for line in code(&text) {
                for word in forbidden {
                    assert!(!line.contains(word), "{name} is pure and uses {word}: {line}");
                }
            }
        }
    }
    for pure in PURE {
        assert!(root().join(pure).exists(), "{pure} does not exist: correct this list");
    }
}

#[test]
fn outbox_is_the_only_writer_to_a_client() {
    for (name, text) in
        sources().into_iter().filter(|(name, _)| name.starts_with("src/") || name.starts_with("actors/"))
    {
        for line in code(&text) {
            assert!(!line.contains("WebsocketContext") && !line.contains("ws::start"), "{name}: {line}");
            if line.contains("Sender<Bytes>") || line.contains("Outbox::new") {
                assert!(
                    matches!(name.as_str(), "actors/src/session/outbox.rs" | "actors/src/session.rs"),
                    "{name}: {line}"
                );
            }
            if line.contains("frame::close(") {
                assert_eq!(name, "actors/src/session/outbox.rs", "{line}");
            }
        }
    }
    let outbox = fs::read_to_string(root().join("actors/src/session/outbox.rs")).unwrap();
    assert!(
        !outbox.contains("frames.clone()") && !outbox.contains("#[derive(Clone)]"),
        "the sender of the outbox is never cloned"
    );
    assert!(outbox.contains("fn close(mut self, "), "closing consumes the outbox");
}

#[test]
fn actors_package_opens_no_socket_process_or_file() {
    for (name, text) in sources().into_iter().filter(|(name, _)| name.starts_with("actors/")) {
        for line in code(&text) {
            for word in ["TcpListener", "std::process", "process::Command", "std::fs", "std::env::var", "cc_executor::"]
            {
                assert!(!line.contains(word), "{name} uses {word}: {line}");
            }
        }
    }
}

#[test]
fn supervisor_and_execution_do_not_know_sessions() {
    let text = fs::read_to_string(root().join("actors/src/supervisor.rs")).unwrap();
    for line in code(&text) {
        assert!(!line.contains("session::") && !line.contains("Output") && !line.contains("Addr<Session>"), "{line}");
    }
    for name in ["actors/src/execution.rs", "actors/src/execution/relay.rs"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        assert!(
            code(&text).all(|line| !line.contains("session::") && !line.contains("supervisor::")),
            "{name} knows its parent only as recipients"
        );
    }
}

#[test]
fn unsafe_is_allowed_only_in_syscall() {
    for name in ["src/main.rs", "actors/src/lib.rs", "tests/integration.rs"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{name}");
    }
    assert!(fs::read_to_string(root().join("src/lib.rs")).unwrap().contains("#![deny(unsafe_code)]"));
    for (name, text) in sources() {
        let allows = text.contains("allow(unsafe_code)") && !name.starts_with("tests/");
        assert_eq!(allows, name == "src/syscall.rs", "{name}");
    }
}

#[test]
fn every_path_in_the_readme_exists() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let contributing = text.split("## Contributing").nth(1).expect("the README says how to contribute");
    let paths: Vec<&str> = contributing
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|quoted| {
            ["src/", "actors/", "tests/", "benches/", "deploy/", "."].iter().any(|top| quoted.starts_with(top))
        })
        // `NAME` stands for a new file.
        .filter(|quoted| !quoted.contains("NAME"))
        .collect();
    assert!(paths.len() > 10, "{paths:?}");
    for path in paths {
        assert!(root().join(path).exists(), "the README names {path}");
    }
}

#[test]
fn both_packages_use_the_workspace_lints() {
    for name in ["Cargo.toml", "actors/Cargo.toml"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        assert!(text.contains("\n[lints]\nworkspace = true\n"), "{name}");
    }
}

#[test]
fn top_level_contains_only_the_listed_entries() {
    let tracked = Command::new("git").args(["ls-files"]).current_dir(root()).output();
    let names: Vec<String> = match tracked {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
        }
        // Without git: every entry but the build's.
        _ => fs::read_dir(root())
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name != "target")
            .collect(),
    };
    for name in names {
        let top = name.split('/').next().unwrap();
        let fixed = TOP.contains(&top)
            || top.starts_with('.')
            || Path::new(top).extension().is_some_and(|extension| extension == "lock");
        assert!(fixed, "{top} does not belong at the top level");
    }
}
