//! The head of a stream.

use http::{
    HeaderName, HeaderValue, StatusCode,
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
pub(super) fn head(inner: Option<response::Parts>) -> response::Parts {
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
