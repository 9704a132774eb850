//! `man`: the manual pages, made from the definition of the command line.

use clap::{Args, Command};
use clap_mangen::Man;

/// Options of `man`.
#[derive(Args, Clone, Debug)]
pub struct ManOptions {
    /// Command whose page is printed (the overview if not given)
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

impl ManOptions {
    /// The page in roff.
    ///
    /// # Errors
    ///
    /// There is no such command.
    pub(super) fn page(&self, mut definition: Command) -> Result<String, String> {
        definition.build();
        let program = definition.get_name().to_owned();
        let page = match &self.command {
            None => Man::new(definition.disable_help_subcommand(true)),
            Some(name) => {
                let found = definition.get_subcommands().find(|command| command.get_name() == name).cloned();
                let command = found.ok_or_else(|| format!("COMMAND must be a command of {program}, not {name:?}"))?;
                // The name of the page is that of its file: cc-executor-run.1.
                Man::new(command).title(format!("{program}-{name}"))
            }
        };
        let mut roff = Vec::new();
        page.render(&mut roff).expect("a vector accepts every write");
        Ok(String::from_utf8_lossy(&roff).into_owned())
    }
}
