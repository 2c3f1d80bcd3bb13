//! What the crate's own server and the layers around one request report to each other.
//!
//! 1. The server puts a link into the extensions of each request; all layers of the request share
//!    it. Other servers do not, and then nothing is reported.
//! 2. The layers report whether application code runs in the response's body. The server drives a
//!    body in which none runs together with others.
//! 3. The server reports that it polls the body until it is pending. A body then registers its
//!    waker before it looks for events, and need not look again.
//! 4. A layer reports that a stream has ended without its body, since a server whose socket is
//!    blocked does not poll it. The server then drops the body and the socket.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Waker,
};

/// The link between a server and the layers of one request.
#[derive(Clone, Default)]
pub(crate) struct Link(Arc<LinkState>);

#[derive(Default)]
struct LinkState {
    polls_until_pending: AtomicBool,
    has_stream: AtomicBool,
    is_adopted: AtomicBool,
    is_ended: AtomicBool,
    /// Handlers that run in the body.
    handlers: AtomicUsize,
    /// Guards the waker of the server's task, which the end of the stream wakes. Held for one move.
    server: Mutex<Option<Waker>>,
}

/// The layer's side.
impl Link {
    /// Whether the server polls the body until it is pending.
    #[inline]
    pub(super) fn polls_until_pending(&self) -> bool {
        self.0.polls_until_pending.load(Ordering::Relaxed)
    }

    /// Reports that the response's body is a stream of the layer's own.
    pub(super) fn stream_started(&self, has_handler: bool) {
        if has_handler {
            self.0.handlers.fetch_add(1, Ordering::Relaxed);
        }
        self.0.has_stream.store(true, Ordering::Relaxed);
    }

    /// Reports that the response's body is a stream of the inner service's own.
    pub(super) fn stream_adopted(&self) {
        self.0.is_adopted.store(true, Ordering::Relaxed);
    }

    /// Reports that a handler no longer runs in the body.
    pub(super) fn handler_finished(&self) {
        self.0.handlers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Reports that the stream has ended without its body.
    pub(super) fn end(&self) {
        self.0.is_ended.store(true, Ordering::Release);
        let server = self.server().take();
        if let Some(server) = server {
            server.wake();
        }
    }

    fn server(&self) -> MutexGuard<'_, Option<Waker>> {
        self.0.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server's side.
#[cfg(feature = "serve")]
impl Link {
    /// Reports that the server polls the body until it is pending, from now on.
    pub(crate) fn poll_until_pending(&self) {
        self.0.polls_until_pending.store(true, Ordering::Relaxed);
    }

    /// Whether the body is a stream of this crate in which no application code runs. The layer
    /// reports so while the body is polled.
    pub(crate) fn is_quiet(&self) -> bool {
        let shared = &self.0;
        shared.has_stream.load(Ordering::Relaxed)
            && !shared.is_adopted.load(Ordering::Relaxed)
            && shared.handlers.load(Ordering::Relaxed) == 0
    }

    /// Whether the stream has ended without its body.
    #[inline]
    pub(crate) fn is_ended(&self) -> bool {
        self.0.is_ended.load(Ordering::Acquire)
    }

    /// Registers the task that the end of the stream wakes. [`is_ended`](Self::is_ended) is to be
    /// checked afterwards.
    pub(crate) fn register(&self, waker: &Waker) {
        let replaced = self.server().replace(waker.clone());
        drop(replaced);
    }
}

/// Reports whether the response to a request became a [direct stream](crate::serve#direct-streams).
///
/// Cheap to clone. It keeps nothing of the request or the response.
#[cfg(all(feature = "serve", feature = "test-util"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "serve", feature = "test-util"))))]
#[derive(Clone, Debug)]
pub struct DirectProbe(Link);

#[cfg(all(feature = "serve", feature = "test-util"))]
impl DirectProbe {
    /// Returns the probe of a request, given its extensions. Returns `None` under servers other
    /// than [`serve`](crate::serve::serve).
    pub fn of(extensions: &http::Extensions) -> Option<Self> {
        extensions.get().cloned().map(Self)
    }

    /// Returns whether the response is, or was, a direct stream. The server decides that when it has
    /// written the response's head.
    pub fn is_direct(&self) -> bool {
        // The server polls until pending for direct streams only.
        self.0.polls_until_pending()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}
