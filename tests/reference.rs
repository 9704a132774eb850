//! `src/protocol.md` is the reference of the wire: its examples parse with the wire types, and it has every code, limit and
//! name that the code can send. Messages are raw JSON here, because the text of the reference is what is tested.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use cc_executor_actors::{
    protocol::{
        CAPABILITIES, EmptyResult, Limits, Method,
        attach::AttachResult,
        control::ControlResult,
        execute::ExecuteResult,
        input::InputResult,
        notification::{EventNotice, OutputNotice, ServerMessage},
        schema,
        status::StatusResult,
    },
    rpc,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::common::json_schema;

const NOTIFICATIONS: [&str; 7] = ["connected", "statusUpdate", "output", "event", "gap", "detached", "error"];

fn source(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The examples, each with its direction: `>` to the service, `<` from it.
fn examples() -> Vec<(char, String)> {
    let reference = source("src/protocol.md");
    let blocks = reference.split("```jsonl\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    let lines: Vec<_> = blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    lines.into_iter().map(|line| (line.chars().next().unwrap(), line[2..].to_owned())).collect()
}

/// Checks that a text has every field of its type and no other, by reading and writing it.
fn assert_round_trip<'a, T: Serialize + Deserialize<'a>>(text: &'a str) {
    let read: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::from_str::<Value>(text).unwrap(), "{text}");
}

#[test]
fn each_example_parses_with_the_wire_types() {
    let limits = Limits::default();
    let (mut called, mut notified, mut calls) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for (direction, text) in examples() {
        let message: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(message["jsonrpc"], "2.0", "{text}");
        let method = message["method"].as_str().map(str::to_owned);
        match (direction, method) {
            ('>', Some(method)) => {
                let call = rpc::parse(&text).unwrap_or_else(|response| panic!("{text}: {response:?}"));
                Method::parse(call, &limits).unwrap_or_else(|error| panic!("{text}: {error}"));
                calls.insert(message["id"].as_u64().unwrap(), method.clone());
                called.insert(method);
            }
            ('<', Some(method)) if method == "output" => {
                assert_round_trip::<OutputNotice<'_>>(&message["params"].to_string());
                notified.insert(method);
            }
            ('<', Some(method)) if method == "event" => {
                assert_round_trip::<EventNotice<'_>>(&message["params"].to_string());
                notified.insert(method);
            }
            ('<', method) => {
                assert_round_trip::<ServerMessage>(&text);
                let result = message["result"].to_string();
                match method {
                    None if message.get("error").is_some() => {}
                    None => match calls[&message["id"].as_u64().unwrap()].as_str() {
                        "execute" => assert_round_trip::<ExecuteResult>(&result),
                        "attach" => assert_round_trip::<AttachResult>(&result),
                        "control" => assert_round_trip::<ControlResult>(&result),
                        "input" => assert_round_trip::<InputResult>(&result),
                        "status" => assert_round_trip::<StatusResult>(&result),
                        "resize" | "ack" | "ping" => assert_round_trip::<EmptyResult>(&result),
                        other => panic!("name the response type of {other} here"),
                    },
                    Some(method) => drop(notified.insert(method)),
                }
            }
            _ => panic!("neither a call nor an answer: {text}"),
        }
    }
    assert_eq!(called, Method::NAMES.iter().map(|name| (*name).to_owned()).collect(), "each method has an example");
    assert_eq!(notified, NOTIFICATIONS.map(str::to_owned).into(), "each notification has an example");
}

#[test]
fn each_example_is_valid_by_the_schema() {
    let document = schema::document();
    let mut calls = BTreeMap::new();
    for (_, text) in examples() {
        let message: Value = serde_json::from_str(&text).unwrap();
        let empty = json!({});
        let (schema, value) = match (message["method"].as_str(), message.get("result"), message.get("error")) {
            (Some(method), ..) if NOTIFICATIONS.contains(&method) => {
                (&document["notifications"][method], &message["params"])
            }
            (Some(method), ..) => {
                calls.insert(message["id"].as_u64().unwrap(), method.to_owned());
                (&document["methods"][method]["params"], message.get("params").unwrap_or(&empty))
            }
            (None, Some(result), _) => {
                (&document["methods"][&calls[&message["id"].as_u64().unwrap()]]["result"], result)
            }
            (None, None, Some(error)) => (&document["error"], error),
            (None, None, None) => panic!("neither a call nor an answer: {text}"),
        };
        json_schema::check(&document, schema, value).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    for (method, wrong) in [
        ("execute", json!({})),
        ("execute", json!({ "command": "" })),
        ("execute", json!({ "command": "x", "timeoutMs": 0 })),
        ("execute", json!({ "command": "x", "unknown": 1 })),
        ("execute", json!({ "command": "x", "onDisconnect": "stay" })),
        ("control", json!({ "type": "STOP" })),
        ("control", json!({ "type": "SIGNAL", "signal": "SIGSTOP" })),
        ("resize", json!({ "rows": 0, "cols": 80 })),
        ("attach", json!({ "offsets": { "stdout": 0, "stderr": 0 } })),
    ] {
        let params = &document["methods"][method]["params"];
        assert!(json_schema::check(&document, params, &wrong).is_err(), "{method} {wrong}");
    }
    let attach = json!({ "executionId": "6ec7228c-d379-4fde-80f3-2ecd0860b58b" });
    json_schema::check(&document, &document["methods"]["attach"]["params"], &attach).unwrap();
}

#[test]
fn every_code_limit_and_name_is_documented() {
    let reference = source("src/protocol.md");
    let has_row = |what: &str| reference.lines().any(|line| line.starts_with(&format!("| {what} |")));
    for line in source("actors/src/rpc.rs").lines() {
        let Some(code) = line.trim().strip_prefix("pub const ").and_then(|rest| rest.split(" = ").nth(1)) else {
            continue;
        };
        if let Some(code) = code.strip_suffix(';').filter(|code| code.starts_with("-32")) {
            assert!(has_row(code), "the error code {code}");
        }
    }
    let close = source("actors/src/close.rs");
    let close_codes: Vec<_> =
        close.lines().filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = ")).collect();
    assert!(close_codes.len() > 5, "the close codes are found");
    for (_, code) in close_codes {
        assert!(has_row(code), "the close code {code}");
    }
    let limits = serde_json::to_value(Limits::default()).unwrap();
    for name in limits.as_object().unwrap().keys() {
        assert!(reference.matches(&format!("`{name}`")).count() > 0, "the limit {name}");
    }
    for name in CAPABILITIES {
        assert!(reference.contains(&format!("\"{name}\"")), "the capability {name}");
    }
    // The names of statuses, reasons and kinds of evidence.
    let outcome = source("actors/src/outcome.rs");
    let names: Vec<_> = outcome
        .lines()
        .filter_map(|line| {
            let (variant, name) = line.trim().split_once(" => \"")?;
            ["Reason::", "Status::", "Evidence::"]
                .iter()
                .any(|of| variant.starts_with(of))
                .then(|| name.trim_end_matches("\","))
        })
        .collect();
    assert!(names.len() > 20, "the names are found");
    for name in names {
        assert!(reference.contains(&format!("`{name}`")), "{name}");
    }
}
