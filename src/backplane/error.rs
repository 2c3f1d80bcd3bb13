//! What can go wrong with a log.

use std::{error::Error, fmt};

use crate::BoxError;

/// What is known of a record whose append failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AppendErrorKind {
    /// The record is not in the log. The append can be repeated.
    NotSent,
    /// The record may be in the log, or may still reach it. Repeating the append may duplicate it.
    MaybeSent,
    /// The log has rejected the record, and would reject it again.
    Rejected,
    /// The log is closed for good.
    Closed,
}

/// The error of an append: the record was not appended, or may not have been.
#[derive(Debug)]
pub struct AppendError {
    kind: AppendErrorKind,
    source: Option<BoxError>,
}

impl AppendError {
    /// Returns an error of this kind, with its cause.
    pub fn new(kind: AppendErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: Some(source.into()),
        }
    }

    /// Returns what is known of the record.
    pub fn kind(&self) -> AppendErrorKind {
        self.kind
    }
}

impl From<AppendErrorKind> for AppendError {
    fn from(kind: AppendErrorKind) -> Self {
        Self { kind, source: None }
    }
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            AppendErrorKind::NotSent => "record was not sent to the log",
            AppendErrorKind::MaybeSent => "record may not have reached the log",
            AppendErrorKind::Rejected => "log has rejected the record",
            AppendErrorKind::Closed => "log is closed",
        })
    }
}

impl Error for AppendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The log could not be read.
#[derive(Debug)]
pub struct ReadError {
    is_rewritten: bool,
    source: Option<BoxError>,
}

impl ReadError {
    /// Returns an error with this cause. The reader will retry.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self {
            is_rewritten: false,
            source: Some(source.into()),
        }
    }

    /// Returns an error for a position that is no longer in the log as it was: the log is another
    /// one now.
    pub fn rewritten() -> Self {
        Self {
            is_rewritten: true,
            source: None,
        }
    }

    /// Returns whether the log is another one now.
    pub fn is_rewritten(&self) -> bool {
        self.is_rewritten
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_rewritten {
            "log has been rewritten"
        } else {
            "log could not be read"
        })
    }
}

impl Error for ReadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
