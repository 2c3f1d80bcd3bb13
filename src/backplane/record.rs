//! What a log holds.

use std::{borrow::Borrow, error::Error, fmt, sync::Arc};

use bytes::Bytes;

/// The name of a topic: any text of 1 to 256 bytes.
///
/// No character has a meaning of its own, to any backplane: `*`, `>`, `{x}`, dots and spaces are
/// parts of a name as letters are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(Arc<str>);

/// The longest name, in bytes.
const MAX_LEN: usize = 256;

/// A text is no topic name: it is empty, or longer than 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicError {
    len: usize,
}

impl TopicName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(len: usize) -> Result<(), TopicError> {
        if (1..=MAX_LEN).contains(&len) {
            Ok(())
        } else {
            Err(TopicError { len })
        }
    }
}

impl TryFrom<&str> for TopicName {
    type Error = TopicError;

    fn try_from(name: &str) -> Result<Self, TopicError> {
        Self::check(name.len())?;
        Ok(Self(name.into()))
    }
}

impl TryFrom<String> for TopicName {
    type Error = TopicError;

    fn try_from(name: String) -> Result<Self, TopicError> {
        Self::check(name.len())?;
        Ok(Self(name.into()))
    }
}

impl TryFrom<&String> for TopicName {
    type Error = TopicError;

    fn try_from(name: &String) -> Result<Self, TopicError> {
        name.as_str().try_into()
    }
}

impl TryFrom<&&str> for TopicName {
    type Error = TopicError;

    fn try_from(name: &&str) -> Result<Self, TopicError> {
        (*name).try_into()
    }
}

impl From<&Self> for TopicName {
    fn from(name: &Self) -> Self {
        name.clone()
    }
}

impl Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "topic name has {} bytes: the limits are 1 and {MAX_LEN}",
            self.len
        )
    }
}

impl Error for TopicError {}

impl From<std::convert::Infallible> for TopicError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// One event in a log: its topic, and its lines on the wire, without an id and without the blank
/// line at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    topic: TopicName,
    lines: Bytes,
}

impl Record {
    /// Returns a record of this topic. The lines are not checked here: a broker checks everything
    /// that it sends to clients.
    pub fn new(topic: TopicName, lines: impl Into<Bytes>) -> Self {
        let lines = lines.into();
        Self { topic, lines }
    }

    /// Returns the topic's name.
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Returns the event's lines.
    pub fn lines(&self) -> &Bytes {
        &self.lines
    }
}
