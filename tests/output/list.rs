//! `cc-executor ps`: its columns, and which executions it lists.

use cc_executor_actors::rpc::code;
use serde_json::{Value, json};

use super::Pair;
use crate::common::{HOSTILE, is_obeyed, service::run_to_exit};

#[test]
fn ps_lists_running_executions_first_and_the_last_ended() {
    let pair = Pair::start(&[]);
    let ps = |words: &[&str]| run_to_exit(&mut pair.gateway.client_command(&[&["ps"], words].concat()));
    assert_eq!(ps(&[]).0.lines().count(), 1, "only the head");
    let long = pair.detach("echo long; sleep 1000", json!({}));
    let ended: Vec<_> = (0..12)
        .map(|at| {
            let id = pair.detach(&format!("echo {at}; exit {at}"), json!({}));
            pair.wait_for_status(&id, if at == 0 { "COMPLETED" } else { "FAILED" });
            id
        })
        .collect();
    let short = |ids: &[String]| ids.iter().map(|id| id[..8].to_owned()).collect::<Vec<_>>();
    let newest = pair.detach(&format!("sleep 1000 # {HOSTILE}"), json!({}));
    let ids =
        |table: &str| table.lines().skip(1).map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>();
    let (table, stderr, exit) = ps(&[]);
    let last_ended = ended.iter().rev().cloned();
    let expected: Vec<_> = [newest.clone(), long.clone()].into_iter().chain(last_ended).collect();
    assert_eq!((exit, ids(&table)), (0, short(&expected[..12])), "{table}");
    assert_eq!(stderr, "cc-executor: 2 more ended: list them with --all\n");
    assert!(!table.contains(is_obeyed), "{table:?}");
    let line = table.lines().find(|line| line.starts_with(&ended[11][..8])).unwrap();
    let cells: Vec<_> = line.split_ascii_whitespace().collect();
    assert_eq!((&cells[1..4], cells[5]), (["-", "FAILED", "shell"].as_slice(), "ago"), "{line}");
    assert_eq!(cells[7..], ["-", "11", "3", "echo", "11;", "exit", "11"], "{line}");
    assert_eq!(ps(&["--quiet"]).0.lines().collect::<Vec<_>>(), expected[..12], "whole ids");
    let (all, stderr, _) = ps(&["--all"]);
    assert_eq!((ids(&all), stderr), (short(&expected), String::new()));
    let listed =
        |words: &[&str]| serde_json::from_str::<Value>(&ps(words).0).unwrap()["executions"].as_array().unwrap().len();
    assert_eq!((listed(&["--json"]), listed(&["--json", "--all"])), (12, 14));
    assert_eq!(pair.gateway.get("/executions?limit=1")["total"], 14);
    let canceled = run_to_exit(&mut pair.gateway.client_command(&["cancel", &long]));
    assert_eq!(canceled.2, 0);
    assert!(
        ps(&[])
            .0
            .lines()
            .any(|line| line.starts_with(&long[..8]) && line.contains("CANCELLED") && line.contains("canceled")),
        "{}",
        ps(&[]).0
    );
    assert_eq!(pair.gateway.get("/executions?limit=0")["code"], code::PARAMS);
}
