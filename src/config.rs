//! Settings: one table of them, read from flags and environment alike.
//!
//! Everything is parsed, every problem is reported, and only then is there a failure. The environment
//! is reached through a [`Source`], so that tests never touch it. Secrets come from the environment or
//! from a file, never from a flag: flags can be read by every user of the machine.

mod settings;
mod source;

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use cc_executor_actors::{
    agent::claude::progress::EXIT_PATIENCE,
    protocol::{Limits, MAX_MESSAGE_TO_CLIENT},
    supervisor::SessionLimits,
};

pub use self::{
    settings::{SETTINGS, Setting},
    source::{Environment, Layered, Source},
};
use crate::{
    backend::{
        BackendConfig,
        agent::claude::{self, ClaudePolicy},
        executor::{Executors, OWN_PREFIX, inherited, service_environment},
        shim::containment::Containment,
    },
    logging::Format,
    server::auth::{Access, Fingerprint, Secret},
};

/// How many executions a backend knows at the most. One that has ended takes about 250 bytes besides its output.
const MAX_ENDED: usize = 1_000_000;

/// The secret that each role demands.
pub const TOKEN: &str = "CC_EXECUTOR_TOKEN";

/// The secret that a gateway sends to its backend, and that the backend then demands.
pub const BACKEND_TOKEN: &str = "CC_EXECUTOR_BACKEND_TOKEN";

/// How log lines are written.
pub const LOG_FORMAT: &str = "LOG_FORMAT";

/// Everything that is wrong with the settings, one line each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.join("\n").fmt(f)
    }
}

/// Settings of the role `serve`.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// Where to listen.
    pub bind: SocketAddr,
    /// Who may speak; the port is that of `bind`.
    pub access: Access,
    /// How many sessions there may be.
    pub sessions: SessionLimits,
    /// How long a shutdown may take.
    pub drain: Duration,
    /// What clients may ask for.
    pub limits: Limits,
    /// How long Claude may take to exit after its last event, where the backend is the original's image.
    pub claude_exit: Duration,
    /// Where commands run.
    pub backend: BackendLocation,
}

/// Where commands run.
#[derive(Clone, Debug)]
pub enum BackendLocation {
    /// In a backend inside this process.
    Embedded(Box<BackendConfig>),
    /// In the backend at this URL, which is sent this token.
    Remote(String, Option<Secret>),
}

/// Settings of the role `backend`.
#[derive(Clone, Debug)]
pub struct BackendSettings {
    /// Where to listen.
    pub bind: SocketAddr,
    /// Who may speak; the port is that of `bind`.
    pub access: Access,
    /// How commands run.
    pub backend: BackendConfig,
    /// How long a shutdown may take.
    pub drain: Duration,
}

/// Reads the settings of `serve`.
pub fn serve(source: &impl Source) -> Result<GatewaySettings, Problems> {
    let mut reader = SettingsReader { source, problems: Vec::new() };
    let token = reader.demanded(TOKEN);
    let (bind, access) = reader.listen_and_auth("127.0.0.1:8003", token);
    let sessions = SessionLimits {
        sessions: reader.number("CC_EXECUTOR_MAX_SESSIONS", 1_024, 1, 1_000_000),
        per_peer: reader.number("CC_EXECUTOR_MAX_SESSIONS_PER_ADDRESS", 512, 1, 1_000_000),
    };
    let drain = reader.drain();
    let limits = reader.limits();
    let claude_exit = reader.claude_exit();
    let backend = match source.get("CLAUDE_API_URL") {
        None => BackendLocation::Embedded(Box::new(reader.backend())),
        Some(url) => {
            // Settings of a backend say nothing to one that runs elsewhere: better said than ignored.
            for name in [
                "CC_EXECUTOR_DEFAULT_EXECUTOR",
                "CC_EXECUTOR_EXECUTORS",
                "CC_EXECUTOR_PASS_ENV",
                "CC_EXECUTOR_CLAUDE_MODELS",
                "CC_EXECUTOR_CLAUDE_PERMISSION_MODES",
                "CC_EXECUTOR_CLAUDE_TOOLS",
                "CC_EXECUTOR_CLAUDE_MAX_TURNS",
                "CC_EXECUTOR_CLAUDE_DIRECTORIES",
                "CC_EXECUTOR_CONTAINMENT",
                "CC_EXECUTOR_MAX_EXECUTIONS",
                "CC_EXECUTOR_MAX_QUEUED",
                "CC_EXECUTOR_RING_BYTES",
                "CC_EXECUTOR_RETENTION_MS",
                "CC_EXECUTOR_MAX_KEPT_BYTES",
                "CC_EXECUTOR_CONSUMER_STALL_MS",
            ] {
                if source.get(name).is_some() {
                    reader.problem(name, "belongs to the backend: set it there, not beside CLAUDE_API_URL");
                }
            }
            BackendLocation::Remote(reader.backend_url(&url), reader.secret(BACKEND_TOKEN))
        }
    };
    reader.finish(GatewaySettings { bind, access, sessions, drain, limits, claude_exit, backend })
}

/// Reads the settings of `backend`.
pub fn backend(source: &impl Source) -> Result<BackendSettings, Problems> {
    let mut reader = SettingsReader { source, problems: Vec::new() };
    let own = reader.demanded(TOKEN);
    let token = reader.demanded(BACKEND_TOKEN).or(own);
    let (bind, access) = reader.listen_and_auth("127.0.0.1:8000", token);
    let backend = reader.backend();
    let drain = reader.drain();
    reader.finish(BackendSettings { bind, access, backend, drain })
}

/// Reads how log lines are written.
pub fn log_format(source: &impl Source) -> Result<Format, Problems> {
    match source.get(LOG_FORMAT) {
        None => Ok(Format::default()),
        Some(name) => Format::named(&name)
            .ok_or_else(|| Problems(vec![format!("{LOG_FORMAT} must be text or json, not {name:?}")])),
    }
}

/// Reads a secret: from the environment, or from the file that `…_FILE` names.
pub fn secret(source: &impl Source, name: &str) -> Result<Option<Secret>, Problems> {
    let mut reader = SettingsReader { source, problems: Vec::new() };
    let secret = reader.secret(name);
    reader.finish(secret)
}

struct SettingsReader<'a, S> {
    source: &'a S,
    problems: Vec<String>,
}

impl<S: Source> SettingsReader<'_, S> {
    fn finish<T>(self, value: T) -> Result<T, Problems> {
        if self.problems.is_empty() { Ok(value) } else { Err(Problems(self.problems)) }
    }

    fn problem(&mut self, name: &str, text: impl fmt::Display) {
        let problem = format!("{name} {text}");
        // Some settings are read for the gateway and for the backend inside it.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn listen_and_auth(&mut self, default: &str, token: Option<Fingerprint>) -> (SocketAddr, Access) {
        let name = "CC_EXECUTOR_BIND";
        let text = self.source.get(name).unwrap_or_else(|| default.to_owned());
        let bind = match text.to_socket_addrs().ok().and_then(|mut found| found.next()) {
            Some(bind) => bind,
            None => {
                self.problem(name, format!("must be an address and a port such as {default}, not {text:?}"));
                SocketAddr::from(([127, 0, 0, 1], 0))
            }
        };
        let insecure = self.switch("CC_EXECUTOR_INSECURE_NO_AUTH");
        if !bind.ip().is_loopback() && token.is_none() && !insecure {
            self.problem(
                name,
                format!("is {text}, which others can reach, and there is no token: set {TOKEN} or {TOKEN}_FILE, or pass --insecure-no-auth"),
            );
        }
        let access = Access {
            token,
            allowed_hosts: self.list("CC_EXECUTOR_ALLOWED_HOSTS"),
            allowed_origins: self.list("CC_EXECUTOR_ALLOWED_ORIGINS"),
            port: bind.port(),
        };
        (bind, access)
    }

    fn limits(&mut self) -> Limits {
        let limits = Limits::default();
        Limits {
            message_bytes: self.message_bytes(),
            unsent_responses: self.number("CC_EXECUTOR_MAX_UNSENT_RESPONSES", limits.unsent_responses, 1, 65_536),
            timeout_ms: self.timeout_ms(),
            detach_ms: self.detach_ms(),
            client_stall_ms: self.number("CC_EXECUTOR_CLIENT_STALL_MS", limits.client_stall_ms, 100, 1 << 40),
            ..limits
        }
    }

    fn detach_ms(&mut self) -> u64 {
        self.number("CC_EXECUTOR_MAX_DETACH_MS", Limits::default().detach_ms, 1, 1 << 40)
    }

    fn drain(&mut self) -> Duration {
        Duration::from_millis(self.number("CC_EXECUTOR_DRAIN_MS", 8_000, 100, 1 << 32))
    }

    fn claude_exit(&mut self) -> Duration {
        let default = u64::try_from(EXIT_PATIENCE.as_millis()).expect("a short time");
        Duration::from_millis(self.number("CC_EXECUTOR_CLAUDE_EXIT_MS", default, 100, 1 << 32))
    }

    fn message_bytes(&mut self) -> usize {
        self.number("CC_EXECUTOR_MAX_MESSAGE_BYTES", 1 << 20, 1_024, 16 * MAX_MESSAGE_TO_CLIENT)
    }

    fn timeout_ms(&mut self) -> u64 {
        self.number("CC_EXECUTOR_MAX_TIMEOUT_MS", Limits::default().timeout_ms, 1, 1 << 40)
    }

    fn backend(&mut self) -> BackendConfig {
        let added = self.executors();
        let default = self.source.get("CC_EXECUTOR_DEFAULT_EXECUTOR").unwrap_or_else(|| "shell".to_owned());
        let pass = self.list("CC_EXECUTOR_PASS_ENV");
        if let Some(own) = pass.iter().find(|name| name.starts_with(OWN_PREFIX)) {
            self.problem(
                "CC_EXECUTOR_PASS_ENV",
                format!("names {own}: a command never gets the service's own settings"),
            );
        }
        let inherited = inherited(service_environment(), &pass);
        let claude = self.claude();
        let executors = Executors::new(added, &default, inherited.clone(), claude.clone()).or_else(|problem| {
            self.problem("CC_EXECUTOR_DEFAULT_EXECUTOR", format!("is {default:?}, but {problem}"));
            Executors::new(BTreeMap::new(), "shell", inherited, claude)
        });
        BackendConfig {
            executors: executors.expect("there is always a shell"),
            max_executions: self.number("CC_EXECUTOR_MAX_EXECUTIONS", 64, 1, 100_000),
            max_queued: self.number("CC_EXECUTOR_MAX_QUEUED", 256, 0, 100_000),
            max_timeout_ms: self.timeout_ms(),
            max_detach_ms: self.detach_ms(),
            ring_bytes: self.number("CC_EXECUTOR_RING_BYTES", 4 << 20, 64 << 10, 1 << 30),
            max_kept_bytes: self.number("CC_EXECUTOR_MAX_KEPT_BYTES", 256 << 20, 0, 1 << 40),
            max_ended: self.number("CC_EXECUTOR_MAX_ENDED", MAX_ENDED, 1, MAX_ENDED),
            retention: Duration::from_millis(self.number("CC_EXECUTOR_RETENTION_MS", 600_000, 0, 1 << 40)),
            consumer_stall: Duration::from_millis(self.number("CC_EXECUTOR_CONSUMER_STALL_MS", 90_000, 100, 1 << 40)),
            claude_exit: self.claude_exit(),
            max_message_bytes: self.message_bytes(),
            containment: self.containment(),
            descriptor_limit: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
        }
    }

    fn containment(&mut self) -> Containment {
        let name = "CC_EXECUTOR_CONTAINMENT";
        let Some(text) = self.source.get(name) else { return Containment::default() };
        Containment::named(&text).unwrap_or_else(|| {
            self.problem(name, format!("must be one of {}, not {text:?}", Containment::NAMES.join(", ")));
            Containment::default()
        })
    }

    fn claude(&mut self) -> ClaudePolicy {
        let max_turns = self.number("CC_EXECUTOR_CLAUDE_MAX_TURNS", 0, 0, 1_000_000);
        ClaudePolicy {
            models: self.list("CC_EXECUTOR_CLAUDE_MODELS"),
            permission_modes: self.list("CC_EXECUTOR_CLAUDE_PERMISSION_MODES"),
            tools: self.list("CC_EXECUTOR_CLAUDE_TOOLS"),
            max_turns: (max_turns > 0).then_some(max_turns),
            directories: self.list("CC_EXECUTOR_CLAUDE_DIRECTORIES").into_iter().map(PathBuf::from).collect(),
            inherited: claude::inherited(service_environment()),
        }
    }

    fn executors(&mut self) -> BTreeMap<String, Vec<String>> {
        let name = "CC_EXECUTOR_EXECUTORS";
        let Some(text) = self.source.get(name) else { return BTreeMap::new() };
        match serde_json::from_str::<BTreeMap<String, Vec<String>>>(&text) {
            Ok(executors) => {
                for (executor, _) in executors.iter().filter(|(_, argv)| argv.first().is_none_or(String::is_empty)) {
                    self.problem(name, format!("gives the executor {executor:?} no program"));
                }
                executors
            }
            Err(error) => {
                self.problem(name, format!("must be a JSON object of argument lists: {error}"));
                BTreeMap::new()
            }
        }
    }

    fn backend_url(&mut self, url: &str) -> String {
        let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let plain =
            authority.is_some_and(|authority| !authority.is_empty() && !authority.contains(['/', '@', '?', '#', ' ']));
        if !plain {
            self.problem("CLAUDE_API_URL", format!("must be like http://claude-api:8000, not {url:?}"));
        }
        url.trim_end_matches('/').to_owned()
    }

    fn secret(&mut self, name: &str) -> Option<Secret> {
        let file = format!("{name}_FILE");
        let text = match (self.source.get(name), self.source.get(&file)) {
            (Some(_), Some(_)) => {
                self.problem(name, format!("and {file} are both set: which one is meant?"));
                return None;
            }
            (Some(text), None) => text,
            (None, Some(path)) => match fs::read_to_string(&path) {
                Ok(text) => text.trim_end_matches(['\r', '\n']).to_owned(),
                Err(error) => {
                    self.problem(&file, format!("names {path:?}, which cannot be read: {error}"));
                    return None;
                }
            },
            (None, None) => return None,
        };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            self.problem(name, "must be printable ASCII without spaces, and not empty");
            return None;
        }
        Some(Secret::new(text))
    }

    /// What a role demands: a secret, or its SHA-256, which is none. A command can read the environment that
    /// the service was started with where others of its user have it too, such as a container's init.
    fn demanded(&mut self, name: &str) -> Option<Fingerprint> {
        let hashed = format!("{name}_SHA256");
        let secret = self.secret(name);
        match (secret, self.source.get(&hashed)) {
            (Some(_), Some(_)) => {
                self.problem(name, format!("and {hashed} are both set: which one is meant?"));
                None
            }
            (secret, None) => secret.map(|secret| secret.fingerprint()),
            (None, Some(text)) => {
                let fingerprint = Fingerprint::from_hex(&text);
                if fingerprint.is_none() {
                    self.problem(&hashed, "must be the SHA-256 of a token, in 64 hexadecimal digits");
                }
                fingerprint
            }
        }
    }

    fn number<T>(&mut self, name: &str, default: T, low: T, high: T) -> T
    where
        T: std::str::FromStr + PartialOrd + fmt::Display + Copy,
    {
        let Some(text) = self.source.get(name) else { return default };
        match text.parse() {
            Ok(number) if number >= low && number <= high => number,
            _ => {
                self.problem(name, format!("must be a whole number from {low} to {high}, not {text:?}"));
                default
            }
        }
    }

    fn switch(&mut self, name: &str) -> bool {
        match self.source.get(name).as_deref() {
            None | Some("0" | "false") => false,
            Some("1" | "true") => true,
            Some(other) => {
                let other = other.to_owned();
                self.problem(name, format!("must be true or false, not {other:?}"));
                false
            }
        }
    }

    fn list(&self, name: &str) -> Vec<String> {
        let text = self.source.get(name).unwrap_or_default();
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn nothing_set_is_a_loopback_service_with_its_own_backend() {
        let serve = serve(&source(&[])).unwrap();
        assert_eq!(serve.bind.to_string(), "127.0.0.1:8003");
        assert!(serve.access.token.is_none() && matches!(serve.backend, BackendLocation::Embedded(_)));
        assert_eq!(backend(&source(&[])).unwrap().bind.to_string(), "127.0.0.1:8000");
    }

    #[test]
    fn all_problems_are_reported_together() {
        let Problems(problems) = serve(&source(&[
            ("CC_EXECUTOR_BIND", "0.0.0.0:8003"),
            ("CC_EXECUTOR_MAX_SESSIONS", "many"),
            ("CC_EXECUTOR_EXECUTORS", "{\"x\":[]}"),
            ("CC_EXECUTOR_DEFAULT_EXECUTOR", "y"),
            ("CC_EXECUTOR_PASS_ENV", "A,CC_EXECUTOR_TOKEN"),
        ]))
        .unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:#?}");
        for (problem, name) in
            problems.iter().zip(["BIND", "MAX_SESSIONS", "EXECUTORS", "PASS_ENV", "DEFAULT_EXECUTOR"])
        {
            assert!(problem.contains(name), "{problem}");
        }
    }

    #[test]
    fn beyond_loopback_a_token_or_the_insecure_switch_is_needed() {
        let open = ("CC_EXECUTOR_BIND", "0.0.0.0:1");
        assert!(serve(&source(&[open])).is_err());
        assert!(backend(&source(&[open])).is_err());
        assert!(serve(&source(&[open, (TOKEN, "t")])).is_ok());
        assert!(backend(&source(&[open, (BACKEND_TOKEN, "t")])).is_ok());
        assert!(serve(&source(&[open, ("CC_EXECUTOR_INSECURE_NO_AUTH", "true")])).is_ok());
        assert!(serve(&source(&[("CC_EXECUTOR_BIND", "[::1]:1")])).is_ok());
    }

    #[test]
    fn a_token_is_one_word_and_is_not_printed() {
        for bad in ["a b", "\u{e9}", "a\nb"] {
            assert!(serve(&source(&[(TOKEN, bad)])).is_err(), "{bad:?}");
        }
        let hashed = "CC_EXECUTOR_TOKEN_SHA256";
        let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert!(serve(&source(&[("CC_EXECUTOR_BIND", "0.0.0.0:1"), (hashed, digest)])).is_ok());
        for (pairs, part) in [
            ([(hashed, &digest[1..]), ("RUST_LOG", "")], "64 hexadecimal digits"),
            ([(hashed, &*digest.replace('2', "\u{e9}")), ("RUST_LOG", "")], "64 hexadecimal digits"),
            ([(hashed, digest), (TOKEN, "hello")], "both set"),
        ] {
            let Problems(problems) = serve(&source(&pairs)).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains(part), "{problems:?}");
        }
        let printed = format!("{:?}", serve(&source(&[(TOKEN, "hush")])).unwrap());
        assert!(!printed.contains("hush"));
    }

    #[test]
    fn a_backend_url_is_a_plain_one() {
        for (url, fine) in [
            ("http://claude-api:8000", true),
            ("http://127.0.0.1:1/", true),
            ("https://claude-api", false),
            ("claude-api:8000", false),
            ("http://", false),
            ("http://user:secret@host", false),
            ("http://host/path", false),
        ] {
            assert_eq!(serve(&source(&[("CLAUDE_API_URL", url)])).is_ok(), fine, "{url}");
        }
    }
}
