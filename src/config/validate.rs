//! Makes the configuration of a role from its settings, or reports all problems together.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use cc_executor_actors::{
    protocol::{EXEC_EXECUTOR, Limits},
    supervisor::SessionLimits,
};
use clap::ArgMatches;

use super::{
    BackendLocation, BackendSettings, ConnectionSettings, GatewaySettings, Problems, RemoteBackend,
    access::{given_variable, has_tokens_file},
    settings::{BackendArgs, BackendOnlyArgs, ClaudeArgs, ServeArgs, SharedArgs, given, name_of},
    variables::{BACKEND_TOKEN, ClientVariables, RoleVariables, TOKEN},
};
use crate::{
    backend::{
        BackendConfig,
        agent::claude::{self, ClaudePolicy},
        executor::{ExecutorError, Executors, OWN_PREFIX, inherited, service_environment},
    },
    gateway::IntakeLimits,
    outgoing::{self, proxy::ProxyVariables, url::ServiceUrl},
    server::auth::Access,
};

/// How errors name the setting of the backend's URL.
const BACKEND_URL: &str = "CC_EXECUTOR_BACKEND_URL (or CLAUDE_API_URL)";

/// How long an ended execution is kept by default, in milliseconds: in memory, and on disk.
const RETENTION_MS: u64 = 600_000;
const STATE_RETENTION_MS: u64 = 86_400_000;

/// Validates the settings of `serve`. `matches` tells which flag or variable gave a setting; `problems` are those of
/// single values.
///
/// # Errors
/// All problems, one line each.
pub fn serve(
    args: ServeArgs,
    matches: &ArgMatches,
    variables: RoleVariables,
    mut problems: Problems,
) -> Result<GatewaySettings, Problems> {
    let ServeArgs { bind, access, backend_url, claude_api_url, ca_file, backend, shared, sessions } = args;
    let mut warnings = Vec::new();
    let allow_short = access.insecure_short_token;
    let token = problems.fingerprint(TOKEN, &variables.client, variables.token_sha256, allow_short, &mut warnings);
    let access = problems.access(bind, access, token, matches, &mut warnings);
    let limits = Limits {
        message_bytes: size(shared.max_message_bytes),
        unsent_responses: size(sessions.max_unsent_responses),
        timeout_ms: shared.max_timeout_ms,
        detach_ms: shared.max_detach_ms,
        client_stall_ms: sessions.client_stall_ms,
        ..Limits::default()
    };
    let intake = IntakeLimits {
        message_memory: sessions.max_incoming_bytes,
        unread_memory: sessions.max_unread_bytes,
        max_requests: size(sessions.max_requests_in_flight),
    };
    if intake.message_memory < 4 * shared.max_message_bytes {
        problems.add(
            &name_of("max_incoming_bytes", matches),
            format!(
                "is {}, less than four times --max-message-bytes ({}); raise it",
                intake.message_memory, shared.max_message_bytes
            ),
        );
    }
    let sessions =
        SessionLimits { sessions: size(sessions.max_sessions), per_peer: size(sessions.max_sessions_per_address) };
    let (connections, drain) = (connections(&shared), Duration::from_millis(shared.drain_ms));
    let claude_exit = Duration::from_millis(shared.claude_exit_ms);
    let backend = match problems.one_backend_url(backend_url.flatten(), claude_api_url.flatten(), matches) {
        Some(url) => {
            problems.ignore("--max-ended");
            problems.ignore("CC_EXECUTOR_MAX_ENDED");
            // They are refused, because they would have no effect at the remote backend.
            for name in given(matches) {
                problems.ignore(&name);
                problems.add(&name, format!("belongs to the backend at {BACKEND_URL}; set it there"));
            }
            let token = ClientVariables { token: variables.backend_token, token_file: variables.backend_token_file };
            if has_tokens_file(&access) && given_variable(BACKEND_TOKEN, &token).is_none() {
                problems.add(
                    &name_of("tokens_file", matches),
                    format!("names clients that the backend at {BACKEND_URL} cannot tell apart without a token of its own; set {BACKEND_TOKEN} for both"),
                );
            }
            let ca_file = ca_file.as_deref().filter(|path| !path.is_empty());
            let dial = outgoing::plan(&url, ca_file, &ProxyVariables::of_gateway());
            let dial = dial.map_err(|error| problems.0.push(error.to_string())).unwrap_or_default();
            let token = problems.secret(BACKEND_TOKEN, &token, &mut warnings);
            BackendLocation::Remote(RemoteBackend { url: url.http(""), token, dial })
        }
        None => BackendLocation::Embedded(Box::new(problems.backend(backend, &shared, matches))),
    };
    let log_format = variables.log_format;
    problems.finish(GatewaySettings {
        bind,
        access,
        warnings,
        connections,
        sessions,
        drain,
        limits,
        intake,
        claude_exit,
        backend,
        log_format,
    })
}

/// Validates the settings of `backend`, see [`serve`].
///
/// # Errors
/// All problems, one line each.
pub fn backend(
    args: BackendArgs,
    matches: &ArgMatches,
    variables: RoleVariables,
    mut problems: Problems,
) -> Result<BackendSettings, Problems> {
    let BackendArgs { bind, access, backend, shared } = args;
    let mut warnings = Vec::new();
    let allow_short = access.insecure_short_token;
    let own = problems.fingerprint(TOKEN, &variables.client, variables.token_sha256, allow_short, &mut warnings);
    let token = ClientVariables { token: variables.backend_token, token_file: variables.backend_token_file };
    let sha256 = variables.backend_token_sha256;
    let token = problems.fingerprint(BACKEND_TOKEN, &token, sha256, allow_short, &mut warnings).or(own);
    let access = Access { serves_gateways: true, ..problems.access(bind, access, token, matches, &mut warnings) };
    let backend = problems.backend(backend, &shared, matches);
    let (connections, drain) = (connections(&shared), Duration::from_millis(shared.drain_ms));
    let log_format = variables.log_format;
    problems.finish(BackendSettings { bind, access, warnings, connections, backend, drain, log_format })
}

fn connections(args: &SharedArgs) -> ConnectionSettings {
    ConnectionSettings {
        request_timeout: Duration::from_millis(args.request_timeout_ms),
        max_unauthorized: size(args.max_unauthorized),
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn claude_policy(args: ClaudeArgs) -> ClaudePolicy {
    ClaudePolicy {
        models: args.claude_models.unwrap_or_default(),
        permission_modes: args.claude_permission_modes.unwrap_or_default(),
        tools: args.claude_tools.unwrap_or_default(),
        max_turns: Some(args.claude_max_turns).filter(|turns| *turns > 0),
        directories: args.claude_directories.unwrap_or_default().into_iter().map(PathBuf::from).collect(),
        inherited: claude::inherited(service_environment()),
    }
}

impl Problems {
    /// The URL of the backend, which has two names. A flag overrides a variable, whichever name each has.
    fn one_backend_url(
        &mut self,
        url: Option<ServiceUrl>,
        earlier: Option<ServiceUrl>,
        matches: &ArgMatches,
    ) -> Option<ServiceUrl> {
        let names = [name_of("backend_url", matches), name_of("claude_api_url", matches)];
        match (url, earlier) {
            (Some(url), Some(earlier)) if url != earlier => {
                let [is_flag, earlier_is_flag] = names.each_ref().map(|name| name.starts_with("--"));
                // A wrong one has a placeholder, and is reported already.
                let is_wrong = |name: &String| self.0.iter().any(|line| line.split(' ').next() == Some(name));
                if is_flag == earlier_is_flag && !names.iter().any(is_wrong) {
                    let [name, earlier] = &names;
                    self.add(name, format!("and {earlier} are both set, and differ; unset one of them"));
                }
                Some(if earlier_is_flag && !is_flag { earlier } else { url })
            }
            (url, earlier) => url.or(earlier),
        }
    }

    /// Removes the problems of a setting that has no effect.
    fn ignore(&mut self, name: &str) {
        self.0.retain(|line| line.split(' ').next() != Some(name));
    }

    fn backend(&mut self, args: BackendOnlyArgs, shared: &SharedArgs, matches: &ArgMatches) -> BackendConfig {
        let BackendOnlyArgs { executions, claude, output, max_body_bytes } = args;
        let added = executions.executors.unwrap_or_default();
        for (executor, _) in added.iter().filter(|(_, argv)| argv.first().is_none_or(String::is_empty)) {
            self.add(&name_of("executors", matches), format!("must name a program for the executor {executor:?}"));
        }
        let default = executions.default_executor;
        let pass = executions.pass_env.unwrap_or_default();
        if let Some(own) = pass.iter().find(|name| name.starts_with(OWN_PREFIX)) {
            self.add(
                &name_of("pass_env", matches),
                format!("must not name {own}; a command never gets the service's own settings"),
            );
        }
        let inherited = inherited(service_environment(), &pass);
        let claude = claude_policy(claude);
        let executors = Executors::new(added, &default, inherited.clone(), claude.clone()).or_else(|problem| {
            let name = if problem == ExecutorError::ExecIsReserved && default != EXEC_EXECUTOR {
                "executors"
            } else {
                "default_executor"
            };
            self.add(&name_of(name, matches), format!("cannot be used: {problem}"));
            Executors::new(BTreeMap::new(), "shell", inherited, claude)
        });
        let executors = executors.expect("the executor shell always exists");
        let disabled = executions.disable_executors.unwrap_or_default();
        let executors = executors.clone().without(&disabled).unwrap_or_else(|problem| {
            self.add(&name_of("disable_executors", matches), format!("cannot be used: {problem}"));
            executors
        });
        BackendConfig {
            executors,
            max_executions: size(executions.max_executions),
            max_queued: size(executions.max_queued),
            max_observers: size(executions.max_observers),
            max_timeout_ms: shared.max_timeout_ms,
            max_detach_ms: shared.max_detach_ms,
            ring_bytes: size(output.ring_bytes),
            max_kept_bytes: size(output.max_kept_bytes),
            max_ended: size(shared.max_ended),
            retention: Duration::from_millis(output.retention_ms.flatten().unwrap_or(RETENTION_MS)),
            state: output.state_dir.unwrap_or_default(),
            max_output_bytes: output.max_output_bytes,
            max_state_bytes: output.max_state_bytes,
            state_retention: Duration::from_millis(output.retention_ms.flatten().unwrap_or(STATE_RETENTION_MS)),
            consumer_stall: Duration::from_millis(output.consumer_stall_ms),
            claude_exit: Duration::from_millis(shared.claude_exit_ms),
            max_message_bytes: size(shared.max_message_bytes),
            max_body_bytes: size(max_body_bytes),
            containment: executions.containment,
            descriptor_limit: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, fs, os::unix::fs::PermissionsExt};

    use clap::{Args, Command, FromArgMatches};

    use super::*;
    use crate::config::{
        value::collect,
        variables::{self, without_environment},
    };
    use crate::server::{authentication::Authentication, local_users::LocalUsers};

    /// A token that nobody guesses.
    const LONG: &str = "0123456789abcdef0123456789abcdef";

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    /// The flags for settings that are named by their variables, in as far as the definition has them.
    fn words(definition: &Command, pairs: Pairs<'_>) -> Vec<OsString> {
        let flag = |(name, value): &(&str, &str)| {
            let arg = definition.get_arguments().find(|arg| arg.get_env().is_some_and(|env| env == *name))?;
            let long = arg.get_long()?;
            let is_switch = !arg.get_action().takes_values();
            Some(if is_switch { format!("--{long}") } else { format!("--{long}={value}") }.into())
        };
        pairs.iter().filter_map(flag).collect()
    }

    fn variables(pairs: Pairs<'_>) -> RoleVariables {
        let definition = variables::definition::<RoleVariables>();
        let words = words(&definition, pairs);
        variables::parse(without_environment(definition), words)
    }

    fn serve(pairs: Pairs<'_>) -> Result<GatewaySettings, Problems> {
        let definition = ServeArgs::augment_args(Command::new("serve").no_binary_name(true));
        let words = words(&definition, pairs);
        let (parsed, problems) = collect(|| {
            let matches = without_environment(definition).try_get_matches_from(words).unwrap();
            (ServeArgs::from_arg_matches(&matches).unwrap(), matches, variables(pairs))
        });
        super::serve(parsed.0, &parsed.1, parsed.2, problems)
    }

    fn backend(pairs: Pairs<'_>) -> Result<BackendSettings, Problems> {
        let definition = BackendArgs::augment_args(Command::new("backend").no_binary_name(true));
        let words = words(&definition, pairs);
        let (parsed, problems) = collect(|| {
            let matches = without_environment(definition).try_get_matches_from(words).unwrap();
            (BackendArgs::from_arg_matches(&matches).unwrap(), matches, variables(pairs))
        });
        super::backend(parsed.0, &parsed.1, parsed.2, problems)
    }

    #[test]
    fn nothing_set_is_a_loopback_service_with_its_own_backend() {
        let serve = serve(&[]).unwrap();
        assert_eq!(serve.bind.to_string(), "127.0.0.1:8003");
        assert!(matches!(serve.access.authentication, Authentication::LocalUsers(_)));
        assert!(matches!(serve.backend, BackendLocation::Embedded(_)));
        assert_eq!(backend(&[]).unwrap().bind.to_string(), "127.0.0.1:8000");
    }

    #[test]
    fn all_problems_are_reported_together() {
        let Problems(problems) = serve(&[
            ("CC_EXECUTOR_BIND", "0.0.0.0:8003"),
            ("CC_EXECUTOR_MAX_SESSIONS", "many"),
            ("CC_EXECUTOR_EXECUTORS", "{\"x\":[]}"),
            ("CC_EXECUTOR_DEFAULT_EXECUTOR", "y"),
            ("CC_EXECUTOR_PASS_ENV", "A,CC_EXECUTOR_TOKEN"),
        ])
        .unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:#?}");
        let names = ["--max-sessions", "--bind", "--executors", "--pass-env", "--default-executor"];
        for (problem, name) in problems.iter().zip(names) {
            assert!(problem.starts_with(&format!("{name} ")), "{problem}");
        }
    }

    #[test]
    fn beyond_loopback_a_token_or_the_insecure_switch_is_needed() {
        let open = ("CC_EXECUTOR_BIND", "0.0.0.0:1");
        assert!(serve(&[open]).is_err());
        assert!(backend(&[open]).is_err());
        assert!(serve(&[open, (TOKEN, LONG)]).is_ok());
        assert!(backend(&[open, (BACKEND_TOKEN, LONG)]).is_ok());
        assert!(serve(&[open, ("CC_EXECUTOR_INSECURE_NO_AUTH", "true")]).is_ok());
        let Problems(problems) = serve(&[open]).unwrap_err();
        assert!(problems[0].contains("or pass --tokens-file or --insecure-no-auth"), "{problems:?}");
        for loopback in ["[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(serve(&[("CC_EXECUTOR_BIND", loopback)]).is_ok(), "{loopback}");
        }
    }

    #[test]
    fn a_token_that_cannot_be_used_is_one_problem() {
        for (name, value) in [
            ("CC_EXECUTOR_TOKENS_FILE", "/nowhere/tokens"),
            ("CC_EXECUTOR_TOKENS_FILE", "/dev/null"),
            ("CC_EXECUTOR_TOKEN_FILE", "/nowhere/token"),
            ("CC_EXECUTOR_TOKEN_FILE", "/dev/null"),
            ("CC_EXECUTOR_TOKEN_SHA256", "x"),
            (TOKEN, "a b"),
        ] {
            let pairs = [("CC_EXECUTOR_BIND", "0.0.0.0:1"), (name, value)];
            for Problems(problems) in [serve(&pairs).unwrap_err(), backend(&pairs).unwrap_err()] {
                assert!(problems.len() == 1 && !problems[0].starts_with("--bind "), "{problems:?}");
            }
        }
    }

    #[test]
    fn a_token_is_one_word_and_is_not_printed() {
        for bad in ["a b", "\u{e9}", "a\nb"] {
            assert!(serve(&[(TOKEN, bad)]).is_err(), "{bad:?}");
        }
        let hashed = "CC_EXECUTOR_TOKEN_SHA256";
        let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert!(serve(&[("CC_EXECUTOR_BIND", "0.0.0.0:1"), (hashed, digest)]).is_ok());
        for (pairs, part) in [
            ([(hashed, &digest[1..]), ("RUST_LOG", "")], "64 hexadecimal digits"),
            ([(hashed, &*digest.replace('2', "\u{e9}")), ("RUST_LOG", "")], "64 hexadecimal digits"),
            ([(hashed, digest), (TOKEN, LONG)], "both set"),
        ] {
            let Problems(problems) = serve(&pairs).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains(part), "{problems:?}");
        }
        let printed = format!("{:?}", serve(&[(TOKEN, LONG)]).unwrap());
        assert!(!printed.contains(LONG));
    }

    #[test]
    fn a_short_token_is_refused_unless_it_is_allowed() {
        let short = &LONG[1..];
        let allowed = ("CC_EXECUTOR_INSECURE_SHORT_TOKEN", "true");
        for name in [TOKEN, BACKEND_TOKEN] {
            let Problems(problems) = backend(&[(name, short)]).unwrap_err();
            assert!(
                problems.len() == 1 && problems[0].starts_with(&format!("{name} has a token of 31 characters")),
                "{problems:?}"
            );
            let warnings = backend(&[(name, short), allowed]).unwrap().warnings;
            assert!(
                warnings.len() == 1 && warnings[0].starts_with(&format!("{name} has a token of 31 characters")),
                "{warnings:?}"
            );
            assert!(backend(&[(name, LONG), allowed]).unwrap().warnings.is_empty());
        }
        assert!(serve(&[(TOKEN, short)]).is_err() && serve(&[(TOKEN, "1"), allowed]).is_ok());
        // The backend decides which token is long enough.
        assert!(serve(&[("CLAUDE_API_URL", "http://x"), (BACKEND_TOKEN, "1")]).is_ok());
    }

    #[test]
    fn local_users_are_asked_for_on_loopback_without_a_token() {
        let allowed = ("CC_EXECUTOR_ALLOW_LOCAL_USERS", "all");
        for (pairs, is_asked) in [
            (&[("CC_EXECUTOR_ALLOW_LOCAL_USERS", "77")][..], true),
            (&[("CC_EXECUTOR_INSECURE_NO_AUTH", "true")], true),
            (&[allowed], false),
            (&[("CC_EXECUTOR_BIND", "0.0.0.0:1"), ("CC_EXECUTOR_INSECURE_NO_AUTH", "true")], false),
        ] {
            let of_serve = serve(pairs).unwrap().access.authentication;
            let of_backend = backend(pairs).unwrap().access.authentication;
            for authentication in [of_serve, of_backend] {
                assert_eq!(matches!(authentication, Authentication::LocalUsers(_)), is_asked, "{pairs:?}");
            }
        }
        let Authentication::LocalUsers(users) =
            serve(&[("CC_EXECUTOR_ALLOW_LOCAL_USERS", "77")]).unwrap().access.authentication
        else {
            panic!("a loopback service without a token");
        };
        assert_eq!(users, LocalUsers::new(rustix::process::geteuid().as_raw(), [77]));
    }

    #[test]
    fn a_problem_of_a_token_names_the_variable_that_is_set() {
        let path = std::env::temp_dir().join(format!("cc-executor-token-{}", std::process::id()));
        let file = "CC_EXECUTOR_TOKEN_FILE";
        for (content, more, problem) in [
            ("\n", None, format!("{file} names {path:?}, which is empty; write the token into it")),
            ("a b", None, format!("{file} must contain a token of printable ASCII characters without spaces")),
            (
                "a",
                Some("CC_EXECUTOR_TOKEN_SHA256"),
                format!("{file} and CC_EXECUTOR_TOKEN_SHA256 are both set; unset one of them"),
            ),
        ] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let pairs = [(file, path.to_str().unwrap()), (more.unwrap_or("RUST_LOG"), "x")];
            assert_eq!(serve(&pairs).unwrap_err().0, [problem]);
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_backend_url_is_a_plain_one() {
        for (url, fine) in [
            ("http://claude-api:8000", true),
            ("http://127.0.0.1:1/", true),
            ("https://127.0.0.1:1/path", true),
            ("http://host/path", true),
            ("ws://host", false),
            ("claude-api:8000", false),
            ("http://", false),
            ("http://user:secret@host", false),
        ] {
            for name in ["CC_EXECUTOR_BACKEND_URL", "CLAUDE_API_URL"] {
                match serve(&[(name, url)]) {
                    Ok(settings) => {
                        let BackendLocation::Remote(backend) = settings.backend else { panic!("is remote") };
                        assert!(fine && backend.url == url.trim_end_matches('/'), "{url}");
                        assert_eq!(backend.dial.tls.is_some(), url.starts_with("https://"));
                    }
                    Err(Problems(problems)) => {
                        assert!(!fine && problems.len() == 1 && !problems[0].contains("secret"), "{problems:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_url_of_a_backend_has_two_names_which_must_agree() {
        let (new, old) = ("CC_EXECUTOR_BACKEND_URL", "CLAUDE_API_URL");
        let url_of = |pairs: Pairs<'_>| match serve(pairs)?.backend {
            BackendLocation::Remote(backend) => Ok(Some(backend.url)),
            BackendLocation::Embedded(_) => Ok(None),
        };
        let (x, y) = (Some("http://x".to_owned()), "http://y");
        assert_eq!(url_of(&[(new, "http://x"), (old, "http://x/")]), Ok(x.clone()));
        assert_eq!(url_of(&[(new, ""), (old, "http://x")]), Ok(x.clone()));
        assert_eq!(url_of(&[(new, "http://x"), (old, "")]), Ok(x));
        let differ = "--backend-url and --claude-api-url are both set, and differ; unset one of them".to_owned();
        assert_eq!(url_of(&[(new, "http://x"), (old, y)]), Err(Problems(vec![differ])));
        let Problems(problems) = url_of(&[(new, "?"), (old, y)]).unwrap_err();
        assert!(problems.len() == 1 && problems[0].starts_with("--backend-url must be"), "{problems:?}");
    }

    #[test]
    fn a_ca_file_is_read_for_tls_only() {
        let file = ("CC_EXECUTOR_CA_FILE", "/nowhere/ca.pem");
        assert!(serve(&[("CC_EXECUTOR_BACKEND_URL", "http://x"), file]).is_ok());
        let Problems(problems) = serve(&[("CC_EXECUTOR_BACKEND_URL", "https://x"), file]).unwrap_err();
        assert!(problems.len() == 1 && problems[0].starts_with("the CA file \"/nowhere/ca.pem\" cannot be read: "));
    }

    #[test]
    fn settings_of_a_backend_are_refused_beside_the_url_of_another() {
        let remote = ("CLAUDE_API_URL", "http://claude-api:8000");
        let definition = BackendOnlyArgs::augment_args(Command::new("backend"));
        let names: Vec<_> =
            definition.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg.get_env()?.to_str()?))).collect();
        assert_eq!(names.len(), 21);
        for (flag, name) in names {
            let Problems(problems) = serve(&[remote, (name, "1")]).unwrap_err();
            let belongs = format!("--{flag} belongs to the backend at {BACKEND_URL}; set it there");
            assert_eq!(problems, [belongs], "a wrong value is reported once");
            assert!(serve(&[remote, (name, "")]).is_ok(), "{name} is empty");
        }
        assert!(serve(&[remote, ("CC_EXECUTOR_MAX_ENDED", "?"), ("CC_EXECUTOR_DRAIN_MS", "500")]).is_ok());
        let wrong = [("CLAUDE_API_URL", "ws://x"), ("CC_EXECUTOR_RING_BYTES", "65536")];
        let Problems(problems) = serve(&wrong).unwrap_err();
        assert!(problems.len() == 2 && problems[1].starts_with("--ring-bytes belongs"), "{problems:?}");
    }

    #[test]
    fn an_empty_flag_is_not_given() {
        let definition = ServeArgs::augment_args(Command::new("serve"));
        for name in definition.get_arguments().filter(|arg| arg.get_action().takes_values()) {
            let name = name.get_env().unwrap().to_str().unwrap();
            let settings = serve(&[(name, "")]).unwrap();
            assert_eq!(format!("{settings:?}"), format!("{:?}", serve(&[]).unwrap()), "{name}");
        }
    }
}
