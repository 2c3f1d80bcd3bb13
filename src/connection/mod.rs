//! Connections: one open event stream each.
//!
//! A [`SseConnection`] is a handle to send with and to close; [`Connections`] is the registry of
//! all that are open.
//!
//! # The life of a connection
//!
//! A connection is opened with the request, and counts from then on. Its stream *starts* when the
//! inner service answers `200 OK`, or at the first event sent (or
//! [`start`](SseConnection::start)), whichever comes first. It ends for one [`CloseReason`], the
//! first that there is: then [`closed`](SseConnection::closed) resolves, the hooks run, once,
//! whatever the way out, and it counts no more.
//!
//! It comes to its end by time, too: at the end of its life
//! ([`max_lifetime`](crate::SseLayer::max_lifetime), [`close_at`](SseConnection::close_at)), or by a
//! [drain](Connections::drain). A stream whose handler has answered is closed then: what is queued
//! goes out, and it ends cleanly. A handler that still runs is told, by
//! [`ending`](SseConnection::ending). It may go on sending, and finish; at a deadline it is cut, and
//! the stream breaks off.
//!
//! A server does not poll the body of a client that takes nothing. So it is the registry that ends,
//! without the body, what takes too long: a stream from which nothing was taken for the layer's
//! [`stall_timeout`](crate::SseLayer::stall_timeout), and one that does not get to its end within
//! the [`close_timeout`](crate::SseLayer::close_timeout), or the drain's deadline. This needs a
//! Tokio runtime.
//!
//! # The outbox
//!
//! What is sent waits in a bounded queue (64 events and 1 MiB, unless the layer says otherwise)
//! for the server to take it. A server takes events while its socket takes bytes, and a kernel
//! takes some megabytes ahead of a client that reads slowly: that an event was taken does not say
//! that it has arrived.
//!
//! Room in the outbox goes to waiting senders in the order in which they came.

mod close;
mod config;
mod drain;
mod ending;
mod error;
mod feed;
mod limits;
mod link;
mod outbox;
mod reader;
mod registry;
mod sending;
mod shared;
mod source;
mod state;
mod stats;
mod ticker;
mod values;
mod wheel;

pub use close::CloseReason;
pub use drain::{Drain, Drained};
pub use error::{ClosedError, SendError, StreamError, TrySendError};
pub use limits::{LimitError, Refusal, RefusalReason};
pub use registry::Connections;
pub use stats::ConnectionStats;

pub(crate) use config::{Config, NEVER, WelcomeEvent, retry_range};
pub(crate) use error::StreamErrorKind;
pub(crate) use feed::Hold;
pub(crate) use limits::{KeyMaker, LimitKey};
#[cfg(all(feature = "serve", feature = "test-util"))]
pub use link::DirectProbe;
#[cfg(feature = "serve")]
pub(crate) use link::Link;
pub(crate) use outbox::Capacity;
pub(crate) use reader::Reader;
pub(crate) use shared::{Acceptance, RequestInfo, RequestKind};
pub(crate) use source::{AttachError, Batch, Source, SourceWaker};

use std::{any::Any, fmt, future::Future, pin::pin, sync::Arc};

use futures_core::Stream;
use uuid::Uuid;

use self::{sending::Sending, shared::Shared};
use crate::{BoxError, Event};

/// A handle on one event stream: to send events with, and to close it.
///
/// The layer puts it into the extensions of each request that is its own. It is cheap to clone,
/// and can be kept and used anywhere: after the handler has answered the stream stays open for as
/// long as a handle is left.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_sse::{Event, SseConnection};
///
/// async fn clock(sse: SseConnection) -> Result<(), tower_sse::Error> {
///     loop {
///         sse.send(Event::message("tick")).await?; // an error: the stream is closed
///         tokio::time::sleep(Duration::from_secs(1)).await;
///     }
/// }
/// ```
pub struct SseConnection {
    shared: Arc<Shared>,
    /// Whether this handle keeps the stream open: those that are lent to hooks and predicates
    /// do not.
    is_counted: bool,
}

impl SseConnection {
    /// The connection's name. It is no credential: do not let clients act on it alone.
    pub fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    /// A parameter that was captured by the layer's path pattern, percent-decoded (or as it stood
    /// in the path, where it does not decode to UTF-8).
    ///
    /// Under a pattern of `/rooms/{room}/events`, `param("room")` of `/rooms/blue/events` is
    /// `blue`.
    pub fn param(&self, name: &str) -> Option<&str> {
        let params = &self.shared.request.params;
        let (_, value) = params.iter().find(|(key, _)| **key == *name)?;
        Some(value)
    }

    /// The place of a client that comes back: its `Last-Event-ID`.
    ///
    /// None where the header is absent, empty, given twice or no UTF-8 text.
    pub fn last_event_id(&self) -> Option<&str> {
        self.shared.request.last_event_id.as_deref()
    }

    // ===== sending =====

    /// Sends an event, waiting for room in the outbox. Starts the stream.
    ///
    /// In a handler that runs inside the response body, this is where it waits for a client that
    /// does not read.
    ///
    /// # Errors
    ///
    /// Returns [`SendError::Closed`] if the connection is closed, also while this waits, and
    /// [`SendError::HasId`] if the event has an id and the connection is subscribed with a broker.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the event has not been sent, and the place
    /// among the waiting senders goes to the next.
    pub fn send(&self, event: Event) -> impl Future<Output = Result<(), SendError>> + Send {
        Sending {
            shared: &self.shared,
            event: Some(event),
            ticket: None,
        }
    }

    /// Sends an event if there is room in the outbox and no other sender waits for it. Starts the
    /// stream.
    ///
    /// # Errors
    ///
    /// Returns [`TrySendError::Full`] if there is no room, and [`TrySendError::Refused`] for the
    /// causes of [`send`](Self::send).
    pub fn try_send(&self, event: Event) -> Result<(), TrySendError> {
        self.shared.try_send(event)
    }

    /// Sends the events of a stream, waiting for room in the outbox before each, until it ends.
    ///
    /// An `Err` item fails this stream, see [`fail`](Self::fail): the client must not take it for
    /// a finished one. So does an event that is refused because of its id.
    ///
    /// # Errors
    ///
    /// If the connection is closed, an `Err` item included. The event that could not be sent is
    /// lost.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped while it waits for room, the event that it had taken from the
    /// stream is lost.
    pub async fn send_all<S, E>(&self, events: S) -> Result<(), ClosedError>
    where
        S: Stream<Item = Result<Event, E>>,
        E: Into<BoxError>,
    {
        let mut events = pin!(events);
        while let Some(item) = std::future::poll_fn(|cx| events.as_mut().poll_next(cx)).await {
            match item {
                Ok(event) => match self.send(event).await {
                    Ok(()) => {}
                    Err(SendError::Closed(_, reason)) => return Err(ClosedError::new(reason)),
                    Err(error) => return self.failed(error),
                },
                Err(error) => return self.failed(error),
            }
        }
        Ok(())
    }

    /// Starts the stream: the head and the welcome are sent now, before the first event.
    ///
    /// Has no effect if the stream has started or the connection is closed.
    pub fn start(&self) {
        self.shared.start();
    }

    // ===== closing =====

    /// Closes the connection: no more events are accepted, queued events are sent, and the stream
    /// ends.
    ///
    /// Has no effect if the connection is closed: the first reason wins, and
    /// [`closed`](Self::closed) returns it. A handler that runs inside the body is polled until
    /// the queue is empty, and dropped then. Before the start, the handler's response still
    /// decides: a 200 is a stream that ends at once, any other response passes through.
    ///
    /// An `EventSource` reconnects after a stream that ends. To make it stop, answer its next
    /// request with `204 No Content`.
    pub fn close(&self) {
        self.shared.close(CloseReason::Closed, None);
    }

    /// Closes the connection with a last event, for which there is always room. Starts the stream.
    ///
    /// # Errors
    ///
    /// Returns [`SendError::Closed`] if the connection is closed already, and
    /// [`SendError::HasId`] if the event has an id and the connection is subscribed with a broker.
    pub fn close_with(&self, event: Event) -> Result<(), SendError> {
        self.shared.close_with(event)
    }

    /// Breaks the stream: no more events are accepted, queued events are sent, and the body ends
    /// with an error, so that the client can distinguish the stream from a finished one.
    ///
    /// Has no effect if the connection is closed. The server receives the reason as the
    /// [`source`](std::error::Error::source) of the [`StreamError`] that is the body's error.
    pub fn fail(&self, reason: impl Into<BoxError>) {
        let error = StreamError::new(StreamErrorKind::Application(reason.into()));
        self.shared.close(CloseReason::Failed, Some(error));
    }

    /// Declines the stream before it starts: the handler's response passes through unchanged.
    ///
    /// Returns `false` if it is too late, so that the handler can end the stream in another way:
    /// the stream has started, or the connection is closed for another reason.
    pub fn decline(&self) -> bool {
        self.shared.decline()
    }

    /// Whether the connection takes no more events. The stream may still be sending what is
    /// queued: see [`closed`](Self::closed).
    pub fn is_closed(&self) -> bool {
        self.shared.lock().closing.is_some()
    }

    /// Waits until the connection has ended: its last event has been taken by the server, or
    /// nothing can be taken any more. One that is closed before its stream has started has ended
    /// for those who wait here, so that a handler that waits can answer.
    ///
    /// A client that leaves is noticed at once where the server watches for it, as hyper does
    /// while nothing of the request is left unread.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    pub async fn closed(&self) -> CloseReason {
        self.wait_for(Shared::end_reason).await
    }

    async fn wait_for(&self, reason: impl Fn(&Shared) -> Option<CloseReason>) -> CloseReason {
        loop {
            let mut ended = pin!(self.shared.ended().notified());
            // Registered first, so that a change between the two is not missed.
            ended.as_mut().enable();
            if let Some(reason) = reason(&self.shared) {
                return reason;
            }
            ended.await;
        }
    }

    /// Runs a function once when the connection has ended, whatever the way out; at once if it
    /// has.
    ///
    /// This is the place for what must happen when a client leaves: code after a handler's loop
    /// does not run then. The function runs where the end is noticed, often in a destructor on the
    /// server's task: it should be short and must not block. A panic in it is caught.
    pub fn on_close(&self, f: impl FnOnce(CloseReason) + Send + 'static) {
        if let Err((hook, reason)) = self.shared.add_hook(Box::new(f)) {
            shared::call_hook(|| hook(reason));
        }
    }

    // ===== values =====

    /// Keeps a value with the connection, one of each type: so that hooks, and whoever goes through
    /// [`Connections`], can find whose stream it is.
    ///
    /// # Errors
    ///
    /// A value stays for the life of the connection, which is what lets [`get`](Self::get) lend it.
    /// If there is one of this type already, the new one is handed back.
    pub fn insert<T: Any + Send + Sync>(&self, value: T) -> Result<(), T> {
        self.shared.values.insert(value)
    }

    /// The value of this type, if one was inserted.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.shared.values.get()
    }

    fn failed(&self, error: impl Into<BoxError>) -> Result<(), ClosedError> {
        self.fail(error);
        Err(ClosedError::new(CloseReason::Failed))
    }

    // ===== crate =====

    /// Gives the connection a source of events besides the outbox.
    pub(crate) fn attach(&self, source: Arc<dyn Source>) -> Result<Hold, AttachError> {
        self.shared.attach(source)?;
        Ok(Hold::new(Arc::clone(&self.shared)))
    }

    pub(crate) fn source(&self) -> Option<Arc<dyn Source>> {
        self.shared.source()
    }

    pub(crate) fn source_waker(&self) -> SourceWaker {
        SourceWaker::new(Arc::downgrade(&self.shared))
    }

    /// Holds the source's events back.
    pub(crate) fn hold_source(&self) -> Hold {
        self.shared.hold_source();
        Hold::new(Arc::clone(&self.shared))
    }

    /// The handle of a connection that is being opened, which is counted from the beginning.
    fn first(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            is_counted: true,
        }
    }

    fn counted(shared: Arc<Shared>) -> Self {
        shared.add_handle();
        Self {
            shared,
            is_counted: true,
        }
    }

    /// A handle to lend out. A clone of it counts.
    fn uncounted(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            is_counted: false,
        }
    }
}

impl Clone for SseConnection {
    fn clone(&self) -> Self {
        Self::counted(Arc::clone(&self.shared))
    }
}

impl Drop for SseConnection {
    fn drop(&mut self) {
        if self.is_counted {
            self.shared.drop_handle();
        }
    }
}

impl fmt::Debug for SseConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("SseConnection")
            .field("uuid", &self.shared.uuid)
            .field("is_started", &state.is_started)
            .field("closing", &state.closing)
            .finish_non_exhaustive()
    }
}

/// Two handles are equal if they are of the same connection.
impl PartialEq for SseConnection {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for SseConnection {}
