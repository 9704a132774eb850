//! The parameters of the backend's routes in paths and queries. Bodies are read by the types of `backend_api`.

use std::str::FromStr;

use actix_web::http::header::HeaderMap;
use cc_executor_actors::{
    backend_api::{MAX_LISTED, SESSION_HEADER, control::read_cancel},
    excerpt::Quoted,
    id::{ExecutionId, SessionId},
    rpc::{
        ErrorObject, code,
        params::{Params, invalid},
    },
    stream::PerStream,
};
use serde_json::{Map, Value};

use crate::{
    backend::{
        holds::Claim,
        job_request::CancelOrder,
        registry::{ListQuery, Registry},
    },
    server::request_log::shown_path,
};

/// The parameters of a cancellation. The claim keeps a gateway that gives up its own request from canceling an execution
/// that another consumer has taken over.
pub(super) fn read_cancellation(
    query: Map<String, Value>,
    registry: &Registry,
) -> Result<(CancelOrder, Claim), ErrorObject> {
    let mut fields = Params::new(query);
    let (grace_ms, reason) = read_cancel(&mut fields, &registry.limits())?;
    let claim = read_claim(&mut fields)?;
    fields.finish()?;
    Ok((CancelOrder { grace_ms, reason }, claim))
}

pub(super) fn read_offsets(fields: &mut Params) -> Result<PerStream<u64>, ErrorObject> {
    let mut offset = |name| fields.parsed(name, "an offset in bytes").map(|offset| offset.unwrap_or(0));
    Ok(PerStream { stdout: offset("stdout")?, stderr: offset("stderr")? })
}

/// The claim in the query: `hold`, `request_id`, or none.
pub(super) fn read_claim(fields: &mut Params) -> Result<Claim, ErrorObject> {
    let hold = fields.parsed("hold", "the number of a hold")?;
    let request = fields.parsed("request_id", "a UUID")?;
    Ok(hold.map_or(Claim::Request(request), Claim::Number))
}

/// Whether the client that attaches has received everything before its offsets.
pub(super) fn has_arrived(fields: &mut Params) -> Result<bool, ErrorObject> {
    Ok(fields.parsed("arrived", "true or false")?.unwrap_or(true))
}

/// Whether an observer asks, which follows an execution without a hold.
pub(super) fn observes(fields: &mut Params) -> Result<bool, ErrorObject> {
    Ok(fields.parsed("observe", "true or false")?.unwrap_or(false))
}

pub(super) fn parse_id(text: &str) -> Result<ExecutionId, ErrorObject> {
    text.parse().map_err(|_| {
        let shown = shown_path(text);
        ErrorObject::new(code::PARAMS, format!("an execution's id is a UUID, not {}", Quoted(&shown)))
    })
}

/// Which part of the list is requested, and at most how many executions.
pub(super) fn read_page(query: Map<String, Value>) -> Result<(ListQuery, usize), ErrorObject> {
    let mut fields = Params::new(query);
    let limit = fields.parsed("limit", &format!("a whole number from 1 to {MAX_LISTED}"))?;
    let query = match (fields.parsed("after", "the `next` of an earlier page")?, fields.string("match")?) {
        (after, None) => ListQuery::After(after),
        (None, Some(text)) => {
            let refused = |why| invalid("match", format!("match {why}, not {}", Quoted(&text)));
            ListQuery::Matching(text.parse().map_err(refused)?)
        }
        (Some(_), Some(_)) => return Err(invalid("after", "a list of matches has one page: leave out after or match")),
    };
    fields.finish()?;
    Ok((query, limit.map_or(MAX_LISTED, |PageLimit(limit)| limit)))
}

/// How many executions a page may have.
struct PageLimit(usize);

impl FromStr for PageLimit {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().ok().filter(|limit| (1..=MAX_LISTED).contains(limit)).map(PageLimit).ok_or(())
    }
}

/// The session for which a gateway requests an execution, if it names one.
pub(super) fn session_of(headers: &HeaderMap) -> Result<Option<SessionId>, ErrorObject> {
    let Some(value) = headers.get(SESSION_HEADER) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let not_a_uuid =
        |_| ErrorObject::new(code::PARAMS, format!("{SESSION_HEADER} must be a UUID, not {}", Quoted(&text)));
    text.parse().map(Some).map_err(not_a_uuid)
}
