//! Commands that attack their guards: the shim, and the subreaper behind it. Whatever they do, they end in time, leave no
//! process, and no ending claims more than was proved.

mod inheritance;
mod shim;
mod subreaper;

use serde_json::Value;

use crate::common::client::Client;

/// Sends a command that may attack its guards before it is reported as started.
fn begin(client: &mut Client, params: Value) {
    let result = client.call("execute", params).unwrap();
    assert!(["started", "queued", "failed"].contains(&result["status"].as_str().unwrap_or_default()), "{result}");
}
