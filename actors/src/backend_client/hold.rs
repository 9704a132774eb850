//! How a gateway names its hold of an execution, so that the backend can tell a gateway that reconnects from a consumer
//! that takes over (`src/backend/holds.rs`).

use std::cell::Cell;

use crate::{
    id::{InstanceId, RequestId},
    rpc::ErrorObject,
};

/// The name under which a gateway requests an execution and follows it; each execution of a session has its own. The
/// backend uses it to distinguish a gateway that reconnects from a consumer that takes over.
#[derive(Debug)]
pub struct HoldIdentity {
    pub(super) request: RequestId,
    /// The backend's instance to which the last request for the execution was sent.
    pub(super) instance: Cell<Option<InstanceId>>,
    number: Cell<Option<u64>>,
}

impl Default for HoldIdentity {
    fn default() -> Self {
        HoldIdentity { request: RequestId::random(), instance: Cell::default(), number: Cell::default() }
    }
}

impl HoldIdentity {
    /// Records the hold's number from the first event of a stream.
    pub fn record(&self, number: Option<u64>) {
        self.number.set(number.or(self.number.get()));
    }

    /// The hold's number, known from the first event on.
    pub fn number(&self) -> Option<u64> {
        self.number.get()
    }

    /// Whether a refusal comes from a backend that was restarted after the execution was requested.
    pub fn is_gone_with_its_backend(&self, refusal: &ErrorObject) -> bool {
        let instance = refusal.data.as_ref().and_then(|data| data["instance"].as_str()?.parse().ok());
        matches!((self.instance.get(), instance), (Some(requested), Some(answering)) if requested != answering)
    }

    /// The part of a query that names the hold. Empty for a backend older than holds.
    pub(super) fn query(&self) -> String {
        match (self.number.get(), self.instance.get()) {
            (Some(number), _) => format!("&hold={number}"),
            (None, Some(_)) => format!("&request_id={}", self.request),
            (None, None) => String::new(),
        }
    }
}
