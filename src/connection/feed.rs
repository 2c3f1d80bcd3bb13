//! How a connection holds its source back, and lets it flow.
//!
//! 1. A source's events wait until it is live: when whoever subscribed says so, or once nobody
//!    holds it and the handler has answered.
//! 2. Everything that was sent before that moment goes out before the source's first event.

use std::sync::Arc;

use super::{
    shared::Shared,
    source::{AttachError, Source},
    state::GoLive,
};

/// A connection's source, and what it waits for.
pub(super) struct Feed {
    pub(super) source: Arc<dyn Source>,
    /// Subscriptions that hold its events back.
    pub(super) holds: usize,
    pub(super) is_live: bool,
    /// How many events must have been taken from the outbox before its first: those that were sent
    /// while it was held back.
    pub(super) gate: u64,
}

/// Holds a source's events back. Dropped, it lets them through once the handler has answered.
pub(crate) struct Hold {
    shared: Arc<Shared>,
    is_done: bool,
}

impl Hold {
    /// Of a source that has been held for it.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            is_done: false,
        }
    }

    /// Lets the events through now, whoever else holds them.
    pub(crate) fn live(mut self) {
        self.is_done = true;
        self.shared.release_source(true);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.is_done {
            self.shared.release_source(false);
        }
    }
}

impl Shared {
    /// Takes a source, which is held back.
    pub(super) fn attach(&self, source: Arc<dyn Source>) -> Result<(), AttachError> {
        let mut state = self.lock();
        if let Some(reason) = state.closing {
            return Err(AttachError::Closed(reason));
        }
        if self.config.numbered {
            return Err(AttachError::Numbered);
        }
        if state.feed.is_some() {
            return Err(AttachError::OtherSource);
        }
        state.feed = Some(Feed {
            source,
            holds: 1,
            is_live: false,
            gate: 0,
        });
        Ok(())
    }

    pub(super) fn source(&self) -> Option<Arc<dyn Source>> {
        let state = self.lock();
        state.feed.as_ref().map(|feed| Arc::clone(&feed.source))
    }

    /// Holds the source back, if there is one. It makes no difference once it is live.
    pub(super) fn hold_source(&self) {
        if let Some(feed) = &mut self.lock().feed {
            feed.holds += 1;
        }
    }

    /// Lets go of the source: its events flow from now on if that is asked for, or once nobody
    /// holds it and the handler has answered.
    pub(super) fn release_source(&self, goes_live: bool) {
        let mut state = self.lock();
        let has_handler = state.has_handler;
        let Some(feed) = &mut state.feed else {
            return;
        };
        feed.holds -= 1;
        let is_released = feed.holds == 0 && !has_handler;
        if goes_live || is_released {
            let live = state.go_live();
            drop(state);
            self.went_live(live);
        }
    }

    pub(super) fn went_live(&self, live: Option<GoLive>) {
        let Some(live) = live else {
            return;
        };
        live.source.go_live(live.nothing_was_sent);
        // Taken now, not before: the body may have looked at the source in between, and slept.
        let reader = self.lock().reader.take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}
