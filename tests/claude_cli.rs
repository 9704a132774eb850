//! The real Claude Code, with a Messages API of the tests' own, in a network namespace that has nothing but
//! loopback: no account is needed and nothing leaves the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, Story},
    messages_api::MessagesApi,
    procs,
    service::{Service, binary},
};

/// Says to a test that it is already in its namespace, and where the CLI is.
const INSIDE: &str = "TEST_CLAUDE_CLI";

/// Brings loopback up and becomes the test.
const ENTER: &str = r#"ip link set lo up && exec "$@""#;

/// Runs a scenario where only loopback is: the test calls itself again in a namespace of its own. Without
/// the CLI, or where no namespace can be made, it says that it was left out; that is a failure where `CI`
/// is set.
fn on_loopback_only<F: FnOnce(&Cli)>(scenario: F) {
    if let Some(program) = std::env::var_os(INSIDE) {
        return scenario(&Cli::new(program.into()));
    }
    // `integration::claude_cli::the_test::{{closure}}`
    let path = std::any::type_name::<F>().split_once("::").expect("in a crate").1;
    let name = path.strip_suffix("::{{closure}}").expect("a closure in a test");
    let root = rustix::process::geteuid().is_root();
    let unshare: &[&str] = if root { &["-n"] } else { &["-rn"] };
    let able = Command::new("unshare").args(unshare).args(["sh", "-c", ENTER, "enter", "true"]).output();
    let missing = match (installed(), able) {
        (None, _) => "Claude Code is not installed (npm install --prefix target/claude @anthropic-ai/claude-code)",
        (_, Err(_)) => "unshare is not installed",
        (_, Ok(output)) if !output.status.success() => "no network namespaces here (unshare -n, ip)",
        (Some(program), Ok(_)) => {
            let output = Command::new("timeout")
                .args(["120", "unshare"])
                .args(unshare)
                .args(["sh", "-c", ENTER, "enter"])
                .arg(std::env::current_exe().expect("this test"))
                .args(["--exact", name, "--nocapture"])
                .env(INSIDE, program)
                .output()
                .expect("unshare runs");
            let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
            assert!(output.status.success() && said[0].contains("1 passed"), "{}\n{}", said[0], said[1]);
            return;
        }
    };
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    eprintln!("LEFT OUT: {name}: {missing}");
}

/// Claude Code of this project's own, or else the user's.
fn installed() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    let own = target.join("claude/node_modules/.bin/claude");
    let path = std::env::var_os("PATH")?;
    std::iter::once(own).chain(std::env::split_paths(&path).map(|dir| dir.join("claude"))).find(|path| path.is_file())
}

/// The CLI with a home of its own, in which its sessions are kept.
struct Cli {
    program: PathBuf,
    home: PathBuf,
}

impl Cli {
    fn new(program: PathBuf) -> Cli {
        let home = std::env::temp_dir().join(format!("cc-executor-claude-{}", std::process::id()));
        fs::create_dir_all(home.join("work")).expect("a home");
        Cli { program, home }
    }

    /// A role whose `claude` is the CLI and asks that API.
    fn service(&self, arguments: &[&str], api: &str, env: &[(&str, &str)]) -> Service {
        let executors = json!({ "claude": [self.program] }).to_string();
        let mut command = binary();
        command.args(arguments).args(["--bind", "127.0.0.1:0", "--executors", &executors]);
        for (name, _) in std::env::vars() {
            let own = ["ANTHROPIC_", "CLAUDE_", "XDG_"].iter().any(|prefix| name.starts_with(prefix));
            if own || name.to_ascii_lowercase().ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.home.join("work"))
            .env("HOME", &self.home)
            .env("ANTHROPIC_BASE_URL", api)
            .env("ANTHROPIC_API_KEY", "sk-ant-api03-of-the-test")
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
            .env("CLAUDE_CODE_MAX_RETRIES", "2")
            .env("DISABLE_TELEMETRY", "1")
            .env("IS_SANDBOX", "1")
            .envs(env.iter().copied());
        Service::spawn(command)
    }

    fn serve(&self, api: &MessagesApi) -> Service {
        self.service(&["serve"], &api.url(), &[])
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// A question to Claude, which may use its Bash.
fn ask(client: &mut Client, prompt: &str) -> Story {
    client.ask_claude(with_bash(prompt))
}

fn with_bash(prompt: &str) -> Value {
    json!({ "command": prompt, "events": true, "heartbeatMs": 1_000, "claude": { "allowedTools": ["Bash"] } })
}

fn ending(story: &Story) -> (&str, &str) {
    (story.end["status"].as_str().unwrap(), story.end["reason"].as_str().unwrap())
}

/// The command whose result everybody wants to see.
const PRODUCT: &str = r#"run python3 -c "print('RESULT:::' + str(24 * 7))""#;

#[test]
fn a_tool_is_called_and_its_result_and_the_answer_are_told() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let service = cli.serve(&api);
        let mut client = service.connect();
        let story = ask(&mut client, PRODUCT);
        assert_eq!(ending(&story), ("COMPLETED", "exit"), "{}", story.end);
        assert_eq!(story.text(), "RESULT:::168\nThe result is RESULT:::168\n");
        assert_eq!(story.end["exit_code"], 0);
        let result = &story.end["result"];
        assert_eq!(
            (&result["text"], &result["is_error"], &result["num_turns"]),
            (&json!("The result is RESULT:::168"), &json!(false), &json!(2))
        );
        assert!(result["session_id"].is_string() && result["total_cost_usd"].is_number(), "{result}");
        assert_eq!(story.events.last().unwrap()["end"], story.end["bytes"]["stdout"]);
        assert_eq!(api.questions().len(), 2);
    });
}
