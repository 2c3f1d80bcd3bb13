//! What is told to `tracing`, with feature "tracing"; nothing at all without it.
//!
//! Fields hold numbers and the crate's own words only: nothing that a client has sent.

#[cfg(feature = "tracing")]
pub(crate) use on::{Trace, refused, skipped};

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{Trace, refused, skipped};

#[cfg(feature = "tracing")]
mod on {
    use tracing::{Span, debug, debug_span, span::Entered, warn};
    use uuid::Uuid;

    /// The span of one connection.
    #[derive(Debug)]
    pub(crate) struct Trace(Span);

    impl Trace {
        pub(crate) fn connection(uuid: &Uuid) -> Self {
            Self(debug_span!("sse_connection", %uuid))
        }

        /// Makes it the current one, while a handler is polled.
        pub(crate) fn enter(&self) -> Entered<'_> {
            self.0.enter()
        }

        pub(crate) fn opened(&self) {
            debug!(parent: &self.0, "event stream opened");
        }

        pub(crate) fn closed(&self, reason: &'static str, events: u64, bytes: u64) {
            debug!(parent: &self.0, reason, events, bytes, "event stream closed");
        }

        pub(crate) fn gap(&self, reason: &'static str, missed: Option<u64>) {
            debug!(parent: &self.0, reason, missed, "gap announced");
        }
    }

    pub(crate) fn refused(reason: &'static str) {
        debug!(reason, "event stream refused");
    }

    pub(crate) fn skipped(what: &'static str, all: u64) {
        warn!(all, "{what}");
    }
}

#[cfg(not(feature = "tracing"))]
mod off {
    use uuid::Uuid;

    #[derive(Debug)]
    pub(crate) struct Trace;

    pub(crate) struct Entered;

    impl Trace {
        pub(crate) fn connection(_: &Uuid) -> Self {
            Self
        }

        pub(crate) fn enter(&self) -> Entered {
            Entered
        }

        pub(crate) fn opened(&self) {}

        pub(crate) fn closed(&self, _: &'static str, _: u64, _: u64) {}

        pub(crate) fn gap(&self, _: &'static str, _: Option<u64>) {}
    }

    pub(crate) fn refused(_: &'static str) {}

    pub(crate) fn skipped(_: &'static str, _: u64) {}
}
