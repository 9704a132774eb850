//! Executors: named templates of a program and its arguments, and the environment of commands.

use std::{collections::BTreeMap, env};

use cc_executor_actors::{
    excerpt::Quoted,
    protocol::{
        EXEC_EXECUTOR,
        execute::{ExecutionSpec, RequestedCommand},
    },
    rpc::ErrorObject,
};

use super::{
    agent::{
        AgentJob, AgentLaunch, AgentLauncher,
        claude::{ClaudePolicy, PolicyError},
        launchers,
    },
    shim::protocol::{JobSpec, Stdin},
};

/// Stands for the command in a template. Without it the command is the last argument.
const COMMAND: &str = "{command}";

/// Variables that a command inherits from the service, besides every `LC_*`.
const INHERITED: &[&str] = &["PATH", "HOME", "USER", "SHELL", "LANG", "TZ", "TERM", "TMPDIR"];

/// Names with this prefix hold the service's own settings and secrets; no command inherits one.
pub const OWN_PREFIX: &str = "CC_EXECUTOR_";

/// All executors, and the environment of commands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Executors {
    templates: BTreeMap<String, Vec<String>>,
    default: String,
    inherited: BTreeMap<String, String>,
    claude: ClaudePolicy,
}

/// A command, resolved to a program and its arguments.
#[derive(Debug)]
pub struct ResolvedCommand {
    /// The executor's name.
    pub name: String,
    /// The program for the shim to start.
    pub run: JobSpec,
    /// The agent and its prompt, if the command is one.
    pub agent: Option<AgentJob>,
}

/// Why no executor runs a command.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ExecutorError {
    /// No executor has this name.
    #[error("there is no executor {}: there are {}", Quoted(.asked), .known.join(", "))]
    Unknown {
        /// The name.
        asked: String,
        /// The names of all executors.
        known: Vec<String>,
    },
    /// An option is not for this executor. The error names the option.
    #[error(transparent)]
    Spec(#[from] ErrorObject),
    /// The operator has disabled an executor that does not exist, or the default one.
    #[error("cannot disable the executor {}: {why}", Quoted(.name))]
    NotDisabled {
        /// The name.
        name: String,
        /// Why not.
        why: String,
    },
    /// The operator defines or chooses the executor of `argv` as one of commands.
    #[error("the executor exec runs the words of argv, not a command: choose another name")]
    ExecIsReserved,
    /// The operator does not allow an option of Claude.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl Executors {
    /// `shell`, `python`, `claude`, `exec`, and the executors that the operator adds or replaces, `exec` apart. `inherited` is the part of
    /// the environment that all commands share, see [`inherited`].
    ///
    /// # Errors
    ///
    /// There is no executor `default`, or an executor of commands has the name of `exec`.
    pub fn new(
        added: BTreeMap<String, Vec<String>>,
        default: &str,
        inherited: BTreeMap<String, String>,
        claude: ClaudePolicy,
    ) -> Result<Self, ExecutorError> {
        let template = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let mut templates = BTreeMap::from([
            ("shell".to_owned(), template(&["bash", "-c"])),
            ("python".to_owned(), template(&["python3", "-u", "-c"])),
        ]);
        let agents = launchers(&claude);
        templates
            .extend(agents.iter().map(|agent| (agent.agent().executor().to_owned(), template(&[agent.program()]))));
        if added.contains_key(EXEC_EXECUTOR) || default == EXEC_EXECUTOR {
            return Err(ExecutorError::ExecIsReserved);
        }
        templates.extend(added);
        // Its words come from the client.
        templates.insert(EXEC_EXECUTOR.to_owned(), Vec::new());
        if !templates.contains_key(default) {
            return Err(ExecutorError::Unknown { asked: default.to_owned(), known: templates.into_keys().collect() });
        }
        Ok(Executors { templates, default: default.to_owned(), inherited, claude })
    }

    /// The same without these executors.
    ///
    /// # Errors
    ///
    /// There is no such executor, or it is the default one.
    pub fn without(mut self, disabled: &[String]) -> Result<Self, ExecutorError> {
        for name in disabled {
            let refused = |why| Err(ExecutorError::NotDisabled { name: name.clone(), why });
            if *name == self.default {
                return refused("it is the default executor; choose another with --default-executor".to_owned());
            }
            if self.templates.remove(name).is_none() {
                return refused(format!("there are {}", self.names().join(", ")));
            }
        }
        Ok(self)
    }

    /// The names.
    pub fn names(&self) -> Vec<String> {
        self.templates.keys().cloned().collect()
    }

    /// The executor of commands that name none.
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// The launcher of the agent that this executor runs, if it runs one.
    fn launcher(&self, name: &str) -> Option<&dyn AgentLauncher> {
        launchers(&self.claude).into_iter().find(|launcher| launcher.agent().executor() == name)
    }

    /// Resolves a request to the executor that runs it, the program and its arguments.
    ///
    /// # Errors
    ///
    /// There is no such executor, its options are for another one, or the operator does not allow them.
    pub fn resolve(&self, run: &ExecutionSpec) -> Result<ResolvedCommand, ExecutorError> {
        let name = run.executor.as_deref().unwrap_or(&self.default);
        let Some(template) = self.templates.get(name) else {
            return Err(ExecutorError::Unknown { asked: name.to_owned(), known: self.names() });
        };
        let launcher = self.launcher(name);
        run.check_executor(name, launcher.is_some())?;
        if let Some(launcher) = launcher {
            let AgentLaunch { arguments, cwd, env } = launcher.launch(run, &self.inherited)?;
            let argv = template.iter().cloned().chain(arguments).collect();
            let spec = JobSpec { argv, cwd, env, descriptor_limit: None, stdin: Stdin::Pipe };
            let agent = AgentJob { agent: launcher.agent(), prompt: run.command.to_text().into_owned().into() };
            return Ok(ResolvedCommand { name: name.to_owned(), run: spec, agent: Some(agent) });
        }
        let argv = match &run.command {
            RequestedCommand::Argv(words) => words.clone(),
            RequestedCommand::Text(command) => filled(template, command),
        };
        let mut env = self.inherited.clone();
        env.extend(run.env.clone());
        let stdin = match run {
            ExecutionSpec { pty: Some(_), .. } => Stdin::Terminal,
            ExecutionSpec { stdin: true, .. } => Stdin::Pipe,
            _ => Stdin::Null,
        };
        let run = JobSpec { argv, cwd: run.cwd.clone(), env, descriptor_limit: None, stdin };
        Ok(ResolvedCommand { name: name.to_owned(), run, agent: None })
    }
}

/// A template with the command in its place.
fn filled(template: &[String], command: &str) -> Vec<String> {
    let mut argv = template.to_vec();
    if argv.iter().any(|word| word == COMMAND) {
        argv.iter_mut().filter(|word| *word == COMMAND).for_each(|word| command.clone_into(word));
    } else {
        argv.push(command.to_owned());
    }
    argv
}

/// The part of the service's own environment that commands inherit: a fixed list, and the names that the operator adds.
pub fn inherited(vars: impl Iterator<Item = (String, String)>, added: &[String]) -> BTreeMap<String, String> {
    vars.filter(|(name, _)| {
        let listed = INHERITED.contains(&name.as_str()) || name.starts_with("LC_") || added.contains(name);
        listed && !name.starts_with(OWN_PREFIX)
    })
    .collect()
}

/// The variables of the service's environment that are UTF-8.
pub fn service_environment() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::agent::claude::EXECUTOR;

    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_command_inherits_the_list_and_never_a_setting_of_the_service() {
        let service = vars(&[
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("AWS_SECRET", "x"),
            ("EXTRA", "1"),
            ("CC_EXECUTOR_TOKEN", "secret"),
        ]);
        let added = ["EXTRA".to_owned(), "CC_EXECUTOR_TOKEN".to_owned()];
        assert_eq!(inherited(service.into_iter(), &added), vars(&[("PATH", "/bin"), ("LC_ALL", "C"), ("EXTRA", "1")]));
    }

    #[test]
    fn the_command_takes_its_place_in_the_template() {
        let added = BTreeMap::from([(
            "env".to_owned(),
            vec!["env".to_owned(), "-S".to_owned(), COMMAND.to_owned(), "end".to_owned()],
        )]);
        let inherited = vars(&[("A", "service"), ("B", "service")]);
        let executors = Executors::new(added, "shell", inherited, ClaudePolicy::default()).unwrap();
        let mut run = ExecutionSpec { env: vars(&[("A", "client")]), ..ExecutionSpec::of("echo") };
        let ResolvedCommand { name, run: started, agent } = executors.resolve(&run).unwrap();
        assert_eq!((name.as_str(), started.argv), ("shell", vec!["bash".to_owned(), "-c".into(), "echo".into()]));
        assert_eq!(started.env, vars(&[("A", "client"), ("B", "service")]));
        assert!(agent.is_none());
        run.executor = Some("env".into());
        assert_eq!(executors.resolve(&run).unwrap().run.argv, ["env", "-S", "echo", "end"]);
        run.executor = Some(EXECUTOR.into());
        let ResolvedCommand { run: started, agent, .. } = executors.resolve(&run).unwrap();
        assert_eq!(
            (started.argv[0].as_str(), started.stdin, agent.map(|agent| agent.prompt)),
            ("claude", Stdin::Pipe, Some("echo".into()))
        );
        assert!(!started.argv.contains(&"echo".to_owned()), "a prompt is no argument");
        run.executor = Some("perl".into());
        let known = executors.names();
        assert!(
            ["claude", "env", "python", "shell"].iter().all(|name| known.contains(&(*name).to_owned())),
            "{known:?}"
        );
        assert_eq!(executors.resolve(&run).unwrap_err(), ExecutorError::Unknown { asked: "perl".into(), known });
        let error = Executors::new(BTreeMap::new(), "perl", BTreeMap::new(), ClaudePolicy::default()).unwrap_err();
        assert!(error.to_string().contains("claude, exec, python, shell"), "{error}");
        let plain = || Executors::new(BTreeMap::new(), "shell", BTreeMap::new(), ClaudePolicy::default()).unwrap();
        let words = ["ls".to_owned(), String::new(), "$HOME".to_owned()];
        let exec = ExecutionSpec {
            command: RequestedCommand::Argv(words.to_vec()),
            executor: Some(EXEC_EXECUTOR.to_owned()),
            ..ExecutionSpec::default()
        };
        assert_eq!(plain().resolve(&exec).unwrap().run.argv, words, "no shell, no template");
        let without =
            |names: &[&str]| plain().without(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let known = without(&["exec", "python"]).unwrap();
        assert_eq!(known.names(), ["claude", "shell"]);
        assert!(matches!(known.resolve(&exec), Err(ExecutorError::Unknown { .. })));
        for wrong in ["shell", "perl"] {
            assert!(matches!(without(&[wrong]), Err(ExecutorError::NotDisabled { .. })), "{wrong}");
        }
        let added = BTreeMap::from([(EXEC_EXECUTOR.to_owned(), vec!["env".to_owned()])]);
        for (added, default) in [(added, "shell"), (BTreeMap::new(), EXEC_EXECUTOR)] {
            let refused = Executors::new(added, default, BTreeMap::new(), ClaudePolicy::default());
            assert_eq!(refused.unwrap_err(), ExecutorError::ExecIsReserved);
        }
    }
}
