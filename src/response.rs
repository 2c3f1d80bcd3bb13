//! The head of a stream, and which answers are none.

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{self, CONTENT_TYPE},
    response,
};

/// What an inner response says of its own body, or of its connection: none of it is true of the
/// stream.
const NOT_OF_THE_STREAM: [HeaderName; 13] = [
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::TRANSFER_ENCODING,
    header::ETAG,
    header::LAST_MODIFIED,
    header::ACCEPT_RANGES,
    // Illegal in HTTP/2.
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("content-md5"),
];

/// The head of a stream, with what the inner response says beyond.
pub(crate) fn head(inner: Option<response::Parts>) -> response::Parts {
    let mut head = inner.unwrap_or_else(|| http::Response::new(()).into_parts().0);
    head.status = StatusCode::OK;
    // One that came from elsewhere may have another. A server that finds 1.0 here ends the stream by
    // closing the connection, and nobody can tell a broken one from a finished one.
    head.version = http::Version::default();
    for name in NOT_OF_THE_STREAM {
        head.headers.remove(name);
    }
    let headers = &mut head.headers;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-store, no-transform"),
    );
    // nginx would hold events back to fill its buffer.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    head
}

/// Whether an answer may be made a stream: a 200 that is neither one already nor gRPC's, which
/// answers unknown paths and refused calls with 200 as well.
pub(crate) fn may_become_stream(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_grpc = || headers.contains_key("grpc-status") || has_type(headers, "application/grpc");
    status == StatusCode::OK && !has_type(headers, "text/event-stream") && !is_grpc()
}

/// Whether the content type starts like this, as in `application/grpc+proto`.
pub(crate) fn has_type(headers: &HeaderMap, start: &str) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let value = value.as_bytes();
    value.len() >= start.len() && value[..start.len()].eq_ignore_ascii_case(start.as_bytes())
}
