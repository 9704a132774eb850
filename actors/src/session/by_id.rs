//! Requests by id, for an execution that the session does not hold, and the responses to control requests.

use actix::Addr;
use log::info;
use serde_json::{Value, json};

use super::phase::ByIdRequest;
use crate::{
    backend_client::{BackendClient, BackendError},
    client::ClientName,
    id::{ExecutionId, SessionId},
    protocol::{
        EmptyResult,
        control::{ControlReply, ControlRequest, ControlResult},
        input::InputResult,
        notification::FinalStatus,
        status::StatusResult,
    },
    rpc::ErrorObject,
    supervisor::{CancelExecution, Supervisor},
};

/// The result of a control request, as the client gets it.
pub(super) fn control_result(execution_id: ExecutionId, reply: ControlReply) -> Value {
    match reply {
        ControlReply::Status(status) => json!(ControlResult { execution_id, status }),
        ControlReply::Accepted(accepted) => json!(InputResult { accepted }),
        ControlReply::Done => json!(EmptyResult {}),
    }
}

/// Sends a request for an execution that the session does not hold. A cancellation goes to the client's session of this
/// gateway that holds it, if there is one; everything else goes to the backend, which knows whose execution it is.
pub(super) async fn request_by_id(
    backend: BackendClient,
    supervisor: Addr<Supervisor>,
    session: SessionId,
    client: ClientName,
    id: ExecutionId,
    request: ByIdRequest,
) -> Result<Value, ErrorObject> {
    match request {
        ByIdRequest::Control(request) => {
            if let ControlRequest::Cancel { grace_ms, .. } = request {
                let cancel = CancelExecution { execution_id: id, client, grace_ms };
                if let Ok(Some(answer)) = supervisor.send(cancel).await {
                    return answer.map(|reply| control_result(id, reply));
                }
                info!(event = "cancel.requested", session_id:% = session, execution_id:% = id, grace_ms = grace_ms;
                    "cancellation is requested from the backend");
            }
            let reply = backend.control(id, request).await.map_err(BackendError::into_error)?;
            Ok(control_result(id, reply))
        }
        ByIdRequest::Status => {
            let snapshot = backend.snapshot(id).await.map_err(BackendError::into_error)?;
            Ok(json!(match snapshot.ending {
                Some(ending) => StatusResult::Ended(FinalStatus { execution_id: id, ending }),
                None => StatusResult::Other(Box::new(snapshot)),
            }))
        }
    }
}
