//! Seals on the records of a state directory: a command of the service's own user can write there, and must not be able
//! to make the service report a false ending unnoticed.
//!
//! The seal is an HMAC-SHA-256 over the record and its place. The key is in this process's memory and in a file beside
//! the directory. Who reads that file can make seals.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use hmac::{Hmac, Mac};
use log::warn;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use sha2::Sha256;

use crate::server::failure::failed;

const KEY_BYTES: usize = 32;

/// Makes and checks seals.
#[derive(Clone)]
pub struct Sealer {
    key: [u8; KEY_BYTES],
}

/// A record whose seal was checked.
#[derive(Debug)]
pub enum Unsealed<T> {
    /// As it was written.
    Whole(T),
    /// It, or its seal, was altered.
    Altered,
    /// It cannot be read.
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    #[serde(borrow)]
    record: &'a RawValue,
    seal: String,
}

impl Sealer {
    /// Reads the key of a directory, or makes one for a directory without entries.
    ///
    /// # Errors
    ///
    /// The key can neither be read nor written, it is missing and there are entries, or the system has no random
    /// numbers.
    pub fn open(directory: &Path, has_entries: bool) -> io::Result<Sealer> {
        let (beside, inside) = key_paths(directory);
        for path in [&beside, &inside] {
            if let Some(key) = read_key(path)? {
                return Ok(Sealer { key });
            }
        }
        if has_entries {
            let message = format!(
                "the key {} of its records is missing: restore it, or move the directory's content away",
                beside.display()
            );
            return Err(io::Error::new(ErrorKind::NotFound, message));
        }
        let mut key = [0; KEY_BYTES];
        if getrandom(&mut key, GetRandomFlags::empty())? != KEY_BYTES {
            return Err(io::Error::other("the system gave too few random bytes"));
        }
        match write_key(&beside, &key) {
            Ok(()) => {}
            // systemd's StateDirectory, for instance, is the only place that its service may write.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                write_key(&inside, &key)?;
                warn!(event = "storage.key_inside", path:% = inside.display();
                    "the key of the records is in the state directory itself, because {} cannot be written", beside.display());
            }
            Err(error) => return Err(failed("cannot write the key beside it")(error)),
        }
        Ok(Sealer { key })
    }

    /// The JSON of a record, sealed for this place.
    pub fn seal(&self, place: &str, record: &impl Serialize) -> Vec<u8> {
        let record = serde_json::value::to_raw_value(record).expect("records are JSON");
        let seal = to_hex(&self.mac(&[place, record.get()]));
        let mut json = serde_json::to_vec(&Sealed { record: &record, seal }).expect("records are JSON");
        json.push(b'\n');
        json
    }

    /// Reads a record that was sealed for this place.
    pub fn unseal<T: DeserializeOwned>(&self, place: &str, json: &[u8]) -> Unsealed<T> {
        let Ok(sealed) = serde_json::from_slice::<Sealed<'_>>(json) else { return Unsealed::Damaged };
        let Some(seal) = from_hex(&sealed.seal) else { return Unsealed::Altered };
        // In constant time, as for any secret.
        if self.hmac(&[place, sealed.record.get()]).verify_slice(&seal).is_err() {
            return Unsealed::Altered;
        }
        serde_json::from_str(sealed.record.get()).map_or(Unsealed::Damaged, Unsealed::Whole)
    }

    /// A digest of a text that reveals nothing of it without the key, however short the text is.
    pub fn digest(&self, name: &str, text: &str) -> String {
        to_hex(&self.mac(&["digest", name, text]))
    }

    /// The key of the digests of requests.
    pub fn request_key(&self) -> [u8; 32] {
        self.mac(&["request"])
    }

    fn mac(&self, parts: &[&str]) -> [u8; 32] {
        self.hmac(parts).finalize().into_bytes().into()
    }

    fn hmac(&self, parts: &[&str]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of every length");
        for part in parts {
            // The length of each part, so that no two lists of parts are the same bytes.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(..)")
    }
}

/// The file beside the directory, and the one in it for a service that may write nowhere else.
fn key_paths(directory: &Path) -> (PathBuf, PathBuf) {
    let mut beside = directory.as_os_str().to_owned();
    beside.push(".key");
    (beside.into(), directory.join("key"))
}

fn read_key(path: &Path) -> io::Result<Option<[u8; KEY_BYTES]>> {
    let shown = || format!("cannot read the key {}", path.display());
    match fs::read_to_string(path) {
        Ok(text) => {
            let key = from_hex(text.trim()).and_then(|key| key.try_into().ok());
            key.map(Some).ok_or_else(|| {
                io::Error::new(ErrorKind::InvalidData, format!("{}: it is not {KEY_BYTES} bytes in hexadecimal; remove it, and all earlier records count as altered", shown()))
            })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(&shown())(error)),
    }
}

fn write_key(path: &Path, key: &[u8]) -> io::Result<()> {
    // Beside its place first, because a key that is cut short would make every record useless.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    writeln!(file, "{}", to_hex(key)).and_then(|()| fs::rename(&beside, path))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::{Value, json};

    use super::*;

    fn sealer() -> (tempfile::TempDir, Sealer) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("state");
        fs::create_dir(&directory).unwrap();
        let sealer = Sealer::open(&directory, false).unwrap();
        (root, sealer)
    }

    #[test]
    fn every_alteration_of_a_record_shows() {
        let (_root, sealer) = sealer();
        let json = sealer.seal("end/1", &json!({ "status": "FAILED", "n": 1 }));
        let unsealed = |place: &str, json: &[u8]| sealer.unseal::<Value>(place, json);
        assert!(matches!(unsealed("end/1", &json), Unsealed::Whole(record) if record["n"] == 1));
        assert!(matches!(unsealed("end/2", &json), Unsealed::Altered), "it belongs to another place");
        for at in 0..json.len() - 1 {
            let mut altered = json.clone();
            altered[at] ^= 1;
            assert!(!matches!(unsealed("end/1", &altered), Unsealed::Whole(_)), "byte {at}");
        }
        for end in 0..json.len() - 2 {
            assert!(matches!(unsealed("end/1", &json[..end]), Unsealed::Damaged), "cut at {end}");
        }
    }

    #[test]
    fn the_key_is_kept_beside_the_directory_for_this_user_only() {
        let (root, sealer) = sealer();
        let again = Sealer::open(&root.path().join("state"), true).unwrap();
        assert!(matches!(again.unseal::<u8>("a", &sealer.seal("a", &7)), Unsealed::Whole(7)));
        let mode = fs::metadata(root.path().join("state.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(sealer.digest("A", "1"), sealer.digest("B", "1"));
        fs::write(root.path().join("state.key"), "short").unwrap();
        assert!(Sealer::open(&root.path().join("state"), true).unwrap_err().to_string().contains("state.key"));
        fs::remove_file(root.path().join("state.key")).unwrap();
        let missing = Sealer::open(&root.path().join("state"), true).unwrap_err().to_string();
        assert!(missing.contains("state.key") && missing.contains("missing"), "{missing}");
    }
}
