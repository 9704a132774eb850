//! The output of executions over HTTP: `GET /executions/{id}/output/{stream}` of backend and gateway, `cc-executor output`
//! and the table of `ps`.

mod access;
mod command_line;
mod growing;
mod list;
mod lost;
mod ranges;

use std::fs;

use serde_json::{Value, json};

use crate::common::{PATIENCE, service::Service, temp, wait_until};

/// A backend and its gateway.
struct Pair {
    backend: Service,
    gateway: Service,
}

impl Pair {
    /// A backend with these further arguments.
    fn start(arguments: &[&str]) -> Pair {
        let backend = Service::with(&[&["backend"], arguments].concat(), &[]);
        let gateway = Service::gateway(&backend.url());
        Pair { backend, gateway }
    }

    /// With the output on disk, and with it in memory only.
    fn of_both_kinds() -> [(&'static str, Pair); 2] {
        let directory = temp::directory("output");
        let on_disk = Pair::start(&["--state-dir", directory.to_str().unwrap()]);
        [("disk", on_disk), ("ring", Pair::start(&["--state-dir", "none"]))]
    }

    /// Starts a command that continues without a client.
    fn detach(&self, command: &str, more: Value) -> String {
        let mut params = json!({ "command": command, "onDisconnect": "detach" });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut client = self.gateway.connect();
        let id = client.execute(params);
        client.disconnect();
        id
    }

    fn wait_for_status(&self, id: &str, status: &str) {
        let path = format!("/executions/{id}");
        wait_until(&format!("{id} is {status}"), PATIENCE, || self.backend.get(&path)["status"] == status);
    }

    /// Runs a command to its end, without a client that receives its output.
    fn run(&self, command: &str, more: Value) -> String {
        let id = self.detach(command, more);
        self.wait_for_status(&id, "COMPLETED");
        id
    }

    /// The output's URL at the backend and at the gateway.
    fn urls(&self, id: &str, stream: &str) -> [String; 2] {
        [&self.backend, &self.gateway].map(|service| format!("{}/executions/{id}/output/{stream}", service.url()))
    }
}

/// What `seq N` writes.
fn numbers(n: u32) -> Vec<u8> {
    (1..=n).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

/// The file of a stream in a state directory.
fn file_of(directory: &std::path::Path, id: &str) -> std::path::PathBuf {
    let file = directory.join("executions").join(id).join("stdout");
    assert!(fs::metadata(&file).is_ok(), "{}", file.display());
    file
}
