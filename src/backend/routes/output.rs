//! `GET /executions/{id}/output/{stream}`: the output of one stream as a file, also while it grows, with `Range`, `ETag`
//! and the conditions of RFC 9110.
//!
//! A response states its length, and has exactly the bytes that its head names. If they are lost while it is sent, it is
//! cut, so that a client never takes a part for the whole.

mod body;
mod places;

use std::ops::Range;

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    body::SizedStream,
    http::{
        Method, StatusCode,
        header::{self, ETag, EntityTag, Header, IfNoneMatch},
    },
    web,
};
use cc_executor_actors::{
    backend_api::{EXECUTION_STATUS_HEADER, FIRST_BYTE_HEADER},
    rpc::{ErrorObject, code},
    stream::Stream,
};
use futures_util::stream;
use serde_json::json;

use self::body::{PartSource, read_part};
pub use self::places::ReadingPlaces;
use super::{control::ask, params::parse_id};
use crate::{
    backend::{
        byte_range::{ByteRange, ByteSelection},
        job_request::{JobRequest, ReadableOutput},
        registry::Registry,
    },
    server::{caller::Caller, download::DownloadBody, refused::Refused},
};

/// Answers with the output of a stream, or with a part of it.
pub(super) async fn read(
    request: HttpRequest,
    path: web::Path<(String, Stream)>,
    caller: Caller,
    (registry, places): (web::Data<Registry>, web::Data<ReadingPlaces>),
) -> Result<HttpResponse, Refused> {
    let (id, stream) = path.into_inner();
    let id = parse_id(&id)?;
    let view = ask(&registry, &caller, id, |answer| JobRequest::ViewOutput(stream, answer)).await?;
    let tag = view.sha256.as_ref().map(|sha256| EntityTag::new_strong(sha256.clone()));
    if tag.as_ref().is_some_and(|tag| client_has(&request, tag)) {
        return Ok(head_of(StatusCode::NOT_MODIFIED, &view, tag).finish());
    }
    let (written, there) = (view.extent.written, view.extent.there.clone());
    let selected = range_of(&request, tag.as_ref()).map(|range| range.select(written, &there));
    let (status, part) = match selected.unwrap_or(ByteSelection::Whole) {
        ByteSelection::Whole if there == (0..written) => (StatusCode::OK, there),
        ByteSelection::Whole => return Ok(refused(StatusCode::GONE, &view, tag)),
        ByteSelection::Unsatisfiable => return Ok(refused(StatusCode::RANGE_NOT_SATISFIABLE, &view, tag)),
        ByteSelection::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
    };
    let mut response = head_of(status, &view, tag);
    response.content_type("application/octet-stream");
    if let Some(range) = content_range(&part, status, &view) {
        response.insert_header((header::CONTENT_RANGE, range));
    }
    let length = part.end - part.start;
    if request.method() == Method::HEAD {
        return Ok(response.body(SizedStream::new(length, stream::empty::<Result<_, Refused>>())));
    }
    let patience = registry.config().consumer_stall;
    let place = places.into_inner().take(caller.clone().client())?;
    let source = PartSource { stream, file: view.extent.file, id, caller, registry, _place: place };
    source.check(&part).await?;
    let body = DownloadBody::new(&request, patience, read_part(source, part));
    Ok(response.body(SizedStream::new(length, body)))
}

/// Whether the client has this representation already.
fn client_has(request: &HttpRequest, tag: &EntityTag) -> bool {
    request.headers().contains_key(header::IF_NONE_MATCH)
        && match IfNoneMatch::parse(request) {
            Ok(IfNoneMatch::Any) => true,
            Ok(IfNoneMatch::Items(known)) => known.iter().any(|known| known.weak_eq(tag)),
            Err(_) => false,
        }
}

/// The range that the request asks for. Only GET has one (RFC 9110 section 14.2), and one with a condition only for the
/// representation that the condition names (section 13.1.5).
fn range_of(request: &HttpRequest, tag: Option<&EntityTag>) -> Option<ByteRange> {
    let mut ranges = request.headers().get_all(header::RANGE);
    let (range, other) = (ranges.next()?, ranges.next());
    if request.method() != Method::GET || other.is_some() {
        return None;
    }
    if let Some(condition) = request.headers().get(header::IF_RANGE) {
        let named: EntityTag = condition.to_str().ok()?.parse().ok()?;
        tag.filter(|tag| tag.strong_eq(&named))?;
    }
    ByteRange::parse(range.to_str().ok()?)
}

/// The head that every response about a stream has.
fn head_of(status: StatusCode, view: &ReadableOutput, tag: Option<EntityTag>) -> HttpResponseBuilder {
    let mut response = HttpResponse::build(status);
    response
        .insert_header((header::ACCEPT_RANGES, "bytes"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        // A cache must ask again, because the output grows and is forgotten.
        .insert_header((header::CACHE_CONTROL, "private, no-cache"))
        .insert_header((EXECUTION_STATUS_HEADER, view.status.as_str()))
        .insert_header((FIRST_BYTE_HEADER, view.extent.there.start));
    if let Some(tag) = tag {
        response.insert_header(ETag(tag));
    }
    response
}

/// The place of a part in the stream, whose length is not known while the execution runs. Also of the whole while it
/// runs, which tells a reader that more may follow.
fn content_range(part: &Range<u64>, status: StatusCode, view: &ReadableOutput) -> Option<String> {
    let length = match view.status.is_final() {
        true if status == StatusCode::OK => return None,
        true => view.extent.written.to_string(),
        false => "*".to_owned(),
    };
    (!part.is_empty()).then(|| format!("bytes {}-{}/{length}", part.start, part.end - 1))
}

/// The refusal of bytes that are not there: of a range, or of the whole.
fn refused(status: StatusCode, view: &ReadableOutput, tag: Option<EntityTag>) -> HttpResponse {
    let (written, there) = (view.extent.written, &view.extent.there);
    let message = if there.is_empty() && written > 0 {
        format!(
            "all {written} bytes of this output are gone: the backend keeps only a part of what no client has fetched"
        )
    } else if status == StatusCode::GONE {
        let bytes = if there.start > 0 { format!("0 to {}", there.start) } else { format!("from {} on", there.end) };
        format!(
            "bytes {bytes} of this output are gone: request the rest with the header `Range: bytes={}-{}`",
            there.start,
            there.end - 1
        )
    } else {
        format!("the requested bytes are not there: this output has bytes {} to {}", there.start, there.end)
    };
    let data = json!({ "param": "Range", "first": there.start, "end": there.end, "written": written });
    let mut response = head_of(status, view, tag);
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        response.insert_header((header::CONTENT_RANGE, format!("bytes */{written}")));
    }
    response.json(ErrorObject::new(code::PARAMS, message).with(data))
}
