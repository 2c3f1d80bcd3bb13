//! What a layer sets for the connections that it opens.

use std::{fmt, sync::Arc, time::Duration};

use super::{CloseReason, Refusal, SseConnection, outbox::Capacity};
use crate::{Event, event::EventType};

pub(crate) type OpenHook = Arc<dyn Fn(&SseConnection) + Send + Sync>;
pub(crate) type CloseHook = Arc<dyn Fn(&SseConnection, CloseReason) + Send + Sync>;
pub(crate) type WelcomeFn = Arc<dyn Fn(&SseConnection) -> Event + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) retry: Option<Duration>,
    pub(crate) welcome: Welcome,
    pub(crate) numbered: bool,
    pub(crate) hold_open: bool,
    /// Takes over the streams that the inner service makes.
    pub(crate) adopts: bool,
    pub(crate) outbox: Capacity,
    pub(crate) max_lifetime: Option<Duration>,
    /// How long a stream that is closing, and a handler at the end of its life, may take.
    pub(crate) grace: Duration,
    pub(crate) stall_timeout: Option<Duration>,
    /// The type of the last event of a stream that the client is to come back for later.
    pub(crate) reconnect_event: Option<EventType<'static>>,
    /// None: by the method.
    pub(crate) refusal: Option<Refusal>,
    /// Between which times the reconnection times of refusals are.
    pub(crate) refusal_retry: (Duration, Duration),
    pub(crate) max_connections: Option<usize>,
    pub(crate) on_open: Option<OpenHook>,
    pub(crate) on_close: Option<CloseHook>,
}

/// The first event of a stream.
#[derive(Clone)]
pub(crate) enum Welcome {
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
            welcome: Welcome::Uuid,
            numbered: false,
            hold_open: false,
            adopts: false,
            outbox: Capacity {
                events: 64,
                bytes: 1 << 20,
            },
            max_lifetime: None,
            grace: Duration::from_secs(10),
            stall_timeout: Some(Duration::from_secs(60)),
            reconnect_event: Some(EventType::from_static("reconnect")),
            refusal: None,
            refusal_retry: (Duration::from_secs(5), Duration::from_secs(15)),
            max_connections: None,
            on_open: None,
            on_close: None,
        }
    }
}

impl Config {
    /// A reconnection time for a client that is refused.
    pub(crate) fn refusal_retry(&self) -> Duration {
        let (least, most) = self.refusal_retry;
        between(least, most)
    }
}

/// Added to a time, this does not overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A random time from `least` on, and up to `most`.
pub(super) fn between(least: Duration, most: Duration) -> Duration {
    least + most.saturating_sub(least).mul_f64(fastrand::f64())
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("keep_alive", &self.keep_alive)
            .field("retry", &self.retry)
            .field("has_welcome", &!matches!(self.welcome, Welcome::None))
            .field("numbered", &self.numbered)
            .field("hold_open", &self.hold_open)
            .field("adopts", &self.adopts)
            .field("outbox", &self.outbox)
            .field("max_lifetime", &self.max_lifetime)
            .field("grace", &self.grace)
            .field("stall_timeout", &self.stall_timeout)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}
