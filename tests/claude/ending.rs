//! When a run of Claude is over, and how it ended: results, turns after a result, and the deadline for the exit.

use std::{
    fs,
    time::{Duration, Instant},
};

use cc_executor_actors::outcome::{Reason, Status};
use serde_json::json;

use super::script::{
    INIT, RESULT, SHORT_EXIT_DEADLINE, SUBAGENT_MESSAGE, TASK_ENDED, TASK_STARTED, TOOL_RESULT, TOOL_USE, cat_sample,
    print_lines, result_event, service, service_with, text_event,
};
use crate::common::{PATIENCE, procs, recording::Recording, temp::TempPath, wait_until};

/// The execution has completed, and its output is the text of the first and of the second turn.
fn assert_both_turns(recording: &Recording) {
    assert_eq!(
        (recording.ending(), recording.text().as_str()),
        ((Status::Completed, Reason::Exit), "first\nsecond\n"),
        "{}",
        recording.end
    );
}

#[test]
fn claude_that_does_not_exit_after_its_result_is_ended() {
    let service = service_with(&[("CC_EXECUTOR_CLAUDE_EXIT_MS", "3000")]);
    let mark = procs::mark();
    for (line, status, reason) in [
        (RESULT, Status::Completed, Reason::Exit),
        (r#"{"is_error":true,"result":"x","type":"result"}"#, Status::Failed, Reason::ClaudeError),
    ] {
        let mut client = service.connect();
        let began_at = Instant::now();
        let command = format!("{} sleep {mark}", print_lines(&[line]));
        // The time-outs of the execution no longer apply after the result.
        let recording = client.run_claude(json!({ "command": command, "timeoutMs": 2_500, "stallTimeoutMs": 2_500 }));
        assert!(began_at.elapsed() >= Duration::from_secs(3), "it had its time for the exit: {:?}", began_at.elapsed());
        let end = &recording.end;
        assert_eq!(recording.ending(), (status, reason), "{end}");
        assert_eq!(
            (&end["exit_code"], &end["signal"], &end["cancel"]["verified"]),
            (&json!(null), &json!(null), &json!(true))
        );
        assert_eq!(procs::with_argument(&mark), Vec::<u32>::new());
    }
}

#[test]
fn claude_that_closes_its_output_without_exiting_is_ended() {
    let service = service_with(&[SHORT_EXIT_DEADLINE]);
    let mark = procs::mark();
    let task = print_lines(&TASK_STARTED);
    for (output, status, reason) in [
        (String::new(), Status::Failed, Reason::ClaudeError),
        (format!("printf %s '{RESULT}'; "), Status::Completed, Reason::Exit),
        // An open task does not count, because no event can report its end any more.
        (format!("{task} printf %s '{RESULT}'; "), Status::Completed, Reason::Exit),
    ] {
        let mut client = service.connect();
        let command = format!("{output}exec >&- 2>&-; sleep {mark}");
        // Without a heartbeat, so that the time-out of the read notices a hang.
        let recording = client.run_claude(json!({ "command": command, "heartbeatMs": 60_000 }));
        let end = &recording.end;
        assert_eq!(recording.ending(), (status, reason), "{end}");
        assert_eq!((&end["exit_code"], &end["cancel"]["verified"]), (&json!(null), &json!(true)));
        assert_eq!(end["result"].is_object(), status == Status::Completed);
        assert_eq!(procs::with_argument(&mark), Vec::<u32>::new());
    }
}

#[test]
fn last_result_of_several_turns_ends_the_run() {
    let service = service_with(&[SHORT_EXIT_DEADLINE]);
    // The task, and then the tool of the second turn, take longer than the deadline for the exit.
    let command = format!(
        "{} sleep 6; {} sleep 3; {} exit 0",
        print_lines(&[&[INIT, &text_event("interim")], &TASK_STARTED[..], &[&result_event("interim", 0.25)]].concat()),
        print_lines(&[&TASK_ENDED[..], &[INIT, TOOL_USE]].concat()),
        print_lines(&[TOOL_RESULT, &text_event("final"), &result_event("final", 0.75)]),
    );
    let recording = service.connect().run_claude(json!({ "command": command }));
    let end = &recording.end;
    assert_eq!((recording.ending(), &end["exit_code"]), ((Status::Completed, Reason::Exit), &json!(0)), "{end}");
    assert_eq!(recording.text(), "interim\na\nb\nfinal\n");
    let expected = json!({
        "text": "final", "is_error": false, "num_turns": 4, "duration_ms": 1000, "total_cost_usd": 0.75,
        "usage": { "input_tokens": 6, "service_tier": "standard", "cache": { "read": 10 } }, "session_id": "s-1",
    });
    assert_eq!(end["result"], expected);
}

#[test]
fn turn_after_a_result_needs_a_result_of_its_own() {
    let service = service_with(&[SHORT_EXIT_DEADLINE]);
    let mut client = service.connect();
    let cut = &RESULT[..RESULT.len() / 2];
    let table: [(&[&str], &str, Status, Reason); 9] = [
        // A cut result may be that of another turn, because the CLI prints one for each.
        (&[RESULT], cut, Status::Failed, Reason::ClaudeError),
        (&[RESULT, INIT, TOOL_USE], cut, Status::Failed, Reason::ClaudeError),
        (&[RESULT, &text_event("more")], "", Status::Failed, Reason::ClaudeError),
        (&[RESULT, TASK_STARTED[1]], "", Status::Failed, Reason::ClaudeError),
        (&[RESULT, INIT, RESULT], "", Status::Completed, Reason::Exit),
        (&[RESULT, RESULT], "", Status::Completed, Reason::Exit),
        // No new turn: the end of a task, and a message of a subagent that is being ended.
        (&[RESULT, TASK_ENDED[0], TASK_ENDED[1], TASK_ENDED[2]], "", Status::Completed, Reason::Exit),
        (&[RESULT, SUBAGENT_MESSAGE], "", Status::Completed, Reason::Exit),
        (
            &[RESULT, r#"{"type":"system","subtype":"of tomorrow"}"#, "no event"],
            "goodbye",
            Status::Completed,
            Reason::Exit,
        ),
    ];
    for (lines, unfinished, status, reason) in table {
        let command = format!("{} printf %s '{unfinished}'; exit 0", print_lines(lines));
        let recording = client.run_claude(json!({ "command": command }));
        assert_eq!(recording.ending(), (status, reason), "{lines:?} {unfinished:?}: {}", recording.end);
        assert_eq!(recording.end["result"].is_object(), status == Status::Completed, "{}", recording.end);
        assert_eq!(recording.end["exit_code"], 0);
    }
}

#[test]
fn time_outs_apply_to_turns_after_a_result() {
    let mark = procs::mark();
    let command = format!("{} sleep {mark}", print_lines(&[RESULT, INIT, TOOL_USE]));
    let recording =
        service_with(&[SHORT_EXIT_DEADLINE]).connect().run_claude(json!({ "command": command, "timeoutMs": 4_000 }));
    assert_eq!(recording.ending(), (Status::Failed, Reason::Timeout), "{}", recording.end);
    assert_eq!(procs::with_argument(&mark), Vec::<u32>::new());
}

#[test]
fn each_event_restarts_the_exit_deadline() {
    let more = print_lines(&[INIT, &text_event("more"), TOOL_USE, TOOL_RESULT, RESULT]);
    let service = service_with(&[("CC_EXECUTOR_CLAUDE_EXIT_MS", "5000")]);
    let command = format!("{} for n in {{1..14}}; do sleep 0.5; {more} done; exit 3", print_lines(&[RESULT]));
    let recording = service.connect().run_claude(json!({ "command": command }));
    let end = &recording.end;
    assert_eq!((recording.ending(), &end["exit_code"]), ((Status::Failed, Reason::Exit), &json!(3)), "{end}");
    assert_eq!((&end["result"]["num_turns"], &end["result"]["text"]), (&json!(2 * 15), &json!("done")));
}

#[test]
fn exit_deadline_pauses_while_output_is_not_read() {
    let service = service_with(&[SHORT_EXIT_DEADLINE]);
    // A pause longer than the deadline.
    let mut client = service.connect();
    let gate = TempPath::new("gate");
    let command = format!(
        "{} until [ -e {} ]; do sleep 0.01; done; {} exit 0",
        print_lines(&[&text_event("first"), RESULT]),
        gate.display(),
        print_lines(&[INIT, &text_event("second"), RESULT])
    );
    client.call("execute", json!({ "command": command, "executor": "claude", "heartbeatMs": 1_000 })).unwrap();
    let mut recording = Recording::of_claude();
    client.record_until(&mut recording, |recording| {
        recording.updates.last().is_some_and(|update| update.activity.is_none() && update.turns == Some(1))
    });
    client.call("control", json!({ "type": "PAUSE" })).unwrap();
    client.record_until(&mut recording, |recording| recording.with_status(Status::Paused).len() == 4);
    fs::write(&*gate, "").unwrap();
    client.call("control", json!({ "type": "RESUME" })).unwrap();
    client.record_rest(&mut recording);
    assert_both_turns(&recording);

    // More events than the ring holds, without a consumer: the backend has not read the events behind them.
    let make = r#"python3 -c "
line = '{\"type\":\"stream_event\",\"event\":\"' + 'x' * 1000 + '\"}'
for n in range(40000): print(line)
"; "#;
    let command = format!(
        "{} {make} {} exit 0",
        print_lines(&[&text_event("first"), RESULT]),
        print_lines(&[&text_event("second"), &result_event("second", 1.0)])
    );
    let id = client.execute(json!({ "command": command, "executor": "claude", "onDisconnect": "detach" }));
    let mut recording = Recording::of_claude();
    client.record_until(&mut recording, |recording| recording.stdout == b"first\n");
    client.disconnect();
    service.wait_for_event("execution.detached", 1);
    let mut stranger = service.connect();
    wait_until("nothing is read for twice the deadline", PATIENCE, || {
        let status = stranger.call("status", json!({ "executionId": id })).unwrap();
        status["sinceOutputMs"].as_u64() > Some(3_000)
    });
    assert_eq!(service.count("process.ending"), 0, "it is blocked, not silent");
    let mut client = service.connect();
    client.attach(&id, &recording).unwrap();
    client.record_rest(&mut recording);
    assert_both_turns(&recording);
    assert_eq!(recording.end["result"]["text"], "second");
}

#[test]
fn cancel_and_timeout_override_the_result_of_claude() {
    let service = service();
    let mut client = service.connect();
    let mark = procs::mark();
    let command = format!("trap '{}; exit 0' TERM; sleep {mark} & wait", cat_sample("cancelled"));
    client.call("execute", json!({ "command": command, "executor": "claude" })).unwrap();
    client.wait_for_status(Status::Running);
    // The stand-in has read its prompt when it has a child.
    procs::wait_for(&mark, 1, PATIENCE);
    client.cancel();
    let mut recording = Recording::of_claude();
    client.record_rest(&mut recording);
    assert_eq!(recording.ending(), (Status::Cancelled, Reason::Canceled), "{}", recording.end);
    assert_eq!((&recording.end["result"]["is_error"], &recording.end["exit_code"]), (&json!(false), &json!(0)));
    let recording = client.run_claude(json!({ "command": format!("sleep {mark}"), "timeoutMs": 200 }));
    assert_eq!(recording.reason(), Reason::Timeout);
}
