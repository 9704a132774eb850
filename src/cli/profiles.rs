//! The profiles of a user: named services with their tokens, in a file that nobody else can read.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cc_executor_actors::client::is_token_name;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{ClientError, exit};
use crate::{config::Secret, outgoing::url::ServiceUrl};

/// The longest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the name of a profile.
///
/// # Errors
/// The rest of a sentence that begins with the name of the flag.
pub(super) fn read_name(text: &str) -> Result<String, String> {
    if is_token_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!("must be 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit, not {text:?}"))
}

/// A service with its token.
#[derive(Clone, Debug)]
pub(super) struct StoredProfile {
    pub(super) url: ServiceUrl,
    pub(super) token: Option<Secret>,
    pub(super) ca_file: Option<String>,
}

/// The content of the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Profiles {
    /// The profile that is used if nothing names a service.
    pub(super) default: Option<String>,
    pub(super) by_name: BTreeMap<String, StoredProfile>,
}

/// The file as it is written.
#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenProfiles {
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    #[serde(default)]
    profiles: BTreeMap<String, WrittenProfile>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenProfile {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<String>,
}

/// The file of profiles.
pub(super) struct ProfileStore {
    path: PathBuf,
}

impl Profiles {
    /// The profile of this name.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn profile(&self, name: &str) -> Result<StoredProfile, ClientError> {
        self.by_name.get(name).cloned().ok_or_else(|| {
            let names: Vec<_> = self.by_name.keys().map(String::as_str).collect();
            let known = if names.is_empty() { "none is stored".to_owned() } else { names.join(", ") };
            let message =
                format!("there is no profile {name} ({known}); store one with `cc-executor login --name {name} URL`");
            ClientError::new(exit::USAGE, message)
        })
    }
}

impl ProfileStore {
    /// The file of this user: `$XDG_CONFIG_HOME/cc-executor/config.toml`, else below `~/.config`.
    ///
    /// # Errors
    /// There is no home directory.
    pub(super) fn of_user() -> Result<Self, ClientError> {
        let path = config_path(|name| env::var_os(name).map(PathBuf::from));
        path.map(|path| ProfileStore { path }).ok_or_else(|| {
            ClientError::new(exit::USAGE, "there is no home directory for profiles: set HOME or XDG_CONFIG_HOME")
        })
    }

    /// The default profile, if there is one. A file of another user, below the home directory of that user, counts as
    /// none.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(super) fn default_profile() -> Result<Option<(String, StoredProfile)>, ClientError> {
        let Ok(store) = ProfileStore::of_user() else { return Ok(None) };
        if fs::metadata(&store.path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
            return Ok(None);
        }
        let profiles = store.read()?;
        let Some(name) = profiles.default.clone() else { return Ok(None) };
        let profile = profiles.profile(&name)?;
        Ok(Some((name, profile)))
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file. A missing one has no profiles.
    ///
    /// # Errors
    /// Somebody else can read or write it, or it is not valid.
    pub(super) fn read(&self) -> Result<Profiles, ClientError> {
        let failed = |error: io::Error| self.problem(format_args!("cannot be read: {error}"));
        let file = match fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Profiles::default()),
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        let (mode, path) = (metadata.mode() & 0o777, self.path.display());
        if mode & 0o077 != 0 {
            return Err(self.problem(format_args!(
                "has tokens, and other users can read or write it (mode {mode:04o}); make it private with `chmod 600 {path}`"
            )));
        }
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, MAX_BYTES), &mut text).map_err(failed)?;
        let written: WrittenProfiles = toml::from_str(&text).map_err(|error| {
            // Neither the line nor the error's own text is shown, because they may have a token.
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            self.problem(format_args!(
                "is not valid at line {line}; a profile is [profiles.NAME] with url, token and ca_file in quotation marks"
            ))
        })?;
        let profiles = written.profiles.into_iter().map(|(name, written)| {
            let name =
                read_name(&name).map_err(|problem| self.problem(format_args!("has a profile whose name {problem}")))?;
            let url = ServiceUrl::parse(&written.url);
            let url = url.map_err(|problem| self.problem(format_args!("has profile {name}, whose url {problem}")))?;
            let token = written.token.map(Secret::new);
            if token.as_ref().is_some_and(|token| !is_token(token.reveal())) {
                return Err(self.problem(format_args!(
                    "has profile {name}, whose token is not of printable ASCII characters without spaces"
                )));
            }
            Ok((name, StoredProfile { url, token, ca_file: written.ca_file }))
        });
        let by_name = profiles.collect::<Result<_, ClientError>>()?;
        Ok(Profiles { default: written.default, by_name })
    }

    /// Reads the file, changes it and writes it, while no other command does.
    ///
    /// # Errors
    /// The file cannot be used or written; then it is unchanged.
    pub(super) fn update<T>(
        &self,
        change: impl FnOnce(&mut Profiles) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let failed = |error: io::Error| self.problem(format_args!("cannot be written: {error}"));
        let directory = self.path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let lock = fs::File::open(directory).map_err(failed)?;
        let mode = lock.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(self.problem(format_args!(
                "is in a directory that other users can write (mode {mode:04o}); make it private with `chmod 700 {}`",
                directory.display()
            )));
        }
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        let mut profiles = self.read()?;
        let changed = change(&mut profiles)?;
        self.write(profiles).map_err(failed)?;
        // The new name of the file is on disk after this. A file system that cannot do it has the file itself.
        let _ = lock.sync_all();
        Ok(changed)
    }

    /// Writes another file and puts it in the place of this one, so that a reader never sees a part of it.
    fn write(&self, profiles: Profiles) -> io::Result<()> {
        let written = WrittenProfiles {
            default: profiles.default,
            profiles: profiles.by_name.into_iter().map(|(name, profile)| (name, profile.written())).collect(),
        };
        let text = toml::to_string(&written).map_err(io::Error::other)?;
        // The file may be a link, as those in a directory under version control are.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let new = path.with_extension(format!("toml.{}", std::process::id()));
        let written =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()?;
                fs::rename(&new, &path)
            });
        written.inspect_err(|_| {
            // If it was not made, there is nothing to remove.
            let _ = fs::remove_file(&new);
        })
    }

    fn problem(&self, what: std::fmt::Arguments<'_>) -> ClientError {
        ClientError::new(exit::USAGE, format!("the file of profiles {} {what}", self.path.display()))
    }
}

impl StoredProfile {
    fn written(self) -> WrittenProfile {
        let token = self.token.map(|token| token.reveal().to_owned());
        WrittenProfile { url: self.url.session(), token, ca_file: self.ca_file }
    }
}

/// Whether a text can be a token: what a header can carry.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn config_path(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let directory = variable("XDG_CONFIG_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").filter(|path| path.is_absolute()).map(|home| home.join(".config")))?;
    Some(directory.join("cc-executor/config.toml"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn store(directory: &tempfile::TempDir) -> ProfileStore {
        ProfileStore { path: directory.path().join("cc-executor/config.toml") }
    }

    fn profile(token: Option<&str>) -> StoredProfile {
        let url = ServiceUrl::parse("https://h/tools").unwrap();
        StoredProfile { url, token: token.map(|token| Secret::new(token.to_owned())), ca_file: Some("/ca".to_owned()) }
    }

    #[test]
    fn the_file_is_below_the_directory_of_settings() {
        let path = |pairs: &[(&str, &str)]| {
            config_path(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| PathBuf::from(pair.1)))
                .map(|path| path.display().to_string())
        };
        let file = |directory: &str| Some(format!("{directory}/cc-executor/config.toml"));
        assert_eq!(path(&[("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")]), file("/x"));
        assert_eq!(path(&[("XDG_CONFIG_HOME", "relative"), ("HOME", "/h")]), file("/h/.config"));
        assert_eq!(path(&[("HOME", "/h")]), file("/h/.config"));
        assert_eq!(path(&[]), None);
    }

    #[test]
    fn profiles_are_read_back_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        assert!(store.read().unwrap().by_name.is_empty(), "a missing file");
        let token = "quote\"back\\slash'#";
        store
            .update(|profiles| {
                profiles.default = Some("a".to_owned());
                profiles.by_name.insert("a".to_owned(), profile(Some(token)));
                profiles.by_name.insert("b.c".to_owned(), profile(None));
                Ok(())
            })
            .unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&store.path), mode(store.path.parent().unwrap())), (0o600, 0o700));
        let read = store.read().unwrap();
        assert_eq!(read.default.as_deref(), Some("a"));
        let a = read.profile("a").unwrap();
        assert_eq!(
            (a.url.session(), a.token.unwrap().reveal(), a.ca_file.as_deref()),
            ("wss://h/tools/ws/mcp".to_owned(), token, Some("/ca"))
        );
        assert!(read.profile("b.c").unwrap().token.is_none());
        assert!(read.profile("c").unwrap_err().message.contains("there is no profile c (a, b.c)"));
        let left: Vec<_> = fs::read_dir(store.path.parent().unwrap()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "no other file is left");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        store.update(|_| Ok(())).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o666] {
            fs::set_permissions(&store.path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = store.read().unwrap_err();
            let fix = format!("`chmod 600 {}`", store.path.display());
            assert!(refused.code == exit::USAGE && refused.message.contains(&fix), "{}", refused.message);
        }
        fs::set_permissions(&store.path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(store.read().is_ok());
        fs::set_permissions(store.path.parent().unwrap(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(store.update(|_| Ok(())).unwrap_err().message.contains("`chmod 700 "));
    }

    #[test]
    fn a_file_that_is_not_valid_is_named_without_its_text() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        store.update(|_| Ok(())).unwrap();
        for (text, part) in [
            ("[profiles.a]\nurl = \"h:1\"\ntoken = 123hush\n", "at line 3"),
            ("[profiles.a]\nurl = \"h:1\"\ntoken = 987654\n", "at line 3"),
            ("[profiles.a]\nurl = \"h:1\"\ntokn = \"hush\"\n", "at line "),
            ("[profiles.a]\ntoken = \"hush\"\n", "at line "),
            ("[profiles.a]\nurl = \"wss://u:hush@h\"\n", "profile a, whose url must be a URL"),
            ("[profiles.a]\nurl = \"h:1\"\ntoken = \"hush hush\"\n", "profile a, whose token is not"),
            ("[profiles.\"-a\"]\nurl = \"h:1\"\n", "has a profile whose name must be"),
        ] {
            fs::write(&store.path, text).unwrap();
            let problem = store.read().unwrap_err().message;
            assert!(problem.contains(part), "{problem}");
            assert!(!problem.contains("hush") && !problem.contains("987654"), "{problem}");
        }
    }
}
