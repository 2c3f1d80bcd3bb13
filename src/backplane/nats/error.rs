//! What can go wrong when a log is set up.

use std::{error::Error, fmt, path::PathBuf};

use crate::BoxError;

/// A log in JetStream was not set up: its URL, its name, its subject or a file will not do.
///
/// A server that cannot be reached is no such error: see
/// [`JetStream::connect`](super::JetStream::connect).
#[derive(Debug)]
pub struct ConnectError {
    kind: NatsErrorCause,
    source: Option<BoxError>,
}

#[derive(Debug)]
pub(super) enum NatsErrorCause {
    Url,
    Stream,
    Subject,
    Client,
    /// With certificates, a key or credentials.
    File(PathBuf),
}

impl ConnectError {
    pub(super) fn new(kind: NatsErrorCause, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: Some(source.into()),
        }
    }
}

impl From<NatsErrorCause> for ConnectError {
    fn from(kind: NatsErrorCause) -> Self {
        Self { kind, source: None }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            NatsErrorCause::Url => "not the URL of a NATS server",
            NatsErrorCause::Stream => {
                "name of the stream is empty or too long, or has a space, a dot, a slash or a \
                 wildcard in it"
            }
            NatsErrorCause::Subject => "not a subject that can be published to",
            NatsErrorCause::Client => "connection was not set up",
            NatsErrorCause::File(file) => return write!(f, "file {} will not do", file.display()),
        })
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
