//! How much a broker keeps, and what it does at the bounds.

use std::time::Duration;

use super::BrokerError;
use crate::event::{EventType, check::are_of_one_event};

/// What each topic keeps of its events, for those who come back and for those who are slow. The
/// tightest bound counts.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_sse::broker::History;
///
/// let history = History::default()
///     .events(100)
///     .bytes(64 * 1024)
///     .age(Duration::from_secs(600));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a history does nothing until a broker has it"]
pub struct History {
    pub(super) events: usize,
    pub(super) bytes: usize,
    pub(super) age: Duration,
}

impl Default for History {
    /// 1,024 events, 1 MiB, one hour.
    fn default() -> Self {
        Self {
            events: 1024,
            bytes: 1 << 20,
            age: Duration::from_secs(3600),
        }
    }
}

impl History {
    /// Keeps this many events of each topic, at least one: a live subscriber reads from there too.
    pub fn events(mut self, events: usize) -> Self {
        self.events = events.max(1);
        self
    }

    /// Keeps this many bytes of each topic. An event counts with its frame and 128 bytes more; the
    /// latest one is kept whatever its size.
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Keeps events for this long.
    pub fn age(mut self, age: Duration) -> Self {
        self.age = age;
        self
    }
}

/// What happens to a subscriber that is so slow that its topic has dropped events which it has not
/// had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SlowConsumer {
    /// It gets a `gap` event that says how many it has missed, and goes on with what there is.
    #[default]
    Announce,
    /// Its stream ends, with [`CloseReason::SlowConsumer`](crate::CloseReason::SlowConsumer). The
    /// client comes back, and is told of the gap then.
    Disconnect,
}

#[derive(Clone, Debug)]
pub(super) struct BrokerSettings {
    pub(super) history: History,
    /// A bound in bytes for all topics together.
    pub(super) bytes: usize,
    /// How many records can be told from rewritten ones.
    pub(super) window: usize,
    pub(super) slow_consumer: SlowConsumer,
    pub(super) gap_event: EventType<'static>,
    pub(super) position_event: EventType<'static>,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        Self {
            history: History::default(),
            bytes: 64 << 20,
            window: 1 << 16,
            slow_consumer: SlowConsumer::Announce,
            gap_event: EventType::from_static("gap"),
            position_event: EventType::from_static("position"),
        }
    }
}

impl BrokerSettings {
    /// Whether an event of this type would be taken for one of the crate's own.
    pub(super) fn check_type(&self, event_type: &str) -> Result<(), BrokerError> {
        if self.is_control(event_type) {
            return Err(BrokerError::control_event(event_type));
        }
        Ok(())
    }

    /// Whether clients may be given these lines, which anybody may have written.
    pub(super) fn admits_lines(&self, lines: &[u8]) -> bool {
        are_of_one_event(lines, |event_type| !self.is_control(event_type))
    }

    fn is_control(&self, event_type: &str) -> bool {
        let control = [
            self.gap_event.as_str(),
            self.position_event.as_str(),
            "welcome",
            "reconnect",
        ];
        control.contains(&event_type)
    }
}
