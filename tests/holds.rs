//! Who holds an execution, and with which backend it was started, is a fact that is told. It is never
//! inferred from a connection that broke, or from what another program answered meanwhile.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, Frame, Recording},
    http_proxy::{Exchange, HttpProxy},
    procs,
    proxy::{CutKind, Proxy},
    random, scale,
    service::Service,
    wait_until,
};

/// More than all sockets between a command and its client hold.
const MUCH: usize = 150_000_000;

/// A backend, and a gateway that knows it.
fn apart(env: &[(&str, &str)]) -> (Service, Service) {
    let backend = Service::with(&["backend"], env);
    let gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    (backend, gateway)
}

/// A gateway whose requests go through this proxy.
fn behind(proxy: &HttpProxy) -> Service {
    let gateway = Service::gateway(&proxy.url());
    gateway.wait_for_event("backend.up", 1);
    gateway
}

fn written(backend: &Service, id: &str) -> u64 {
    backend.get(&format!("/executions/{id}"))["offsets"]["stdout"].as_u64().unwrap_or(0)
}

/// Waits until the command cannot get rid of its output any more, or has got rid of all of it.
fn wait_until_stuck(backend: &Service, id: &str) {
    let mut before = 0;
    wait_until("nothing more is written", 3 * PATIENCE, || {
        std::thread::sleep(Duration::from_millis(200));
        let now = written(backend, id);
        let stuck = now > 1_000_000 && now == before;
        before = now;
        stuck
    });
}

/// A client stops reading, another one attaches, and the first reads on when the backend has cut its
/// gateway's connection.
fn taken_over_while_not_reading(options: &Value, env: &[(&str, &str)]) {
    let (backend, gateway) = apart(env);
    let mark = procs::mark();
    let mut execute = json!({ "command": format!("head -c {MUCH} /dev/zero | tr '\\0' x; exec sleep {mark}") });
    execute.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    let mut first = gateway.connect();
    let id = first.execute(execute);
    wait_until_stuck(&backend, &id);
    let mut second = gateway.connect();
    assert_eq!(second.call("attach", json!({ "executionId": id })).unwrap()["status"], "RUNNING");
    let mut story = Recording::default();
    assert!(!second.follow(&mut story, |story| story.stdout.len() == MUCH), "{:?}", story.detached);
    backend.wait_for_event("socket.shut_down", 1);
    let mut before = Recording::default();
    first.follow(&mut before, |story| story.stdout.len() == MUCH);
    let detached = before.detached.take().unwrap_or_else(|| panic!("{} {:?}", before.end, before.errors));
    assert_eq!(
        (&detached["reason"], &detached["offsets"]["stdout"]),
        (&json!("taken_over"), &json!(before.stdout.len()))
    );
    assert_eq!(before.errors, Vec::<Value>::new());
    // What was dropped before the takeover is said; what came after it is not this client's.
    let drops = options["overflow"] == "drop";
    assert!(before.gaps.is_empty() || drops, "{:?}", before.gaps);
    assert!(before.stdout.len() < MUCH, "the rest was the other one's");
    assert_eq!(first.call("ping", json!({})), Ok(json!({})), "its session lives");
    // Whoever has it keeps it.
    second.call("control", json!({ "type": "CANCEL" })).unwrap();
    second.follow(&mut story, |_| false);
    assert_eq!((&story.detached, &story.end["status"]), (&None, &json!("CANCELLED")), "{}", story.end);
    assert_eq!(story.end["bytes"]["stdout"], MUCH);
}

#[test]
fn client_that_reads_again_after_a_takeover_gets_detached() {
    taken_over_while_not_reading(&json!({}), &[]);
}

#[test]
fn gateway_does_not_take_back_a_detachable_execution() {
    taken_over_while_not_reading(&json!({ "onDisconnect": "detach", "overflow": "drop" }), &[]);
}

#[test]
fn gateway_does_not_take_back_an_execution_with_a_large_ring() {
    taken_over_while_not_reading(&json!({ "onDisconnect": "detach" }), &[("CC_EXECUTOR_RING_BYTES", "67108864")]);
}

#[test]
fn unexpected_health_response_does_not_end_executions() {
    let backend = Service::backend();
    let strange = Arc::new(AtomicUsize::new(0));
    let (left, target) = (Arc::clone(&strange), backend.address);
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        let one_less = |left: usize| left.checked_sub(1);
        if exchange.path == "/health" && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            return exchange.answer(200, r#"{"status":"healthy","service":"claude-api"}"#);
        }
        exchange.forward(target);
    });
    let gateway = behind(&proxy);
    let mark = procs::mark();
    let mut client = gateway.connect();
    let id = client.execute(json!({ "command": format!("echo x; exec sleep {mark}"), "cwd": "/" }));
    strange.store(1, Ordering::SeqCst);
    wait_until("the answer has come", PATIENCE, || strange.load(Ordering::SeqCst) == 0);
    // What came of it is seen at the next one, which is asked for after it has been read.
    strange.store(1, Ordering::SeqCst);
    wait_until("and once more", PATIENCE, || strange.load(Ordering::SeqCst) == 0);
    assert_eq!(gateway.connect().call("status", json!({ "executionId": id })).unwrap()["status"], "RUNNING");
    assert_eq!(client.call("control", json!({ "type": "CANCEL" })).unwrap()["status"], "CANCELLING");
    let story = client.story();
    assert_eq!((&story.end["status"], &story.end["cancel"]["verified"]), (&json!("CANCELLED"), &json!(true)));
    assert_eq!(client.run(json!({ "command": "pwd", "cwd": "/" })).stdout, b"/\n", "the next one is our own's too");
    gateway.wait_for_event("backend.down", 1);
}

#[test]
fn backend_counts_as_legacy_image_only_if_its_health_says_so() {
    let backend = Service::backend();
    let (passes, target) = (Arc::new(AtomicBool::new(false)), backend.address);
    let open = Arc::clone(&passes);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        if exchange.path != "/health" || open.load(Ordering::SeqCst) {
            return exchange.forward(target);
        }
        let answers = [r#"{"detail":"starting"}"#, r#"["status"]"#, r#"{"status":1}"#, "not JSON"];
        exchange.answer(200, answers[count.fetch_add(1, Ordering::SeqCst) % answers.len()]);
    });
    let gateway = Service::gateway(&proxy.url());
    wait_until("each answer has come", PATIENCE, || asked.load(Ordering::SeqCst) > 4);
    assert_eq!(gateway.connect().hello["executors"], json!(null), "nothing is known of it");
    assert_eq!(gateway.count("backend.up"), 0);
    passes.store(true, Ordering::SeqCst);
    gateway.wait_for_event("backend.up", 1);
    assert_eq!(gateway.connect().run(json!({ "command": "pwd", "cwd": "/" })).stdout, b"/\n");
}

/// A file to which a command adds a line each time it runs.
struct Runs(PathBuf);

impl Runs {
    fn new(name: &str) -> Runs {
        let path = std::env::temp_dir().join(format!("cc-executor-runs-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        Runs(path)
    }

    fn command(&self) -> String {
        format!("echo run >> {}; echo out", self.0.display())
    }

    fn count(&self) -> usize {
        fs::read_to_string(&self.0).unwrap_or_default().lines().count()
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn broken_request_is_not_repeated_at_a_restarted_backend() {
    let backends = [Service::backend(), Service::backend()];
    let runs = Runs::new("restart");
    let now = Arc::new(Mutex::new(backends[0].address));
    let (target, posts) = (Arc::clone(&now), AtomicUsize::new(0));
    let second = backends[1].address;
    let file = runs.0.clone();
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        let address: SocketAddr = *target.lock().unwrap();
        if !exchange.is_execute() || posts.fetch_add(1, Ordering::SeqCst) > 0 {
            return exchange.forward(address);
        }
        let mut held = exchange.send(address).expect("it listens");
        held.answered();
        // Not only begun: its connection is cut next, and it ends with that.
        wait_until("it has run", PATIENCE, || fs::read_to_string(&file).is_ok_and(|runs| runs.ends_with('\n')));
        // From now on another backend answers at this address.
        *target.lock().unwrap() = second;
        held.cut();
    });
    let gateway = behind(&proxy);
    let mut client = gateway.connect();
    let id = client.request("execute", json!({ "command": runs.command() }));
    let result = client.response(id).unwrap();
    let story = client.story();
    backends[0].wait_for_event("process.finished", 1);
    assert_eq!(runs.count(), 1, "{}", story.end);
    assert_eq!((&result["status"], &story.end["reason"]), (&json!("failed"), &json!("backend_lost")), "{}", story.end);
    let message = story.end["message"].as_str().unwrap_or_default();
    assert!(message.contains("restarted"), "{message}");
    // The next one is for the new backend.
    assert_eq!(client.run(json!({ "command": runs.command() })).stdout, b"out\n");
    assert_eq!(runs.count(), 2);
}

#[test]
fn request_refused_by_a_restarted_backend_runs_there_once() {
    let backends = [Service::backend(), Service::backend()];
    let runs = Runs::new("moved");
    let asked = Arc::new(AtomicUsize::new(0));
    let (addresses, count) = ([backends[0].address, backends[1].address], Arc::clone(&asked));
    let restarted = Arc::new(AtomicBool::new(false));
    let is_new = Arc::clone(&restarted);
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        count.fetch_add(usize::from(exchange.is_execute()), Ordering::SeqCst);
        // The gateway learns of the restart by being refused, not from the watch over its backend.
        let is_new = is_new.load(Ordering::SeqCst) && (exchange.path != "/health" || count.load(Ordering::SeqCst) > 0);
        exchange.forward(addresses[usize::from(is_new)]);
    });
    let gateway = behind(&proxy);
    let mut client = gateway.connect();
    restarted.store(true, Ordering::SeqCst);
    let story = client.run(json!({ "command": runs.command() }));
    assert_eq!((story.stdout.as_slice(), &story.end["status"]), (&b"out\n"[..], &json!("COMPLETED")), "{}", story.end);
    assert_eq!((runs.count(), asked.load(Ordering::SeqCst)), (1, 2), "it was refused first");
    assert_eq!((backends[0].count("process.started"), backends[1].count("process.started")), (0, 1));
}

/// A gateway's first POST meets a connection that dies: before it was passed on, or after.
fn repeated(after: bool) {
    let backend = Service::backend();
    let runs = Runs::new(if after { "after" } else { "before" });
    let (target, posts) = (backend.address, Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&posts);
    let kept = Mutex::new(None);
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        if !exchange.is_execute() || count.fetch_add(1, Ordering::SeqCst) > 0 {
            return exchange.forward(target);
        }
        if after {
            let mut held = exchange.send(target).expect("it listens");
            held.answered();
            *kept.lock().unwrap() = Some(held.cut());
        } else {
            exchange.cut();
        }
    });
    let gateway = behind(&proxy);
    let mut client = gateway.connect();
    let story = client.run(json!({ "command": format!("{}; sleep 0.3; echo end", runs.command()) }));
    assert_eq!(
        (story.stdout.as_slice(), &story.end["status"]),
        (&b"out\nend\n"[..], &json!("COMPLETED")),
        "{}",
        story.end
    );
    assert_eq!((runs.count(), posts.load(Ordering::SeqCst)), (1, 2));
    assert_eq!(backend.get("/executions")["executions"][0]["hold"], 1, "the repeated request is of the same holder");
}

#[test]
fn repeated_request_at_the_same_backend_runs_once() {
    repeated(false);
    repeated(true);
}

/// The gateway is told to cancel while the response to its POST is held back. `until` waits for what is to
/// have happened at the backend before; then the cancel is sent, and answered, before the response passes.
fn canceled_before_the_first_word(
    command: &str,
    until: impl Fn(&Service) + Send + Sync + 'static,
) -> (Recording, Value) {
    let backend = Arc::new(Service::backend());
    let (target, watched) = (backend.address, Arc::clone(&backend));
    let (ready, canceled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_ready, is_canceled) = (Arc::clone(&ready), Arc::clone(&canceled));
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        if exchange.method == "DELETE" {
            let mut held = exchange.send(target).expect("it listens");
            held.answered();
            is_canceled.store(true, Ordering::SeqCst);
            return held.pass();
        }
        if !exchange.is_execute() {
            return exchange.forward(target);
        }
        let mut held = exchange.send(target).expect("it listens");
        held.answered();
        until(&watched);
        is_ready.store(true, Ordering::SeqCst);
        wait_until("the cancel is answered", PATIENCE, || is_canceled.load(Ordering::SeqCst));
        held.pass();
    });
    let gateway = behind(&proxy);
    let mut client = gateway.connect();
    let execute = client.request("execute", json!({ "command": command }));
    wait_until("it has come so far", PATIENCE, || ready.load(Ordering::SeqCst));
    let canceled = client.call("control", json!({ "type": "CANCEL", "graceMs": 3000 })).unwrap();
    assert_eq!(canceled["status"], "CANCELLING");
    let result = client.response(execute).unwrap();
    let story = client.story();
    drop(backend);
    (story, result)
}

#[test]
fn cancel_before_the_first_event_of_an_ended_command_gives_its_own_ending() {
    let (story, _) =
        canceled_before_the_first_word("echo done; exit 3", |backend| backend.wait_for_event("process.finished", 1));
    assert_eq!((&story.end["status"], &story.end["exit_code"]), (&json!("FAILED"), &json!(3)), "{}", story.end);
    assert_eq!((story.stdout.as_slice(), &story.end["bytes"]["stdout"]), (&b"done\n"[..], &json!(5)));
}

#[test]
fn cancel_before_the_first_event_of_a_running_command_gives_its_output_and_ending() {
    let mark = procs::mark();
    let sleeps = mark.clone();
    let command = format!("trap 'echo bye; exit 9' TERM; echo hi; sleep {mark} & wait");
    let (story, result) =
        canceled_before_the_first_word(&command, move |_| drop(procs::wait_for(&sleeps, 1, PATIENCE)));
    assert_eq!((&story.end["status"], &story.end["exit_code"]), (&json!("CANCELLED"), &json!(9)), "{}", story.end);
    assert_eq!((story.stdout.as_slice(), &result["status"]), (&b"hi\nbye\n"[..], &json!("started")));
    assert_eq!((&story.end["cancel"]["verified"], &story.end["cancel"]["graceMs"]), (&json!(true), &json!(3000)));
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn cancel_after_a_broken_request_gives_the_commands_own_ending() {
    let backend = Service::backend();
    let (target, log) = (backend.address, Arc::new(AtomicBool::new(false)));
    let (ended, is_ended) = (Arc::clone(&log), Arc::new(AtomicBool::new(false)));
    let canceled = Arc::clone(&is_ended);
    let kept = Mutex::new(Vec::new());
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        if exchange.method == "DELETE" {
            canceled.store(true, Ordering::SeqCst);
            return exchange.forward(target);
        }
        if !exchange.is_execute() {
            return exchange.forward(target);
        }
        let mut held = exchange.send(target).expect("it listens");
        held.answered();
        ended.store(true, Ordering::SeqCst);
        wait_until("the cancel came", PATIENCE, || canceled.load(Ordering::SeqCst));
        kept.lock().unwrap().push(held.cut());
    });
    let gateway = behind(&proxy);
    let mut client = gateway.connect();
    client.request("execute", json!({ "command": "exit 3" }));
    backend.wait_for_event("process.finished", 1);
    wait_until("the response is held back", PATIENCE, || log.load(Ordering::SeqCst));
    client.call("control", json!({ "type": "CANCEL" })).unwrap();
    let story = client.story();
    assert_eq!((&story.end["status"], &story.end["exit_code"]), (&json!("FAILED"), &json!(3)), "{}", story.end);
}

/// A request to the backend as a gateway makes it: the head of the response, and the connection.
fn ask(backend: &Service, method: &str, path: &str, body: &str) -> (u16, TcpStream) {
    let mut stream = TcpStream::connect(backend.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/vnd.docker.multiplexed-stream\r\n\
         Connection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    (String::from_utf8_lossy(&status[9..]).parse().unwrap(), stream)
}

fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn backend_answers_an_old_hold_with_taken_over() {
    let backend = Service::backend();
    let id = "44444444-4444-4444-8444-444444444444";
    let body = json!({ "question": "echo x; sleep 1000", "executionId": id, "onDisconnect": "detach" }).to_string();
    let (status, first) = ask(&backend, "POST", "/execute/stream", &body);
    assert_eq!(status, 200);
    let show = || backend.get(&format!("/executions/{id}"));
    wait_until("it has written", PATIENCE, || show()["offsets"]["stdout"] == 2);
    assert_eq!(show()["hold"], 1);
    let path = |query: &str| format!("/executions/{id}/{query}");
    let (status, second) = ask(&backend, "GET", &path("stream"), "");
    assert_eq!((status, &show()["hold"]), (200, &json!(2)));
    assert!(rest(first).contains("taken_over"));
    // The first comes back for itself: it is told, and the second one stays.
    let (status, back) = ask(&backend, "GET", &path("stream?stdout=2&arrived=false&hold=1"), "");
    let said = rest(back);
    assert_eq!(status, 200, "{said}");
    assert!(said.contains(r#"{"taken_over":true}"#) && !said.contains("started"), "{said}");
    assert_eq!((&show()["hold"], &show()["attached"]), (&json!(2), &json!(true)));
    // Its acknowledgements and its withdrawal change nothing.
    assert_eq!(ask(&backend, "POST", &path("ack?stdout=2&hold=1"), "{}").0, 409);
    let (status, refusal) = ask(&backend, "DELETE", &format!("/executions/{id}?grace_ms=0&hold=1"), "");
    assert_eq!(status, 409, "{}", rest(refusal));
    assert_eq!(show()["status"], "RUNNING");
    assert_eq!(ask(&backend, "POST", &path("ack?stdout=2&hold=2"), "{}").0, 200);
    // The holder itself comes back as often as it likes.
    let (status, again) = ask(&backend, "GET", &path("stream?stdout=2&arrived=false&hold=2"), "");
    assert_eq!((status, &show()["hold"]), (200, &json!(2)));
    drop(second);
    let (status, once_more) = ask(&backend, "GET", &path("stream?stdout=2&arrived=false&hold=2"), "");
    assert_eq!((status, &show()["hold"], &show()["attached"]), (200, &json!(2), &json!(true)));
    assert!(!rest(again).contains("taken_over"));
    assert_eq!(ask(&backend, "GET", &path("stream?hold=7"), "").0, 400, "a hold that was never given");
    // Whoever names no hold acts as before.
    assert_eq!(ask(&backend, "DELETE", &format!("/executions/{id}?grace_ms=0"), "").0, 200);
    let said = rest(once_more);
    assert!(said.contains(r#""hold":2"#) && said.contains("CANCELLED"), "{said}");
}

#[test]
fn responses_name_the_instance_of_the_backend() {
    let (backend, gateway) = apart(&[]);
    let instance = backend.get("/health")["instance"].clone();
    assert_eq!(instance.as_str().map(str::len), Some(36), "{instance}");
    assert_ne!(Service::backend().get("/health")["instance"], instance);
    let mut client = gateway.connect();
    let result = client.call("execute", json!({ "command": "read x", "stdin": true })).unwrap();
    assert_eq!(result["instance"], instance, "{result}");
    let id = result["executionId"].clone();
    let mut second = gateway.connect();
    assert_eq!(second.call("attach", json!({ "executionId": id })).unwrap()["instance"], instance);
    let snapshot = backend.get(&format!("/executions/{}", id.as_str().unwrap()));
    assert_eq!((&snapshot["instance"], &snapshot["hold"]), (&instance, &json!(2)), "{snapshot}");
    second.call("input", json!({ "data": "\n" })).unwrap();
    assert_eq!(second.story().end["status"], "COMPLETED");
    let unknown = json!({ "executionId": "00000000-0000-4000-8000-000000000000" });
    let error = client.notification("detached");
    assert_eq!(error["reason"], "taken_over");
    for method in ["attach", "status"] {
        let error = client.call(method, unknown.clone()).unwrap_err();
        assert_eq!((&error["code"], &error["data"]["instance"]), (&json!(-32006), &instance), "{method}: {error}");
    }
    let body = json!({ "question": "true", "instance": "00000000-0000-4000-8000-000000000000" });
    let (status, answer) = backend.post("/execute/stream", &body);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["data"]["instance"]), (409, &instance), "{answer}");
    let body = json!({ "question": "echo it ran", "instance": instance });
    assert_eq!(backend.post("/execute/stream", &body), (200, "it ran\n".to_owned()));
}

#[test]
fn cancel_with_another_request_id_is_refused() {
    let backend = Service::backend();
    let id = "55555555-5555-4555-8555-555555555555";
    let body = |request: u64| {
        json!({
            "question": "sleep 1000", "executionId": id,
            "requestId": format!("00000000-0000-4000-8000-{request:012}"),
        })
        .to_string()
    };
    let withdraw = |request: u64| {
        ask(
            &backend,
            "DELETE",
            &format!("/executions/{id}?grace_ms=0&request_id=00000000-0000-4000-8000-{request:012}"),
            "",
        )
        .0
    };
    let (status, _first) = ask(&backend, "POST", "/execute/stream", &body(1));
    assert_eq!(status, 200);
    assert_eq!(withdraw(2), 409, "its own request never came, this one is another's");
    // The same request again is the same holder.
    let (status, _again) = ask(&backend, "POST", "/execute/stream", &body(1));
    assert_eq!((status, &backend.get(&format!("/executions/{id}"))["hold"]), (200, &json!(1)));
    let (status, _second) = ask(&backend, "POST", "/execute/stream", &body(2));
    assert_eq!((status, &backend.get(&format!("/executions/{id}"))["hold"]), (200, &json!(2)));
    assert_eq!(withdraw(1), 409);
    let (status, late) = ask(&backend, "POST", "/execute/stream", &body(1));
    let said = rest(late);
    assert!(status == 200 && said.contains(r#"{"taken_over":true}"#), "{said}");
    assert_eq!(withdraw(2), 200);
}

#[test]
fn cancel_of_an_unanswered_request_is_bounded() {
    // A backend that took the POST, and answers nothing more.
    let backend = Service::backend();
    let target = backend.address;
    let posted = Arc::new(AtomicBool::new(false));
    let is_posted = Arc::clone(&posted);
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        if exchange.path == "/health" {
            return exchange.forward(target);
        }
        let held = exchange.is_execute();
        is_posted.fetch_or(held, Ordering::SeqCst);
        std::thread::sleep(2 * PATIENCE);
        drop(exchange);
    });
    let gateway = behind(&proxy);
    let mut client = gateway.connect();
    client.request("execute", json!({ "command": "true" }));
    wait_until("it is asked for", PATIENCE, || posted.load(Ordering::SeqCst));
    let asked_at = Instant::now();
    client.call("control", json!({ "type": "CANCEL" })).unwrap();
    let story = client.story();
    assert!(asked_at.elapsed() < Duration::from_secs(12), "{:?}", asked_at.elapsed());
    assert_eq!((&story.end["status"], &story.end["cancel"]["verified"]), (&json!("CANCELLED"), &json!(false)));
}

/// Executions that are handed over at the same time.
const LANES: u64 = 4;

/// How much an execution writes for each hand-over, in bytes. Lines have ten, so that an offset says what
/// must be there.
const BYTES_A_HOLD: u64 = 200_000;

/// How a hold ended for its client.
#[derive(Clone, PartialEq, Debug)]
enum HoldEnd {
    Terminal(Value),
    Detached,
    Closed,
}

/// How a client reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pace {
    Fast,
    Slow,
    /// Not at all, until its lane is over.
    Stopped,
}

/// What one holder got: where its pieces are, and how its hold ended.
struct HoldConsumer {
    pieces: Vec<(u64, u64)>,
    end: HoldEnd,
}

/// Whether this is what the command writes from this offset on.
fn is_true(content: &[u8], from: u64) -> bool {
    let first = from / 10;
    let lines = content.len() as u64 / 10 + 2;
    let text: Vec<u8> = (first..first + lines).flat_map(|n| format!("{:09}\n", n + 1).into_bytes()).collect();
    text[(from % 10) as usize..].starts_with(content)
}

/// Reads a hold to its end. After that its session must be silent about it.
fn read_hold(mut client: Client, from: u64, pace: Pace, progress: &AtomicU64, stopped: &AtomicBool) -> HoldConsumer {
    if pace == Pace::Stopped {
        wait_until("the lane is over", 30 * PATIENCE, || stopped.load(Ordering::SeqCst));
    }
    let (mut at, mut pieces) = (from, Vec::new());
    let end = loop {
        if pace == Pace::Slow {
            // What makes it slow.
            std::thread::sleep(Duration::from_millis(2));
        }
        let message = match client.recv() {
            Frame::Text(message) => message,
            Frame::Ping(_) | Frame::Pong(_) => continue,
            Frame::Close(..) | Frame::End => break HoldEnd::Closed,
        };
        let params = &message["params"];
        match message["method"].as_str() {
            Some("output") => {
                let content = params["content"].as_str().expect("it is text").as_bytes();
                assert!(is_true(content, at), "{content:?} at {at}");
                let to = at + content.len() as u64;
                assert_eq!(params["end"], to);
                pieces.push((at, to));
                at = to;
                progress.fetch_max(at, Ordering::SeqCst);
            }
            Some("gap") => {
                assert_eq!(params["from"], at);
                at = params["to"].as_u64().unwrap();
            }
            Some("detached") => {
                assert_eq!((&params["reason"], &params["offsets"]["stdout"]), (&json!("taken_over"), &json!(at)));
                break HoldEnd::Detached;
            }
            Some("statusUpdate") if !params["reason"].is_null() => break HoldEnd::Terminal(params.clone()),
            _ => {}
        }
    };
    if end != HoldEnd::Closed {
        let ping = client.request("ping", json!({}));
        loop {
            match client.recv() {
                Frame::Text(message) if message["id"] == ping => break,
                Frame::Text(message) => panic!("after the end of a hold, {end:?}: {message}"),
                Frame::Ping(_) | Frame::Pong(_) => {}
                Frame::Close(..) | Frame::End => break,
            }
        }
    }
    HoldConsumer { pieces, end }
}

/// Lets those read on that had stopped, however their lane ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Hands one execution over so often, and gives what each holder got. The connections of all but the last
/// one may be cut, so that the end is seen.
fn hand_over(lane: u64, n: u64, doors: &[SocketAddr], gateways: &[SocketAddr]) -> Vec<HoldConsumer> {
    let mut next = random(lane + 1);
    let lines = (n + 1) * BYTES_A_HOLD / 10;
    let (progress, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _over = Over(&stopped);
        let mut holds = Vec::new();
        let mut id = Value::Null;
        for hold in 0..=n {
            let pace = if hold == n { Pace::Fast } else { [Pace::Fast, Pace::Slow, Pace::Stopped][next(3) as usize] };
            let mut from;
            let mut tries = 0;
            let client = loop {
                let ways = if hold == n { gateways } else { doors };
                let mut client = Client::connect(ways[next(ways.len() as u64) as usize]);
                from = progress.load(Ordering::SeqCst);
                let asked = if hold == 0 {
                    let command = format!("seq -f %09.0f {lines}");
                    client.call("execute", json!({ "command": command, "onDisconnect": "detach", "heartbeatMs": 5000 }))
                } else {
                    let offsets = json!({ "stdout": from, "stderr": 0 });
                    client.call("attach", json!({ "executionId": id, "offsets": offsets }))
                };
                match asked {
                    Ok(result) => {
                        id = result["executionId"].clone();
                        break client;
                    }
                    // The way to the backend was cut while it was asked.
                    Err(error) if error["code"] == -32010 && tries < 20 => tries += 1,
                    Err(error) => panic!("lane {lane}, hold {hold}: {error}"),
                }
            };
            let (progress, stopped) = (&progress, &stopped);
            holds.push(scope.spawn(move || read_hold(client, from, pace, progress, stopped)));
            let until = from + next(BYTES_A_HOLD);
            wait_until("its reader has read so far, or cannot", 3 * PATIENCE, || {
                pace == Pace::Stopped
                    || progress.load(Ordering::SeqCst) >= until
                    || holds.last().is_some_and(|hold| hold.is_finished())
            });
        }
        stopped.store(true, Ordering::SeqCst);
        holds.into_iter().map(|hold| hold.join().expect("its reader is content")).collect()
    })
}

#[test]
fn handovers_lose_no_byte_and_end_each_hold_once() {
    let n = scale(60, 1_000) as u64 / LANES;
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_RING_BYTES", "262144")]);
    let cut = |seed: u64, at_least: u64| {
        move |connection: usize| {
            let mut next = random(seed * 100_000 + connection as u64);
            let how = if next(2) == 0 { CutKind::Fin } else { CutKind::Reset };
            (next(3) == 0).then(|| (at_least + next(400_000), how))
        }
    };
    let ways: Vec<_> = (0..2).map(|way| Proxy::start(backend.address, cut(way + 1, 2_000))).collect();
    let gateways: Vec<_> = ways.iter().map(|way| Service::gateway(&format!("http://{}", way.address))).collect();
    gateways.iter().for_each(|gateway| gateway.wait_for_event("backend.up", 1));
    // A session is open and its execution attached after less than that.
    let doors: Vec<_> =
        gateways.iter().zip(3..).map(|(gateway, seed)| Proxy::start(gateway.address, cut(seed, 20_000))).collect();
    let doors_at: Vec<_> = doors.iter().map(|door| door.address).collect();
    let gateways_at: Vec<_> = gateways.iter().map(|gateway| gateway.address).collect();
    let (through, past) = (&doors_at, &gateways_at);
    let lanes: Vec<_> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|lane| scope.spawn(move || hand_over(lane, n, through, past))).collect();
        lanes.into_iter().map(|lane| lane.join().expect("the lane is over")).collect()
    });
    let total = (n + 1) * BYTES_A_HOLD;
    let mut ends = [0; 3];
    for (lane, holds) in lanes.iter().enumerate() {
        let mut pieces: Vec<_> = holds.iter().flat_map(|hold| hold.pieces.clone()).collect();
        pieces.sort_unstable();
        let reached =
            pieces.iter().fold(0, |reached, (from, to)| if *from <= reached { reached.max(*to) } else { reached });
        for hold in holds {
            match &hold.end {
                HoldEnd::Detached => ends[0] += 1,
                HoldEnd::Closed => ends[1] += 1,
                HoldEnd::Terminal(end) => {
                    ends[2] += 1;
                    assert_eq!(
                        (&end["status"], &end["bytes"]["stdout"]),
                        (&json!("COMPLETED"), &json!(total)),
                        "{end}"
                    );
                }
            }
        }
        let last = holds.last().map(|hold| &hold.end);
        assert!(matches!(last, Some(HoldEnd::Terminal(_))), "lane {lane}: {last:?}");
        assert_eq!(reached, total, "lane {lane}: some bytes reached nobody");
    }
    println!("{} hand-overs: {} detached, {} closed, {} ended", n * LANES, ends[0], ends[1], ends[2]);
    assert!(ends[0] > 0 && ends[1] > 0, "there were hand-overs and cuts: {ends:?}");
}
