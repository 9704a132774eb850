//! Reads the fields of a JSON object one by one, and says precisely what is wrong with one.
//!
//! Every field is taken out as it is read. What is left at the end is unknown, and refused: a field
//! that does nothing is a promise not kept.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::{ErrorObject, code};

/// The fields of one object that have not been read yet.
#[derive(Debug)]
pub struct Params {
    map: Map<String, Value>,
}

impl Params {
    /// All fields of this object.
    pub fn new(map: Map<String, Value>) -> Self {
        Params { map }
    }

    /// All fields of the object that a body is.
    ///
    /// # Errors
    ///
    /// The body is not a JSON object.
    pub fn of_body(body: &[u8]) -> Result<Self, ErrorObject> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Params::new(map)),
            Ok(_) => Err(ErrorObject::new(code::PARAMS, "the body must be a JSON object")),
            Err(error) => Err(ErrorObject::new(code::PARAMS, format!("the body is not JSON: {error}"))),
        }
    }

    /// Whether there is such a field, be it `null`.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Takes a field. `null` is the same as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a string.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, ErrorObject> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(ill_typed(name, "a string", &other)),
        }
    }

    /// Takes `true` or `false`.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ErrorObject> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(ill_typed(name, "true or false", &other)),
        }
    }

    /// Takes an object, whose own fields are then to be read.
    pub fn object(&mut self, name: &str) -> Result<Option<Params>, ErrorObject> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Params::new(map))),
            Some(other) => Err(ill_typed(name, "an object", &other)),
        }
    }

    /// Takes a list of strings; absent is the empty one.
    pub fn strings(&mut self, name: &str) -> Result<Vec<String>, ErrorObject> {
        let items = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(ill_typed(name, "a list of strings", &other)),
        };
        let text = |item| match item {
            Value::String(text) => Ok(text),
            other => Err(ill_typed(name, "a list of strings", &other)),
        };
        items.into_iter().map(text).collect()
    }

    /// Takes a string of base64, and gives the bytes.
    pub fn base64(&mut self, name: &str) -> Result<Option<Vec<u8>>, ErrorObject> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        match STANDARD.decode(&text) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => Err(ill_typed(name, "base64", &Value::String(text))),
        }
    }

    /// Takes a whole number between two bounds, both allowed.
    pub fn integer(&mut self, name: &str, low: u64, high: u64) -> Result<Option<u64>, ErrorObject> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ if value.is_number() => Err(ErrorObject::new(
                code::PARAMS,
                format!("{name} must be a whole number from {low} to {high}, not {value}"),
            )
            .with(json!({ "param": name, "asked": value, "min": low, "max": high }))),
            _ => Err(ill_typed(name, "a whole number", &value)),
        }
    }

    /// Takes a string that parses as a `T`.
    pub fn parsed<T: std::str::FromStr>(&mut self, name: &str, what: &str) -> Result<Option<T>, ErrorObject> {
        match self.string(name)? {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(ill_typed(name, what, &Value::String(text))),
            },
        }
    }

    /// Takes one of these strings and gives its place in the list.
    pub fn one_of(&mut self, name: &str, choices: &[&str]) -> Result<Option<usize>, ErrorObject> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        match choices.iter().position(|choice| *choice == text) {
            Some(at) => Ok(Some(at)),
            None => Err(ErrorObject::new(
                code::PARAMS,
                format!("{name} must be one of {}, not {text:?}", choices.join(", ")),
            )
            .with(json!({ "param": name, "asked": text, "allowed": choices }))),
        }
    }

    /// Refuses whatever has not been read.
    pub fn finish(self) -> Result<(), ErrorObject> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(ErrorObject::new(code::PARAMS, format!("unknown parameter {name}")).with(json!({ "param": name })))
            }
        }
    }
}

/// The error for a field of the wrong type.
pub fn ill_typed(name: &str, wanted: &str, got: &Value) -> ErrorObject {
    let mut shown = got.to_string();
    if shown.len() > 80 {
        shown.truncate(shown.floor_char_boundary(80));
        shown.push_str(" (cut)");
    }
    ErrorObject::new(code::PARAMS, format!("{name} must be {wanted}, not {shown}")).with(json!({ "param": name }))
}
