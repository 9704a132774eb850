//! `completions`: a script that completes this command line in a shell.

use clap::{Args, Command};
use clap_complete::{Shell, generate};

/// Options of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsOptions {
    /// Shell that reads the script
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl CompletionsOptions {
    /// The script that completes this command line.
    pub(super) fn script(&self, definition: &mut Command) -> String {
        let mut script = Vec::new();
        let name = definition.get_name().to_owned();
        generate(self.shell, definition, &name, &mut script);
        let script = String::from_utf8_lossy(&script).into_owned();
        match self.shell {
            // clap_complete spells the hyphen of a program's name in two ways, so that no flag of a subcommand is
            // completed: https://github.com/clap-rs/clap/issues/6421
            Shell::Bash => script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__")),
            _ => script,
        }
    }
}
