//! What a layer sets for the connections that it opens.

use std::{fmt, sync::Arc, time::Duration};

use super::{CloseReason, SseConnection, outbox::Capacity};
use crate::Event;

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
    pub(crate) outbox: Capacity,
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
            outbox: Capacity {
                events: 64,
                bytes: 1 << 20,
            },
            on_open: None,
            on_close: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("keep_alive", &self.keep_alive)
            .field("retry", &self.retry)
            .field("has_welcome", &!matches!(self.welcome, Welcome::None))
            .field("numbered", &self.numbered)
            .field("hold_open", &self.hold_open)
            .field("outbox", &self.outbox)
            .finish_non_exhaustive()
    }
}
