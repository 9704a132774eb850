//! `src/protocol.md` is the reference of the wire: its examples are read as the service reads them, and nothing that the
//! code can say is missing from it.

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
        status::StatusResult,
    },
    rpc,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const NOTIFICATIONS: [&str; 7] = ["connected", "statusUpdate", "output", "event", "gap", "detached", "error"];

fn source(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The examples, with the direction of each: `>` to the service, `<` from it.
fn examples() -> Vec<(char, String)> {
    let reference = source("src/protocol.md");
    let blocks = reference.split("```jsonl\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    let lines: Vec<_> = blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    lines.into_iter().map(|line| (line.chars().next().unwrap(), line[2..].to_owned())).collect()
}

/// Checks that a text which is read and written again is the same: it has every field of its type, and no other.
fn assert_same<'a, T: Serialize + Deserialize<'a>>(text: &'a str) {
    let read: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::from_str::<Value>(text).unwrap(), "{text}");
}

#[test]
fn each_example_parses_with_the_wire_types() {
    let limits = Limits::default();
    let (mut called, mut told, mut calls) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
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
                assert_same::<OutputNotice<'_>>(&message["params"].to_string());
                told.insert(method);
            }
            ('<', Some(method)) if method == "event" => {
                assert_same::<EventNotice<'_>>(&message["params"].to_string());
                told.insert(method);
            }
            ('<', method) => {
                assert_same::<ServerMessage>(&text);
                let result = message["result"].to_string();
                match method {
                    None if message.get("error").is_some() => {}
                    None => match calls[&message["id"].as_u64().unwrap()].as_str() {
                        "execute" => assert_same::<ExecuteResult>(&result),
                        "attach" => assert_same::<AttachResult>(&result),
                        "control" => assert_same::<ControlResult>(&result),
                        "input" => assert_same::<InputResult>(&result),
                        "status" => assert_same::<StatusResult>(&result),
                        _ => assert_same::<EmptyResult>(&result),
                    },
                    Some(method) => drop(told.insert(method)),
                }
            }
            _ => panic!("neither a call nor an answer: {text}"),
        }
    }
    assert_eq!(called, Method::NAMES.iter().map(|name| (*name).to_owned()).collect(), "each method has an example");
    assert_eq!(told, NOTIFICATIONS.map(str::to_owned).into(), "each notification has an example");
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
        close.lines().filter_map(|line| line.trim().strip_prefix("CloseCode::")?.split("=> ").nth(1)).collect();
    assert!(close_codes.len() > 5, "the close codes are found");
    for code in close_codes {
        assert!(has_row(code.trim_end_matches(',')), "the close code {code}");
    }
    let limits = serde_json::to_value(Limits::default()).unwrap();
    for name in limits.as_object().unwrap().keys() {
        assert!(reference.matches(&format!("`{name}`")).count() > 0, "the limit {name}");
    }
    for name in CAPABILITIES {
        assert!(reference.contains(&format!("\"{name}\"")), "the capability {name}");
    }
    // What a status, a reason and an evidence are called is in one place each.
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
