//! Floods of cheap requests by one client, beside another client that works.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use cc_executor_actors::{id::ExecutionId, rpc::code};
use serde_json::json;

use crate::common::{
    PATIENCE,
    backend_caller::{BackendCaller, backend_with_token},
    scale,
    service::{Service, run_to_exit},
    wait_until,
};

/// How many executions a page lists.
const PAGE: usize = 200;

/// The number of clients that send a flood.
const N_FLOODS: usize = 4;

/// A flood that is under way.
#[derive(Default)]
struct Flood {
    is_over: AtomicBool,
    /// Requests that were answered.
    n_answered: AtomicUsize,
}

impl Flood {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn count(&self, n: usize) {
        self.n_answered.fetch_add(n, Ordering::Relaxed);
    }

    fn n_answered(&self) -> usize {
        self.n_answered.load(Ordering::Relaxed)
    }
}

/// The median time of a request alone, and while [`N_FLOODS`] threads repeat another one without a pause.
fn median_times(send_flood: impl Fn(&Flood) + Sync, mut request: impl FnMut()) -> [Duration; 2] {
    let n_requests = scale(15, 100);
    let mut median = || {
        let mut times: Vec<Duration> = (0..n_requests)
            .map(|_| {
                let began = Instant::now();
                request();
                began.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    };
    let alone = median();
    let flood = Flood::default();
    let beside = thread::scope(|scope| {
        for _ in 0..N_FLOODS {
            scope.spawn(|| send_flood(&flood));
        }
        let _over = OverOnDrop(&flood);
        wait_until("the flood is answered", PATIENCE, || flood.n_answered() >= N_FLOODS);
        let before = flood.n_answered();
        let beside = median();
        let n_answered = flood.n_answered() - before;
        assert!(n_answered >= n_requests, "{n_answered} requests of the flood beside {n_requests} of another client");
        beside
    });
    [alone, beside]
}

/// A client that sends requests one after the other until the flood is over. Each answer has one of these statuses.
fn flood_by<'a>(
    caller: BackendCaller<'a>,
    expected: &'a [u16],
    request: impl Fn() -> String + Sync + 'a,
) -> impl Fn(&Flood) + Sync + 'a {
    move |flood| {
        let requests = std::iter::repeat_with(&request).take_while(|_| !flood.is_over());
        for status in caller.ask_on_one_connection(requests) {
            assert!(expected.contains(&status), "{status}");
            flood.count(1);
        }
    }
}

/// Ends the flood, also if the test fails.
struct OverOnDrop<'a>(&'a Flood);

impl Drop for OverOnDrop<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn cancels_of_unknown_ids_do_not_delay_another_client() {
    let backend = backend_with_token(&[]);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    let cancel = || format!("DELETE /executions/{}", ExecutionId::random());
    let [alone, beside] =
        median_times(flood_by(alice, &[404, 429], cancel), || assert_eq!(bob.ask("GET /executions").0, 200));
    assert!(beside < alone + Duration::from_millis(50), "{beside:?}, alone {alone:?}");
}

#[test]
fn cancels_of_unknown_ids_by_sessions_do_not_delay_another_session() {
    /// How many cancellations a session sends before it reads the answers.
    const BATCH: usize = 100;
    let service = Service::start();
    let flood = |flood: &Flood| {
        let mut client = service.connect();
        while !flood.is_over() {
            for _ in 0..BATCH {
                client.notify("control", json!({ "type": "CANCEL", "executionId": ExecutionId::random() }));
            }
            for _ in 0..BATCH {
                client.notification("error");
            }
            flood.count(BATCH);
        }
    };
    let mut other = service.connect();
    let ask = || {
        let status = other.call("status", json!({ "executionId": ExecutionId::random() }));
        assert_eq!(status.unwrap_err().code, code::UNKNOWN_EXECUTION);
    };
    let [alone, beside] = median_times(flood, ask);
    assert!(beside < alone + Duration::from_millis(50), "{beside:?}, alone {alone:?}");
}

#[test]
fn ids_canceled_before_their_requests_are_bounded() {
    let backend = backend_with_token(&[]);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    let ids = |n: usize| (0..n).map(|_| format!("DELETE /executions/{}", ExecutionId::random()));
    assert_eq!(bob.ask_on_one_connection(ids(1)).collect::<Vec<_>>(), [404]);
    let statuses: Vec<u16> = thread::scope(|scope| {
        let lanes: Vec<_> =
            (0..4).map(|_| scope.spawn(|| alice.ask_on_one_connection(ids(3_500)).collect::<Vec<_>>())).collect();
        lanes.into_iter().flat_map(|lane| lane.join().unwrap()).collect()
    });
    let accepted = statuses.iter().filter(|status| **status == 404).count();
    assert_eq!(accepted, 12_288, "three quarters of 16384, because another client has one");
    assert!(statuses.iter().all(|status| matches!(status, 404 | 429)), "no promise that it cannot keep");
    let (status, error) = alice.ask(&format!("DELETE /executions/{}", ExecutionId::random()));
    assert_eq!((status, &error["code"], &error["data"]["scope"]), (429, &json!(code::FULL), &json!("client")));
    assert_eq!(bob.ask_on_one_connection(ids(2)).collect::<Vec<_>>(), [404, 404]);
}

#[test]
fn executions_are_listed_in_pages() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    let mut running = gateway.connect();
    let newest_running = running.execute(json!({ "command": "sleep 1000" }));
    let n_ended = 2 * PAGE + 50;
    for _ in 0..n_ended {
        assert_eq!(backend.post("/execute/stream", &json!({ "question": "true" })).0, 200);
    }
    for service in [&backend, &gateway] {
        let (mut seen, mut sizes, mut after) = (Vec::new(), Vec::new(), String::new());
        loop {
            let page = service.get(&format!("/executions{after}"));
            let executions = page["executions"].as_array().unwrap();
            sizes.push(executions.len());
            seen.extend(executions.iter().map(|execution| execution["executionId"].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            after = format!("?after={next}");
        }
        assert_eq!(sizes, [PAGE, PAGE, 51]);
        assert_eq!(seen[0], newest_running, "what has not ended comes first");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), n_ended + 1, "each once");
        assert_eq!(service.get("/executions?limit=3")["executions"].as_array().unwrap().len(), 3);
        for (query, param) in [("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit"), ("after=x", "after")]
        {
            let error = service.get(&format!("/executions?{query}"));
            assert_eq!((&error["code"], &error["data"]["param"]), (&json!(code::PARAMS), &json!(param)), "{query}");
        }
        assert_eq!(service.get("/executions?lim=3")["code"], code::PARAMS);
    }
    let (table, stderr, code) = run_to_exit(&mut gateway.client_command(&["ps", "--all"]));
    assert_eq!((code, table.lines().count()), (0, n_ended + 2), "a head and every execution: {stderr}");
    let (json, stderr, code) = run_to_exit(&mut gateway.client_command(&["ps", "--all", "--json"]));
    let list: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, list["executions"].as_array().unwrap().len()), (0, n_ended + 1), "{stderr}");
}

#[test]
fn lists_do_not_delay_another_clients_executions() {
    let executions = scale(600, 4_096);
    let backend = backend_with_token(&[]);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    let run = |caller: BackendCaller<'_>| assert_eq!(caller.run(&json!({ "question": "echo x" })).status, 200);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..executions / 4).for_each(|_| run(alice)));
        }
    });
    let [alone, beside] = median_times(flood_by(alice, &[200], || "GET /executions".to_owned()), || run(bob));
    assert!(beside < 5 * alone + Duration::from_millis(50), "{beside:?}, alone {alone:?}");
}

#[test]
fn positions_in_a_long_queue_are_told_and_cost_little() {
    let queued = scale(400, 4_000);
    let arguments = ["--max-executions", "1", "--max-queued", &(2 * queued).to_string()];
    let backend = backend_with_token(&arguments);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    let gate = bob.detach("sleep 1000", &[]);
    let ids: Vec<_> = (0..queued).map(|_| alice.detach("sleep 1000", &[])).collect();
    let position = |id: &String| alice.ask(&format!("GET /executions/{id}")).1["position"].as_u64();
    assert_eq!((position(&ids[0]), position(&ids[queued - 1])), (Some(1), Some(queued as u64)));
    let began = Instant::now();
    let canceled = ids[1..].iter().take(queued / 2);
    let statuses = alice
        .ask_on_one_connection(canceled.map(|id| format!("DELETE /executions/{id}?grace_ms=0")))
        .collect::<Vec<_>>();
    assert!(statuses.iter().all(|status| *status == 200));
    let each = began.elapsed() / statuses.len() as u32;
    assert!(each < Duration::from_millis(20), "{each:?} for each cancellation");
    wait_until("the last has moved up", PATIENCE, || position(&ids[queued - 1]) == Some((queued - queued / 2) as u64));
    bob.ask(&format!("DELETE /executions/{gate}"));
}
