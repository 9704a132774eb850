//! Checks a value against the part of JSON Schema that the service's schema uses.

use serde_json::{Value, json};

/// The first rule that the value breaks.
pub fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/$defs/").expect("a definition");
        return check(document, &document["$defs"][name], value).map_err(|error| format!("{name}: {error}"));
    }
    let fail = |rule: &str| Err(format!("{value} breaks {rule} of {schema}"));
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is_kind = |name: &Value| name == kind || (name == "number" && kind == "integer");
    let has_type = match &schema["type"] {
        Value::Null => true,
        Value::Array(names) => names.iter().any(is_kind),
        name => is_kind(name),
    };
    if !has_type {
        return fail("type");
    }
    if schema["enum"].as_array().is_some_and(|values| !values.contains(value))
        || schema.get("const").is_some_and(|only| only != value)
    {
        return fail("the values");
    }
    if let Some(number) = value.as_f64()
        && (schema["minimum"].as_f64().is_some_and(|least| number < least)
            || schema["maximum"].as_f64().is_some_and(|most| number > most))
    {
        return fail("the bounds");
    }
    if value.as_str().is_some_and(|text| schema["minLength"].as_u64().is_some_and(|least| (text.len() as u64) < least))
    {
        return fail("minLength");
    }
    let mut known: Vec<&String> = schema["properties"].as_object().into_iter().flat_map(|map| map.keys()).collect();
    for choices in ["oneOf", "anyOf"].into_iter().filter_map(|name| schema[name].as_array()) {
        let Some(choice) = choices.iter().find(|choice| check(document, choice, value).is_ok()) else {
            return fail("every choice");
        };
        known.extend(choice["properties"].as_object().into_iter().flat_map(|map| map.keys()));
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        let rule = schema["properties"].get(name).or(schema.get("additionalProperties"));
        if let Some(rule) = rule {
            check(document, rule, field).map_err(|error| format!("{name}: {error}"))?;
        }
        if schema["unevaluatedProperties"] == json!(false) && !known.contains(&name) {
            return fail(&format!("the known names, with {name},"));
        }
    }
    if let Some(name) = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|name| value.get(name.as_str().expect("a name")).is_none())
    {
        return fail(&format!("required, without {name},"));
    }
    value.as_array().into_iter().flatten().try_for_each(|item| check(document, &schema["items"], item))
}
