//! Reads the fields of a JSON object one by one; each error names the field.
//!
//! A field is removed when it is read. Fields that are left at the end are unknown and refused, because a client that
//! sends a parameter relies on its effect.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::{
    ErrorObject, code,
    unique::{self, UniqueFields},
};
use crate::excerpt::{Quoted, excerpt};

/// The unread fields of a JSON object.
#[derive(Debug)]
pub struct Params {
    map: Map<String, Value>,
}

impl Params {
    /// All fields of an object.
    pub fn new(map: Map<String, Value>) -> Self {
        Params { map }
    }

    /// All fields of an HTTP body.
    ///
    /// # Errors
    ///
    /// The body is not a JSON object.
    pub fn of_body(body: &[u8]) -> Result<Self, ErrorObject> {
        match serde_json::from_slice(body) {
            Ok(UniqueFields(Value::Object(map))) => Ok(Params::new(map)),
            Ok(_) => Err(ErrorObject::new(code::PARAMS, "the body must be a JSON object")),
            Err(error) if error.is_data() => Err(ErrorObject::new(code::PARAMS, unique::message_of(&error))),
            Err(error) => Err(ErrorObject::new(code::PARAMS, format!("the body is not JSON: {error}"))),
        }
    }

    /// Whether the field is there, even if it is `null`.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Takes a field. `null` counts as absent.
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

    /// Takes a boolean. An absent field is false.
    pub fn boolean(&mut self, name: &str) -> Result<bool, ErrorObject> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(ill_typed(name, "true or false", &other)),
        }
    }

    /// Takes an object, whose own fields are read next.
    pub fn object(&mut self, name: &str) -> Result<Option<Params>, ErrorObject> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Params::new(map))),
            Some(other) => Err(ill_typed(name, "an object", &other)),
        }
    }

    /// Takes a list of strings. An absent field is the empty list.
    pub fn strings(&mut self, name: &str) -> Result<Vec<String>, ErrorObject> {
        let Some(value) = self.take(name) else { return Ok(Vec::new()) };
        let refused = |other: &Value| ill_typed(name, "a list of strings", other);
        let Value::Array(items) = value else { return Err(refused(&value)) };
        let text = |item| if let Value::String(text) = item { Ok(text) } else { Err(refused(&item)) };
        items.into_iter().map(text).collect()
    }

    /// Takes a base64 string and returns its bytes.
    pub fn base64(&mut self, name: &str) -> Result<Option<Vec<u8>>, ErrorObject> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        STANDARD.decode(&text).map(Some).map_err(|_| ill_typed(name, "base64", &Value::String(text)))
    }

    /// Takes a whole number between two inclusive bounds.
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

    /// Takes a string that parses as a `T`; `expected` describes such a string in the error.
    pub fn parsed<T: std::str::FromStr>(&mut self, name: &str, expected: &str) -> Result<Option<T>, ErrorObject> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ill_typed(name, expected, &Value::String(text)))
    }

    /// Takes one of the strings in `choices` and returns its index.
    pub fn one_of(&mut self, name: &str, choices: &[&str]) -> Result<Option<usize>, ErrorObject> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        match choices.iter().position(|choice| *choice == text) {
            Some(at) => Ok(Some(at)),
            None => Err(ErrorObject::new(
                code::PARAMS,
                format!("{name} must be one of {}, not {}", choices.join(", "), Quoted(&text)),
            )
            .with(json!({ "param": name, "asked": text, "allowed": choices }))),
        }
    }

    /// Refuses the object if it has unread fields.
    pub fn finish(self) -> Result<(), ErrorObject> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(invalid(name, format!("unknown parameter {}", excerpt(name)))),
        }
    }
}

/// The error for an invalid parameter; its `data` names the parameter.
pub fn invalid(name: &str, message: impl Into<String>) -> ErrorObject {
    ErrorObject::new(code::PARAMS, message).with(json!({ "param": name }))
}

/// The error for a parameter of the wrong type.
pub fn ill_typed(name: &str, wanted: &str, got: &Value) -> ErrorObject {
    let got = got.to_string();
    invalid(name, format!("{name} must be {wanted}, not {}", excerpt(&got)))
}
