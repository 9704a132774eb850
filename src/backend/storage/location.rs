//! Where the state directory is, from the setting and the environment. Pure.

use std::path::{Path, PathBuf};

/// The setting `--state-dir`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum StateLocation {
    /// Not given: [`default_directory`].
    #[default]
    Default,
    /// `none`: nothing is kept on disk.
    None,
    /// This directory.
    At(PathBuf),
}

/// The variables that decide the default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StateVariables {
    /// `STATE_DIRECTORY`, which systemd sets: directories separated by colons.
    pub state_directory: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub xdg_state_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
}

impl StateLocation {
    /// The location that a text names.
    pub fn named(text: &str) -> StateLocation {
        match text {
            "" => StateLocation::Default,
            "none" => StateLocation::None,
            path => StateLocation::At(path.into()),
        }
    }
}

impl StateVariables {
    /// Those of this process.
    pub fn of_process() -> StateVariables {
        let path = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        StateVariables {
            state_directory: path("STATE_DIRECTORY"),
            xdg_state_home: path("XDG_STATE_HOME"),
            home: path("HOME"),
        }
    }
}

/// The directory of a service on this port, if none was named. `None` without a home directory, and for a port that the
/// system chooses: another one after each start would find nothing.
pub fn default_directory(variables: &StateVariables, port: u16) -> Option<PathBuf> {
    if let Some(given) = &variables.state_directory {
        let first = given.as_os_str().to_str().and_then(|list| list.split(':').next()).map(PathBuf::from);
        return Some(first.unwrap_or_else(|| given.clone()));
    }
    if port == 0 {
        return None;
    }
    let of_home = || Some(variables.home.as_deref()?.join(".local/state"));
    let base = variables.xdg_state_home.clone().or_else(of_home)?;
    Some(base.join(Path::new("cc-executor")).join(port.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_that_is_set_decides() {
        let mut variables = StateVariables {
            state_directory: Some("/var/lib/a:/var/lib/b".into()),
            xdg_state_home: Some("/xdg".into()),
            home: Some("/home/me".into()),
        };
        assert_eq!(default_directory(&variables, 8003), Some("/var/lib/a".into()));
        assert_eq!(default_directory(&variables, 0), Some("/var/lib/a".into()));
        variables.state_directory = None;
        assert_eq!(default_directory(&variables, 8003), Some("/xdg/cc-executor/8003".into()));
        variables.xdg_state_home = None;
        assert_eq!(default_directory(&variables, 8000), Some("/home/me/.local/state/cc-executor/8000".into()));
        assert_eq!(default_directory(&variables, 0), None);
        variables.home = None;
        assert_eq!(default_directory(&variables, 8000), None);
    }
}
