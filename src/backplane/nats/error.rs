//! What can go wrong when a log is set up.

use std::{error::Error, fmt};

use crate::BoxError;

/// A log was not set up.
#[derive(Debug)]
pub struct JetStreamError {
    kind: JetStreamErrorKind,
    source: Option<BoxError>,
}

/// What a [`JetStreamError`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JetStreamErrorKind {
    /// A URL is none of a NATS server.
    Url,
    /// The stream's name is empty, or has a space, a dot, a slash, `*` or `>`.
    Stream,
    /// The subject is none, or one with wildcards.
    Subject,
    /// The connection was not set up, though the server need not be there.
    Connect,
}

impl JetStreamError {
    pub(super) fn new(kind: JetStreamErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: Some(source.into()),
        }
    }

    /// What the error is about.
    pub fn kind(&self) -> JetStreamErrorKind {
        self.kind
    }
}

impl From<JetStreamErrorKind> for JetStreamError {
    fn from(kind: JetStreamErrorKind) -> Self {
        Self { kind, source: None }
    }
}

impl fmt::Display for JetStreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            JetStreamErrorKind::Url => "not a URL of a NATS server",
            JetStreamErrorKind::Stream => "not a name for a stream",
            JetStreamErrorKind::Subject => "not a subject to publish to",
            JetStreamErrorKind::Connect => "connection was not set up",
        })
    }
}

impl Error for JetStreamError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
