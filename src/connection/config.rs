//! The settings of a layer for the connections that it opens.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use super::{CloseReason, Refusal, SseConnection, outbox::Capacity};
use crate::{Event, event::EventType};

pub(crate) type OpenHook = Arc<dyn Fn(&SseConnection) + Send + Sync>;
pub(crate) type CloseHook = Arc<dyn Fn(&SseConnection, CloseReason) + Send + Sync>;
pub(crate) type WelcomeFn = Arc<dyn Fn(&SseConnection) -> Event + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) retry: Option<Duration>,
    pub(crate) welcome: WelcomeEvent,
    pub(crate) numbered: bool,
    pub(crate) hold_open: bool,
    /// Adopts the streams that the inner service produces.
    pub(crate) adopts: bool,
    pub(crate) outbox: Capacity,
    pub(crate) max_lifetime: Option<Duration>,
    /// How long a closing stream, and a handler at the end of its stream's lifetime, may take.
    pub(crate) close_timeout: Duration,
    pub(crate) stall_timeout: Option<Duration>,
    /// The type of the event that asks a client to reconnect later.
    pub(crate) reconnect_event: Option<EventType<'static>>,
    /// None: by the method.
    pub(crate) refusal: Option<Refusal>,
    /// The range from which the reconnection delay of a refused client is drawn.
    pub(crate) refusal_retry: RangeInclusive<Duration>,
    pub(crate) max_connections: Option<usize>,
    pub(crate) on_open: Option<OpenHook>,
    pub(crate) on_close: Option<CloseHook>,
}

/// The first event of a stream.
#[derive(Clone)]
pub(crate) enum WelcomeEvent {
    /// `welcome`, with the uuid.
    Uuid,
    Custom(WelcomeFn),
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keep_alive: Some(Duration::from_secs(15)),
            retry: Some(Duration::from_secs(3)),
            welcome: WelcomeEvent::Uuid,
            numbered: false,
            hold_open: false,
            adopts: false,
            outbox: Capacity {
                events: 64,
                bytes: 1 << 20,
            },
            max_lifetime: None,
            close_timeout: Duration::from_secs(10),
            stall_timeout: Some(Duration::from_secs(60)),
            reconnect_event: Some(EventType::from_static("reconnect")),
            refusal: None,
            refusal_retry: Duration::from_secs(5)..=Duration::from_secs(15),
            max_connections: None,
            on_open: None,
            on_close: None,
        }
    }
}

impl Config {
    /// Draws a reconnection delay for a refused client.
    pub(crate) fn refusal_retry(&self) -> Duration {
        between(*self.refusal_retry.start(), *self.refusal_retry.end())
    }
}

/// As good as never: longer times are cut to this, so that no sum of a moment and a time overflows.
pub(crate) const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Checks a range of delays, and limits it to [`NEVER`].
#[track_caller]
pub(crate) fn retry_range(range: RangeInclusive<Duration>) -> RangeInclusive<Duration> {
    assert!(
        range.start() <= range.end(),
        "range of retry delays is inverted"
    );
    let (start, end) = range.into_inner();
    start.min(NEVER)..=end.min(NEVER)
}

/// A random time from `min` up to `max`.
pub(super) fn between(min: Duration, max: Duration) -> Duration {
    min + max.saturating_sub(min).mul_f64(fastrand::f64())
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("keep_alive", &self.keep_alive)
            .field("retry", &self.retry)
            .field("has_welcome", &!matches!(self.welcome, WelcomeEvent::None))
            .field("numbered", &self.numbered)
            .field("hold_open", &self.hold_open)
            .field("adopts", &self.adopts)
            .field("outbox", &self.outbox)
            .field("max_lifetime", &self.max_lifetime)
            .field("close_timeout", &self.close_timeout)
            .field("stall_timeout", &self.stall_timeout)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}
