//! Reads single fields of a JSON object: one of an unexpected shape counts as absent, and the others are still read.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

/// The fields of a JSON object; their values are not read yet.
#[derive(Deserialize, Debug)]
#[serde(transparent)]
pub(super) struct Fields<'a>(#[serde(borrow)] HashMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    /// The fields of an object; `None` if the text is not an object.
    pub(super) fn of(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// The value of a field. `null` counts as absent.
    pub(super) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.0.get(name).copied().filter(|value| value.get() != "null")
    }

    /// Reads a field as a `T`.
    pub(super) fn get<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        self.raw(name).and_then(|value| serde_json::from_str(value.get()).ok())
    }

    /// Reads a field as text.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.raw(name).and_then(string)
    }

    /// Whether a field is `true`.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.raw(name).is_some_and(|value| value.get() == "true")
    }
}

/// Reads a JSON string as text; `None` if the value is not a string. A lone surrogate becomes U+FFFD.
pub fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str::<LossyString>(raw.get()).ok().map(|text| text.0)
}

/// A string that may contain lone surrogates. JavaScript writes one where a text was cut in the middle of an emoji, and
/// `String` refuses the whole line then.
struct LossyString(String);

impl<'de> Deserialize<'de> for LossyString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = LossyString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<LossyString, E> {
                let mut text = String::with_capacity(bytes.len());
                for chunk in bytes.utf8_chunks() {
                    text.push_str(chunk.valid());
                    // The line is UTF-8, so invalid bytes are a surrogate: three bytes, the first of which is this one.
                    if chunk.invalid().first() == Some(&0xED) {
                        text.push(char::REPLACEMENT_CHARACTER);
                    }
                }
                Ok(LossyString(text))
            }
        }

        // serde_json passes invalid UTF-8 on to a reader of bytes only.
        deserializer.deserialize_byte_buf(Visitor)
    }
}
