//! The JSON Schema of the messages, made from the wire types. Clients generate their types from it.
//!
//! It states the bounds that are the same everywhere. Those that an operator sets are the `limits` of `connected`.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{
    Method, VERSION,
    notification::{
        Connected, DetachedNotice, ErrorNotice, EventNotice, FinalStatus, GapNotice, OutputNotice, StatusUpdate,
    },
};
use crate::rpc::ErrorObject;

/// Definitions with names of Rust that say nothing to a client.
const RENAMED: [(&str, &str); 5] = [
    ("HoldResult_Acceptance", "ExecuteResult"),
    ("HoldResult_Status", "AttachResult"),
    ("PerStream_uint64", "Offsets"),
    ("PerStream_Nullable_uint64", "ByteCounts"),
    ("PerStream_Nullable_string", "Digests"),
];

/// Parameters that may be left out, although this package always sends them.
const OPTIONAL: [(&str, &str); 1] = [("AttachParams", "offsets")];

/// The schema: `methods` have `params` and `result`, `notifications` their parameters, and `error` is the error of a
/// response. All of them refer to `$defs`.
pub fn document() -> Value {
    let mut schemas = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let methods: Map<String, Value> = Method::schemas(&mut schemas)
        .into_iter()
        .map(|(name, params, result)| (name.to_owned(), json!({ "params": params, "result": result })))
        .collect();
    let notifications = json!({
        "connected": schemas.subschema_for::<Connected>(),
        "statusUpdate": { "anyOf": [schemas.subschema_for::<FinalStatus>(), schemas.subschema_for::<StatusUpdate>()] },
        "output": schemas.subschema_for::<OutputNotice<'_>>(),
        "event": schemas.subschema_for::<EventNotice<'_>>(),
        "gap": schemas.subschema_for::<GapNotice>(),
        "detached": schemas.subschema_for::<DetachedNotice>(),
        "error": schemas.subschema_for::<ErrorNotice>(),
    });
    let error = schemas.subschema_for::<ErrorObject>();
    let definitions: Map<String, Value> = schemas
        .take_definitions(true)
        .into_iter()
        .map(|(name, definition)| {
            let definition = if name.ends_with("Params") { of_params(&name, definition) } else { definition };
            (public_name(&name).to_owned(), definition)
        })
        .collect();
    let mut document = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The messages of cc-executor",
        "protocol": VERSION,
        "methods": methods,
        "notifications": notifications,
        "error": error,
        "$defs": definitions,
    });
    tidy(&mut document);
    document
}

/// The name of a definition in the document.
fn public_name(name: &str) -> &str {
    RENAMED.iter().find_map(|(of_rust, renamed)| (*of_rust == name).then_some(*renamed)).unwrap_or(name)
}

/// The schema of parameters: unknown ones are refused.
fn of_params(name: &str, mut schema: Value) -> Value {
    schema["unevaluatedProperties"] = json!(false);
    if name == "ExecuteParams" {
        schema["oneOf"] = json!([{ "required": ["command"] }, { "required": ["argv"] }]);
    }
    let optional = OPTIONAL.iter().find_map(|(params, optional)| (*params == name).then_some(*optional));
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|name| Some(name.as_str().unwrap_or_default()) != optional);
    }
    schema
}

/// Adapts what schemars derives, at any depth: names of definitions, descriptions without links to Rust items, and no
/// `null` for fields that are absent instead.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(fields) => {
            if let Some(Value::String(name)) = fields.get_mut("$ref")
                && let Some((path, of_rust)) = name.rsplit_once('/')
            {
                *name = format!("{path}/{}", public_name(of_rust));
            }
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`").replace("`None`", "`null`").replace("crate::", "");
            }
            let required: Vec<Value> = fields.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
            if let Some(Value::Object(properties)) = fields.get_mut("properties") {
                for (_, property) in properties.iter_mut().filter(|(name, _)| !required.iter().any(|of| of == *name)) {
                    without_null(property);
                }
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Removes the type `null` from a schema that has another one.
fn without_null(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            fields.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
        choices.retain(|choice| choice["type"] != "null");
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            fields.remove("anyOf");
            fields.extend(only);
        }
    }
}
