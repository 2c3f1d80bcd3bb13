//! The answer to a request that gets no stream, because there are too many or because of a drain.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER},
    response,
};

use crate::{
    Event,
    body::SseBody,
    connection::{Config, Refusal, RefusalReason, RequestKind},
    response::head,
};

/// A head, and a body that is there as a whole.
pub(crate) struct Refused {
    head: response::Parts,
    body: Bytes,
    is_head: bool,
}

impl Refused {
    pub(crate) fn new(reason: RefusalReason, config: &Config, kind: RequestKind) -> Self {
        let by_method = if kind.is_get {
            Refusal::RetryLater
        } else {
            Refusal::Unavailable
        };
        let (mut head, body) = match config.refusal.unwrap_or(by_method) {
            Refusal::RetryLater => retry_later(reason, config),
            Refusal::Unavailable => unavailable(reason, config),
        };
        if reason == RefusalReason::Draining && kind.is_http1 {
            // Or the client comes back on the same socket, which the shutdown waits for.
            let close = HeaderValue::from_static("close");
            head.headers.insert(CONNECTION, close);
        }
        Self {
            head,
            body,
            is_head: kind.is_head,
        }
    }

    pub(crate) fn into_response<B, F>(self) -> Response<SseBody<B, F>> {
        let body = if self.is_head {
            SseBody::head()
        } else {
            SseBody::whole(self.body)
        };
        Response::from_parts(self.head, body)
    }
}

/// A stream that ends at once. The time rides on an event: some clients would take it for an empty
/// one if it came alone.
fn retry_later(reason: RefusalReason, config: &Config) -> (response::Parts, Bytes) {
    let data = format!(r#"{{"reason":"{}"}}"#, reason.as_str());
    let event = match &config.reconnect_event {
        Some(event_type) => Event::with_type(event_type.as_str(), &data),
        None => Event::comment(&data),
    };
    let event = event.retry(config.refusal_retry());
    (head(None), event.into_bytes())
}

fn unavailable(reason: RefusalReason, config: &Config) -> (response::Parts, Bytes) {
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = StatusCode::SERVICE_UNAVAILABLE;
    // In whole seconds (RFC 9110, section 10.2.3), never less than was meant.
    let time = config.refusal_retry();
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let headers = &mut head.headers;
    headers.insert(RETRY_AFTER, seconds.into());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(CONTENT_TYPE, text);
    (head, Bytes::from(format!("{reason}\n")))
}
