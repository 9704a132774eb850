//! The real Claude Code with a scripted Messages API, in a network namespace that has only loopback: the tests need no
//! account, and nothing leaves the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::json;

use super::{
    left_out,
    messages_api::MessagesApi,
    network_namespace_option,
    service::{Service, binary},
};

/// Set in the environment of a test that runs in its namespace: the path of the CLI.
const INSIDE: &str = "TEST_CLAUDE_CLI";

/// The bound on the time from the CLI's start to its first tool, on a busy machine with a cold disk.
pub const COLD_PATIENCE: Duration = Duration::from_secs(60);

/// Brings loopback up, and then executes the test.
const ENTER: &str = r#"ip link set lo up && exec "$@""#;

/// Runs a scenario with only loopback: the test starts itself again in a network namespace.
pub fn on_loopback_only<F: FnOnce(&Cli)>(scenario: F) {
    if let Some(program) = std::env::var_os(INSIDE) {
        return scenario(&Cli::new(program.into()));
    }
    // `integration::claude_cli::the_test::{{closure}}`
    let path = std::any::type_name::<F>().split_once("::").expect("in a crate").1;
    let name = path.strip_suffix("::{{closure}}").expect("a closure in a test");
    let (program, unshare) = match (installed(), network_namespace_option()) {
        (Some(program), Ok(unshare)) => (program, unshare),
        (None, _) => return left_out(name, "Claude Code is not installed (make claude)"),
        (_, Err(missing)) => return left_out(name, missing),
    };
    let output = Command::new("timeout")
        .args(["300", "unshare", unshare, "sh", "-c", ENTER, "enter"])
        .arg(std::env::current_exe().expect("the path of this test"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, program)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("unshare runs");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
}

/// Claude Code below `target/`, or else in the `PATH`.
fn installed() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    let own = target.join("claude/node_modules/.bin/claude");
    let path = std::env::var_os("PATH")?;
    std::iter::once(own).chain(std::env::split_paths(&path).map(|dir| dir.join("claude"))).find(|path| path.is_file())
}

/// The CLI with a home directory of its own, for its sessions.
pub struct Cli {
    program: PathBuf,
    pub home: PathBuf,
}

impl Cli {
    fn new(program: PathBuf) -> Cli {
        let home = std::env::temp_dir().join(format!("cc-executor-claude-{}", std::process::id()));
        fs::create_dir_all(home.join("work")).expect("a home");
        Cli { program, home }
    }

    /// A role whose executor `claude` is the CLI with this API.
    pub fn service(&self, arguments: &[&str], api: &str, env: &[(&str, &str)]) -> Service {
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

    pub fn serve(&self, api: &MessagesApi) -> Service {
        self.service(&["serve"], &api.url(), &[])
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.home);
    }
}
