//! `attach` with `observe`: a session follows an execution beside the one that holds it, and neither the execution nor its
//! holder notices.

mod bounds;
mod command_line;
mod follow;
mod many;
mod requests;

use cc_executor_actors::rpc::ErrorObject;
use serde_json::{Value, json};

use crate::common::{PATIENCE, client::Client, service::Service, wait_until};

/// Observes an execution from its beginning.
fn observe(client: &mut Client, id: &str) -> Result<Value, ErrorObject> {
    client.call("attach", json!({ "executionId": id, "observe": true }))
}

/// A session that observes an execution.
fn observer(service: &Service, id: &str) -> Client {
    let mut client = service.connect();
    let result = observe(&mut client, id).expect("it may observe");
    assert_eq!(result["observe"], true, "{result}");
    client
}

/// Waits until an execution has this many observers.
fn wait_for_observers(backend: &Service, id: &str, n: u64) {
    wait_until(&format!("{n} observers"), PATIENCE, || {
        backend.get(&format!("/executions/{id}"))["observers"].as_u64().unwrap_or(0) == n
    });
}
