//! The one rule: whether an answer starts a stream, is adopted as one, or passes through.

use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};

use super::handler::Answer;
use crate::connection::{Acceptance, CloseReason};

/// What becomes of an answer that was given before the start.
pub(super) fn acceptance<B, E>(answer: &Result<Answer<B>, E>, adopts: bool) -> Acceptance {
    match answer {
        Ok(Answer::Response(response)) => {
            let (status, headers) = (response.status(), response.headers());
            if adopts && is_event_stream(status, headers) {
                Acceptance::Adopted
            } else if may_become_stream(status, headers) {
                Acceptance::Maybe
            } else {
                Acceptance::No(CloseReason::Declined)
            }
        }
        Ok(Answer::Accepted) => Acceptance::Yes,
        Ok(Answer::Refused(_)) => Acceptance::No(CloseReason::Declined),
        Err(_) => Acceptance::No(CloseReason::Failed),
    }
}

/// Whether an answer is an event stream that can be read.
fn is_event_stream(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_readable = headers
        .get(CONTENT_ENCODING)
        .is_none_or(|it| it.as_bytes().eq_ignore_ascii_case(b"identity"));
    status == StatusCode::OK && has_type(headers, "text/event-stream") && is_readable
}

/// Whether an answer may be made a stream: a 200 that is neither one already nor gRPC's, which
/// answers unknown paths and refused calls with 200 as well.
fn may_become_stream(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_grpc = || headers.contains_key("grpc-status") || has_type(headers, "application/grpc");
    status == StatusCode::OK && !has_type(headers, "text/event-stream") && !is_grpc()
}

/// Whether the content type starts like this, as in `application/grpc+proto`.
fn has_type(headers: &HeaderMap, start: &str) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let value = value.as_bytes();
    value.len() >= start.len() && value[..start.len()].eq_ignore_ascii_case(start.as_bytes())
}
