//! How Claude Code is started: its arguments and its environment, within the operator's policy.
//!
//! The arguments are a list, which no shell reads; the prompt goes through standard input.

use std::{collections::BTreeMap, fs, path::PathBuf};

use cc_executor_actors::{
    agent::{Agent, claude::Claude},
    excerpt::Quoted,
    protocol::execute::{ClaudeOptions, ExecutionSpec},
};

use super::{AgentLaunch, AgentLauncher};

/// The arguments of every run: answer one prompt, and print events.
const ARGUMENTS: &[&str] = &["-p", "--output-format", "stream-json", "--verbose"];

/// Variables that Claude inherits from the service beside those of every command: its settings and keys, and its access
/// to the network.
const INHERITED: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "XDG_CONFIG_HOME",
    "IS_SANDBOX",
    "DISABLE_TELEMETRY",
    "DISABLE_ERROR_REPORTING",
    "DISABLE_AUTOUPDATER",
];
const INHERITED_PREFIXES: &[&str] = &["ANTHROPIC_", "CLAUDE_"];

/// Variables that a client may not set, beside those that Claude inherits: each determines which program runs, with whose
/// settings and login, which code is loaded into it, or where it sends the operator's key.
const RESERVED: &[&str] = &["HOME", "PATH", "SHELL", "BASH_ENV", "ALL_PROXY", "all_proxy"];
const RESERVED_PREFIXES: &[&str] = &["LD_", "NODE_", "BUN_"];

/// A setting of the gateway that has the prefix of Claude's settings.
const NOT_INHERITED: &str = "CLAUDE_API_URL";

const API_KEY: &str = "ANTHROPIC_API_KEY";
const SANDBOX: &str = "IS_SANDBOX";

/// The permission mode in which Claude asks for no permission.
const BYPASS: &str = "bypassPermissions";

/// The operator's policy for Claude's options. An empty list allows all values.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClaudePolicy {
    /// Models; the first is the default.
    pub models: Vec<String>,
    /// Permission modes; the first is the default.
    pub permission_modes: Vec<String>,
    /// Tools that a client may allow.
    pub tools: Vec<String>,
    /// The most answers of the model.
    pub max_turns: Option<u64>,
    /// Directories in which it may work; the first is the default.
    pub directories: Vec<PathBuf>,
    /// Variables that it inherits beside those of every command.
    pub inherited: BTreeMap<String, String>,
}

/// Why the options of a client are refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PolicyError {
    /// The operator allows other values only.
    #[error("{param} {} is not allowed here: use {}", Quoted(.asked), .allowed.join(", "))]
    NotAllowed {
        /// The parameter.
        param: &'static str,
        /// Its value.
        asked: String,
        /// The values that are allowed.
        allowed: Vec<String>,
    },
    /// The working directory does not exist, or is not below a directory that the operator allows.
    #[error("cwd {} does not exist, or is not below an allowed directory: {}", Quoted(.asked), .allowed.join(", "))]
    OutsideDirectories {
        /// The directory.
        asked: String,
        /// The directories below which it must be.
        allowed: Vec<String>,
    },
    /// The model may not answer as often.
    #[error("maxTurns must be at most {max}, not {asked}")]
    TooManyTurns {
        /// The requested number.
        asked: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// The client may not set this variable.
    #[error("env.{name} cannot be set for claude by a client: the operator sets it where the backend runs")]
    Reserved {
        /// The variable's name.
        name: String,
    },
    /// Claude itself refuses this mode.
    #[error(
        "permissionMode {BYPASS}: claude refuses it as root; run the backend as another user, or in a sandbox and with {SANDBOX}=1"
    )]
    BypassAsRoot,
}

/// The part of the service's environment that Claude inherits beside that of every command.
pub fn inherited(vars: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    vars.filter(|(name, _)| {
        let prefixed = INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        name != NOT_INHERITED && (prefixed || INHERITED.contains(&name.as_str()))
    })
    .collect()
}

impl AgentLauncher for ClaudePolicy {
    fn agent(&self) -> &'static dyn Agent {
        &Claude
    }

    fn launch(&self, run: &ExecutionSpec, common: &BTreeMap<String, String>) -> Result<AgentLaunch, PolicyError> {
        let none = ClaudeOptions::default();
        let asked = run.claude.as_ref().unwrap_or(&none);
        let model = one_of("model", asked.model.as_deref(), &self.models)?;
        let mode = one_of("permissionMode", asked.permission_mode.as_deref(), &self.permission_modes)?;
        let max_turns = self.check_turns(asked.max_turns)?;
        self.check_tools(&asked.allowed_tools)?;
        check_env(&run.env)?;
        let mut env = common.clone();
        env.insert("DISABLE_AUTOUPDATER".to_owned(), "1".to_owned());
        env.extend(self.inherited.clone());
        env.extend(run.env.clone());
        if env.get(API_KEY).is_some_and(String::is_empty) {
            // An empty key means the user's own login, but Claude would take it for a wrong key.
            env.remove(API_KEY);
        }
        if mode == Some(BYPASS)
            && rustix::process::geteuid().is_root()
            && env.get(SANDBOX).is_none_or(|value| value != "1")
        {
            return Err(PolicyError::BypassAsRoot);
        }
        let mut arguments: Vec<String> = ARGUMENTS.iter().map(|word| (*word).to_owned()).collect();
        let mut option = |name: &str, value: Option<String>| {
            // One argument, so that a value cannot be read as an option.
            arguments.extend(value.map(|value| format!("--{name}={value}")));
        };
        option("model", model.map(str::to_owned));
        option("permission-mode", mode.map(str::to_owned));
        option("max-turns", max_turns.map(|turns| turns.to_string()));
        option("resume", asked.resume.clone());
        if !asked.allowed_tools.is_empty() {
            arguments.push("--allowedTools".to_owned());
            arguments.extend(asked.allowed_tools.iter().cloned());
        }
        Ok(AgentLaunch { arguments, cwd: self.check_directory(run.cwd.as_deref())?, env })
    }
}

impl ClaudePolicy {
    fn check_turns(&self, asked: Option<u64>) -> Result<Option<u64>, PolicyError> {
        match (asked, self.max_turns) {
            (Some(asked), Some(max)) if asked > max => Err(PolicyError::TooManyTurns { asked, max }),
            (asked, max) => Ok(asked.or(max)),
        }
    }

    fn check_tools(&self, asked: &[String]) -> Result<(), PolicyError> {
        let allowed = |tool: &String| {
            let name = name_of_tool(tool);
            self.tools.is_empty()
                || self.tools.iter().any(|allowed| allowed == tool || name.is_some_and(|name| allowed == name))
        };
        match asked.iter().find(|tool| !allowed(tool)) {
            None => Ok(()),
            Some(tool) => Err(not_allowed("allowedTools", tool, &self.tools)),
        }
    }

    fn check_directory(&self, asked: Option<&str>) -> Result<Option<String>, PolicyError> {
        let Some(first) = self.directories.first() else { return Ok(asked.map(str::to_owned)) };
        let Some(asked) = asked else { return Ok(Some(first.to_string_lossy().into_owned())) };
        // Symbolic links and `..` are resolved before the comparison.
        let real = fs::canonicalize(asked).ok();
        let within = |directory: &PathBuf| {
            let directory = fs::canonicalize(directory).ok();
            directory.is_some_and(|directory| real.as_ref().is_some_and(|real| real.starts_with(directory)))
        };
        if self.directories.iter().any(within) {
            return Ok(Some(asked.to_owned()));
        }
        let allowed = self.directories.iter().map(|path| path.display().to_string()).collect();
        Err(PolicyError::OutsideDirectories { asked: asked.to_owned(), allowed })
    }
}

/// The name in NAME or NAME(...). `None` if the CLI reads more than one tool from it: it cuts at commas and spaces, unless
/// they come after a `(` and before the next `)`.
fn name_of_tool(tool: &str) -> Option<&str> {
    let cuts = |text: &str| text.contains(|c: char| c == ',' || c.is_whitespace());
    let (name, after) = match tool.split_once('(') {
        None => (tool, ""),
        Some((name, rest)) => (name, rest.strip_suffix(')')?.split_once(')').map_or("", |(_, after)| after)),
    };
    (!cuts(name) && !cuts(after)).then_some(name)
}

/// Checks that a client sets no variable that determines which program Claude is or which servers it trusts. Only
/// ANTHROPIC_API_KEY may be set, and only to an empty value, which means the user's own login.
fn check_env(asked: &BTreeMap<String, String>) -> Result<(), PolicyError> {
    let listed = |name: &str| {
        let mut prefixes = INHERITED_PREFIXES.iter().chain(RESERVED_PREFIXES);
        INHERITED.contains(&name) || RESERVED.contains(&name) || prefixes.any(|prefix| name.starts_with(prefix))
    };
    let reserved = |(name, value): &(&String, &String)| listed(name) && !(*name == API_KEY && value.is_empty());
    match asked.iter().find(reserved) {
        None => Ok(()),
        Some((name, _)) => Err(PolicyError::Reserved { name: name.clone() }),
    }
}

/// The requested value, if it is allowed; without one the default.
fn one_of<'a>(
    param: &'static str,
    asked: Option<&'a str>,
    allowed: &'a [String],
) -> Result<Option<&'a str>, PolicyError> {
    match asked {
        Some(asked) if !allowed.is_empty() && !allowed.iter().any(|allowed| allowed == asked) => {
            Err(not_allowed(param, asked, allowed))
        }
        Some(asked) => Ok(Some(asked)),
        None => Ok(allowed.first().map(String::as_str)),
    }
}

fn not_allowed(param: &'static str, asked: &str, allowed: &[String]) -> PolicyError {
    PolicyError::NotAllowed { param, asked: asked.to_owned(), allowed: allowed.to_vec() }
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::rpc::{ErrorObject, code};

    use super::*;

    fn run(claude: ClaudeOptions) -> ExecutionSpec {
        ExecutionSpec { claude: Some(claude), ..ExecutionSpec::of("prompt") }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn each_option_is_a_single_argument() {
        let asked = ClaudeOptions {
            model: Some("--dangerous".into()),
            permission_mode: Some("plan".into()),
            allowed_tools: words(&["Bash(git log:*)", "Read"]),
            max_turns: Some(3),
            resume: Some("1-2".into()),
        };
        let start = ClaudePolicy::default().launch(&run(asked), &BTreeMap::new()).unwrap();
        assert_eq!(start.arguments[..ARGUMENTS.len()], words(ARGUMENTS));
        assert_eq!(
            start.arguments[ARGUMENTS.len()..],
            words(&[
                "--model=--dangerous",
                "--permission-mode=plan",
                "--max-turns=3",
                "--resume=1-2",
                "--allowedTools",
                "Bash(git log:*)",
                "Read"
            ])
        );
    }

    #[test]
    fn the_policy_refuses_other_values_and_gives_the_defaults() {
        let policy = ClaudePolicy {
            models: words(&["haiku", "sonnet"]),
            permission_modes: words(&["plan"]),
            tools: words(&["Read", "Bash(git log:*)"]),
            max_turns: Some(5),
            directories: vec![PathBuf::from("/usr"), PathBuf::from("/tmp")],
            inherited: BTreeMap::new(),
        };
        let start = policy.launch(&run(ClaudeOptions::default()), &BTreeMap::new()).unwrap();
        assert_eq!(
            start.arguments[ARGUMENTS.len()..],
            words(&["--model=haiku", "--permission-mode=plan", "--max-turns=5"])
        );
        assert_eq!(start.cwd.as_deref(), Some("/usr"));
        let refused = [
            (ClaudeOptions { model: Some("opus".into()), ..ClaudeOptions::default() }, None, code::NOT_ALLOWED),
            (
                ClaudeOptions { permission_mode: Some(BYPASS.into()), ..ClaudeOptions::default() },
                None,
                code::NOT_ALLOWED,
            ),
            (ClaudeOptions { allowed_tools: words(&["Bash"]), ..ClaudeOptions::default() }, None, code::NOT_ALLOWED),
            // The CLI makes several tools of each of these.
            (
                ClaudeOptions { allowed_tools: words(&["Read(x) Bash"]), ..ClaudeOptions::default() },
                None,
                code::NOT_ALLOWED,
            ),
            (
                ClaudeOptions { allowed_tools: words(&["Read(x),Bash"]), ..ClaudeOptions::default() },
                None,
                code::NOT_ALLOWED,
            ),
            (
                ClaudeOptions { allowed_tools: words(&["Read((x) Bash )"]), ..ClaudeOptions::default() },
                None,
                code::NOT_ALLOWED,
            ),
            (
                ClaudeOptions { allowed_tools: words(&["Read(x)Bash"]), ..ClaudeOptions::default() },
                None,
                code::NOT_ALLOWED,
            ),
            (ClaudeOptions { allowed_tools: words(&["Read(x"]), ..ClaudeOptions::default() }, None, code::NOT_ALLOWED),
            (
                ClaudeOptions { allowed_tools: words(&["Read,Bash"]), ..ClaudeOptions::default() },
                None,
                code::NOT_ALLOWED,
            ),
            (ClaudeOptions { max_turns: Some(6), ..ClaudeOptions::default() }, None, code::PARAMS),
            (ClaudeOptions::default(), Some("/etc"), code::NOT_ALLOWED),
            (ClaudeOptions::default(), Some("/usr/../etc"), code::NOT_ALLOWED),
        ];
        for (claude, cwd, code) in refused {
            let run = ExecutionSpec { cwd: cwd.map(str::to_owned), ..run(claude.clone()) };
            let error = ErrorObject::from(policy.launch(&run, &BTreeMap::new()).unwrap_err());
            assert_eq!(error.code, code, "{claude:?} {cwd:?}");
        }
        for (cwd, shown) in
            [("/etc", "\"/etc\"".to_owned()), (&"/\x1b".repeat(500_000), Quoted(&"/\x1b".repeat(500)).to_string())]
        {
            let run = ExecutionSpec { cwd: Some(cwd.to_owned()), ..run(ClaudeOptions::default()) };
            let error = policy.launch(&run, &BTreeMap::new()).unwrap_err().to_string();
            assert_eq!(error, format!("cwd {shown} does not exist, or is not below an allowed directory: /usr, /tmp"));
        }
        let asked = ClaudeOptions {
            model: Some("sonnet".into()),
            allowed_tools: words(&["Read(/tmp/**)", "Read(a, b)", "Read((a)b)", "Bash(git log:*)"]),
            ..ClaudeOptions::default()
        };
        let run = ExecutionSpec { cwd: Some("/usr/bin".into()), ..run(asked) };
        assert_eq!(policy.launch(&run, &BTreeMap::new()).unwrap().cwd.as_deref(), Some("/usr/bin"));
    }

    #[test]
    fn claude_inherits_its_own_settings_and_an_empty_key_means_the_login() {
        let vars = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let service = vars(&[
            ("ANTHROPIC_API_KEY", ""),
            ("ANTHROPIC_BASE_URL", "http://x"),
            ("CLAUDE_API_URL", "http://y"),
            ("CLAUDE_CONFIG_DIR", "/c"),
            ("CC_EXECUTOR_TOKEN", "secret"),
            ("AWS_SECRET", "secret"),
            ("NO_PROXY", "z"),
        ]);
        let policy = ClaudePolicy { inherited: inherited(service.into_iter()), ..ClaudePolicy::default() };
        let start = policy.launch(&run(ClaudeOptions::default()), &vars(&[("PATH", "/bin")])).unwrap();
        assert_eq!(
            start.env,
            vars(&[
                ("PATH", "/bin"),
                ("ANTHROPIC_BASE_URL", "http://x"),
                ("CLAUDE_CONFIG_DIR", "/c"),
                ("DISABLE_AUTOUPDATER", "1"),
                ("NO_PROXY", "z")
            ])
        );
    }

    #[test]
    fn a_client_may_not_set_a_variable_of_the_operator() {
        let operators = |name: &str, value: &str| ClaudePolicy {
            inherited: BTreeMap::from([(name.to_owned(), value.to_owned())]),
            ..ClaudePolicy::default()
        };
        let with = |name: &str, value: &str| ExecutionSpec {
            env: BTreeMap::from([(name.to_owned(), value.to_owned())]),
            ..run(ClaudeOptions { permission_mode: Some(BYPASS.into()), ..ClaudeOptions::default() })
        };
        let policy = operators(SANDBOX, "1");
        for name in [
            "IS_SANDBOX",
            "ANTHROPIC_BASE_URL",
            "ANTHROPIC_API_KEY",
            "CLAUDE_CONFIG_DIR",
            "HOME",
            "PATH",
            "LD_PRELOAD",
            "NODE_OPTIONS",
            "NODE_EXTRA_CA_CERTS",
            "BUN_OPTIONS",
            "https_proxy",
            "ALL_PROXY",
        ] {
            let error = ErrorObject::from(policy.launch(&with(name, "1"), &BTreeMap::new()).unwrap_err());
            assert_eq!(error.code, code::NOT_ALLOWED, "{name}");
            assert!(error.message.contains(name), "{}", error.message);
        }
        let start = policy.launch(&with("MY_SETTING", "1"), &BTreeMap::new()).unwrap();
        assert_eq!(start.env.get("MY_SETTING").map(String::as_str), Some("1"));
        let policy = ClaudePolicy { inherited: operators(API_KEY, "key").inherited, ..ClaudePolicy::default() };
        let asked = ExecutionSpec { claude: None, ..with(API_KEY, "") };
        assert_eq!(policy.launch(&asked, &BTreeMap::new()).unwrap().env.get(API_KEY), None, "empty means the login");
    }
}
