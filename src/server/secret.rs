//! Secrets, and the digests by which a service recognizes them.

use std::{
    fmt,
    hash::{Hash, Hasher},
    io,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The random part of a secret, in bytes.
const RANDOM_BYTES: usize = 32;

/// A secret that is never printed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A secret with this text.
    pub fn new(text: String) -> Self {
        Secret(text)
    }

    /// A new secret of 256 random bits, in the characters of base64url: 43 of them.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; RANDOM_BYTES];
        // The kernel returns this few bytes whole (getrandom(2)).
        match getrandom(&mut bytes, GetRandomFlags::empty())? {
            RANDOM_BYTES => Ok(Secret(URL_SAFE_NO_PAD.encode(bytes))),
            n => Err(io::Error::other(format!("the system gave {n} of {RANDOM_BYTES} random bytes"))),
        }
    }

    /// The text, to be sent to the service that demands it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The digest by which it is recognized.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The SHA-256 of a secret. It suffices to recognize the secret, and does not reveal it.
#[derive(Clone, Copy, Debug)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a secret, or of what a client offers as one.
    pub fn of(offered: &[u8]) -> Self {
        Fingerprint(Sha256::digest(offered).into())
    }

    /// The fingerprint with these 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Fingerprint(bytes))
    }
}

/// In constant time.
impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Fingerprint {}

impl Hash for Fingerprint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// In hexadecimal digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_secret_has_256_bits_and_is_never_the_same() {
        let secrets: Vec<_> = (0..100).map(|_| Secret::random().unwrap().reveal().to_owned()).collect();
        for secret in &secrets {
            assert_eq!(URL_SAFE_NO_PAD.decode(secret).unwrap().len(), 32, "{secret}");
        }
        let different: std::collections::HashSet<_> = secrets.iter().collect();
        assert_eq!(different.len(), 100);
    }

    #[test]
    fn a_fingerprint_is_read_back_and_compared() {
        let fingerprint = Secret::new("hello".to_owned()).fingerprint();
        let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(fingerprint.to_string(), hex);
        assert_eq!(Fingerprint::from_hex(&hex.to_uppercase()), Some(fingerprint));
        assert_ne!(fingerprint, Fingerprint::of(b"hello2"));
        for wrong in ["", &hex[1..], &hex.replace('2', "g"), &hex.replace('2', "\u{e9}")] {
            assert_eq!(Fingerprint::from_hex(wrong), None, "{wrong}");
        }
    }
}
