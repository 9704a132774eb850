//! `profile`: lists, chooses and removes the profiles of `login`.

use clap::{Args, Subcommand};

use super::{
    ClientError, print,
    profiles::{ProfileStore, Profiles},
    service::profile_name,
};
use crate::console;

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  done
  64  wrong use: an unknown profile, the file of profiles
  74  output cannot be written";

/// What to do with profiles.
#[derive(Args, Clone, Debug)]
pub struct ProfileOptions {
    #[command(subcommand)]
    command: ProfileCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum ProfileCommand {
    /// List the profiles, without their tokens; the default one is marked with *
    Ls,
    /// Make a profile the default: it is used if nothing else names a service
    Use {
        /// Profile
        #[arg(value_name = "NAME", value_parser = profile_name())]
        name: String,
    },
    /// Remove a profile and its token
    Rm {
        /// Profile
        #[arg(value_name = "NAME", value_parser = profile_name())]
        name: String,
    },
}

/// Lists, chooses or removes profiles.
pub(super) fn profile(options: ProfileOptions) -> Result<u8, ClientError> {
    let store = ProfileStore::of_user()?;
    match options.command {
        ProfileCommand::Ls => {
            let profiles = store.read()?;
            if profiles.by_name.is_empty() {
                let path = store.path().display();
                console::report(format_args!("there is no profile in {path}; store one with `cc-executor login URL`"));
            } else {
                // A reader that leaves early is no error.
                let _ = print(&table(&profiles))?;
            }
        }
        ProfileCommand::Use { name } => store.update(|profiles| {
            profiles.profile(&name)?;
            profiles.default = Some(name);
            Ok(())
        })?,
        ProfileCommand::Rm { name } => store.update(|profiles| {
            profiles.profile(&name)?;
            profiles.by_name.remove(&name);
            profiles.default = profiles.default.take().filter(|default| *default != name);
            Ok(())
        })?,
    }
    Ok(0)
}

/// The profiles as a table.
fn table(profiles: &Profiles) -> String {
    let shown = |name: &str| format!("{} {name}", if profiles.default.as_deref() == Some(name) { '*' } else { ' ' });
    let urls = profiles.by_name.values().map(|profile| profile.url.session());
    let name_width = profiles.by_name.keys().map(String::len).chain([4]).max().unwrap_or_default() + 2;
    let url_width = urls.map(|url| url.len()).chain([3]).max().unwrap_or_default();
    let mut text = format!("{:name_width$}  {:url_width$}  TOKEN\n", "  NAME", "URL");
    for (name, profile) in &profiles.by_name {
        let token = if profile.token.is_some() { "yes" } else { "no" };
        text.push_str(&format!("{:name_width$}  {:url_width$}  {token}\n", shown(name), profile.url.session()));
    }
    text
}
