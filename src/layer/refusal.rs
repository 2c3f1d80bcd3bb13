//! The answer to a request that gets no stream, because there are too many or because of a drain.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER},
};

use super::headers::head;
use crate::{
    Event,
    connection::{Config, Refusal, RefusalReason, RequestKind},
    trace,
};

/// What a request gets in place of a stream.
pub(super) fn refusal(
    reason: RefusalReason,
    config: &Config,
    kind: RequestKind,
) -> Response<Bytes> {
    trace::refused(reason.as_str());
    let by_method = if kind.is_get {
        Refusal::RetryLater
    } else {
        Refusal::Unavailable
    };
    let mut response = match config.refusal.unwrap_or(by_method) {
        Refusal::RetryLater => retry_later(reason, config),
        Refusal::Unavailable => unavailable(reason, config),
    };
    if reason == RefusalReason::Draining && kind.is_http1 {
        // Or the client comes back on the same socket, which the shutdown waits for.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

/// A stream that ends at once. The time rides on an event: some clients would take it for an empty
/// one if it came alone.
fn retry_later(reason: RefusalReason, config: &Config) -> Response<Bytes> {
    let data = format!(r#"{{"reason":"{}"}}"#, reason.as_str());
    let event = match &config.reconnect_event {
        Some(event_type) => Event::with_type(event_type.as_str(), &data),
        None => Event::comment(&data),
    };
    let event = event.retry(config.refusal_retry());
    Response::from_parts(head(None), event.into_bytes())
}

fn unavailable(reason: RefusalReason, config: &Config) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(format!("{reason}\n")));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    // In whole seconds (RFC 9110, section 10.2.3), never less than was meant.
    let time = config.refusal_retry();
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, seconds.into());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(CONTENT_TYPE, text);
    response
}
