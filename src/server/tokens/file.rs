//! A tokens file: read at the start, and again when it changes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use actix_web::web;
use log::{info, warn};
use tokio::sync::watch;

use super::table::TokenTable;
use crate::server::{
    secret::Fingerprint,
    secret_file::{self, SecretFile, SecretKind},
};

/// The interval at which the file is read. A change counts when two reads find it, so that a file is not used while it
/// is being written.
const RELOAD_CADENCE: Duration = Duration::from_millis(500);

/// A tokens file and the clients in it.
#[derive(Debug)]
pub struct TokensFile {
    path: PathBuf,
    /// The token that the service accepts besides.
    single: Option<Fingerprint>,
    table: watch::Sender<TokenTable>,
    /// The content that the table was made from.
    content: String,
}

impl TokensFile {
    /// Reads the file for the first time. `single` is the token that the service accepts besides. The second value warns of
    /// a file that its group may write.
    ///
    /// # Errors
    /// The file cannot be used. Each text, also a warning, is the rest of a sentence that begins with the name of the setting.
    pub fn load(path: &Path, single: Option<Fingerprint>) -> Result<(TokensFile, Option<String>), Vec<String>> {
        let named = |problem: String| format!("names {path:?}, {problem}");
        let of_file = |problem: String| named(format!("which {problem}"));
        let SecretFile { text: content, warning } =
            secret_file::read(path, SecretKind::Digests).map_err(|error| vec![of_file(error.to_string())])?;
        match parse(&content, single) {
            Ok(table) => {
                let table = watch::Sender::new(table);
                Ok((TokensFile { path: path.to_owned(), single, table, content }, warning.map(of_file)))
            }
            Err(problems) => Err(problems.into_iter().map(|problem| named(format!("of which {problem}"))).collect()),
        }
    }

    /// The clients, now and after each change.
    pub(super) fn subscribe(&self) -> watch::Receiver<TokenTable> {
        self.table.subscribe()
    }

    /// Reads the file again and again, and uses its content when that has changed. A file that cannot be used changes
    /// nothing, and is reported once.
    pub async fn watch(self: Arc<Self>) {
        let mut changes = Changes::new(Ok(self.content.clone()));
        loop {
            actix_web::rt::time::sleep(RELOAD_CADENCE).await;
            let path = self.path.clone();
            // Not on this thread, because the file system may not answer.
            let Ok(reading) = web::block(move || read(&path)).await else { continue };
            if let Some(changed) = changes.record(reading) {
                self.reload(changed);
            }
        }
    }

    fn reload(&self, reading: &Reading) {
        let path = self.path.display();
        let parsed = match reading {
            Ok(content) => parse(content, self.single).map_err(|problems| problems.join("; ")),
            Err(problem) => Err(format!("the file {problem}")),
        };
        match parsed {
            Ok(table) => {
                let n_clients = table.len();
                self.table.send_replace(table);
                // After the change, because who reads the line relies on it.
                info!(event = "tokens.reloaded", path:% = path, clients = n_clients; "the tokens file has changed");
            }
            Err(problem) => {
                warn!(event = "tokens.rejected", path:% = path; "the changed tokens file cannot be used, so the earlier tokens stay: {problem}");
            }
        }
    }
}

/// The content of the file, or the problem with it.
type Reading = Result<String, String>;

fn read(path: &Path) -> Reading {
    secret_file::read(path, SecretKind::Digests).map(|file| file.text).map_err(|error| error.to_string())
}

/// The clients in the file's content. A file without any is refused, because it may have been emptied by mistake.
fn parse(content: &str, single: Option<Fingerprint>) -> Result<TokenTable, Vec<String>> {
    match TokenTable::parse(content, single) {
        Ok(table) if table.is_empty() => {
            Err(vec!["no line names a client; make one with cc-executor token new NAME".to_owned()])
        }
        Ok(table) => Ok(table),
        Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
    }
}

/// Decides when a file has changed: when two readings in a row have the same new content.
struct Changes {
    used: Reading,
    previous: Option<Reading>,
}

impl Changes {
    fn new(used: Reading) -> Self {
        Changes { used, previous: None }
    }

    /// Records a reading. Returns it if it is to be used now.
    fn record(&mut self, reading: Reading) -> Option<&Reading> {
        if reading == self.used {
            self.previous = None;
            return None;
        }
        if self.previous.as_ref() != Some(&reading) {
            self.previous = Some(reading);
            return None;
        }
        self.previous = None;
        self.used = reading;
        Some(&self.used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_when_it_was_read_twice() {
        let (old, half, new) = (Ok("old".to_owned()), Ok("ne".to_owned()), Ok("new".to_owned()));
        let broken: Reading = Err("cannot be read".to_owned());
        let mut changes = Changes::new(old.clone());
        for (reading, is_used) in [
            (&old, false),
            (&half, false),
            (&new, false),
            (&new, true),
            (&new, false),
            (&old, false),
            (&new, false),
            // A problem is reported once.
            (&broken, false),
            (&broken, true),
            (&broken, false),
            (&new, false),
            (&new, true),
        ] {
            let used = changes.record(reading.clone());
            assert_eq!(used.is_some_and(|used| used == reading), is_used, "{reading:?}");
        }
    }
}
