//! Ending all streams before a shutdown.

use std::{
    fmt,
    future::{Future, IntoFuture},
    ops::RangeInclusive,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use super::{
    CloseReason,
    config::{NEVER, between, retry_range},
    ending::{LAST_CALL, Plan},
    registry::Registry,
};

/// Ends all streams of a registry, spread over time: [`Connections::drain`] gives it, `.await`
/// carries it out.
///
/// From its first poll on requests for streams are refused: their clients come back later, or
/// elsewhere. Each stream gets its own random time within [`over`](Self::over). Then
///
/// - one whose handler has answered ends: what is queued goes out, and behind it a last event
///   (`reconnect`, unless the layer names it otherwise) with a jittered `retry`, so that clients do
///   not come back all at once;
/// - a handler that still runs is told by [`SseConnection::ending`]. It may send until its own
///   deadline, and finish: the stream then ends as the others do. One that does not finish is cut,
///   and its stream breaks off, so that the client can tell it from a finished one.
///
/// No later than the [`deadline`](Self::deadline) the rest is cut, clients that take nothing too.
///
/// A drain that is begun twice keeps to the earlier time and the earlier deadline of each stream;
/// both futures are ready when the streams have ended. It is not taken back: the registry takes no
/// new streams from then on.
///
/// # With a server's graceful shutdown
///
/// `axum::serve(..).with_graceful_shutdown(..)` waits until all responses have ended, which streams
/// do not by themselves. The signal has to fire *with* the drain, not after it, or clients come back
/// on the connections that they have open. So, when the process is told to stop:
///
/// 1. let readiness probes fail, and wait until the load balancer has noticed;
/// 2. begin the drain, and let the server's signal fire at the same time;
/// 3. wait for both, but not for ever: a client that has stopped reading keeps its socket, and the
///    server waits for that.
///
/// ```no_run
/// # #[cfg(feature = "axum")]
/// # async fn serve(app: axum::Router, listener: tokio::net::TcpListener, connections: tower_sse::Connections) -> std::io::Result<()> {
/// use std::time::Duration;
///
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let server = axum::serve(listener, app).with_graceful_shutdown(async {
///     let _ = stopped.await;
/// });
/// let server = tokio::spawn(server.into_future());
/// tokio::signal::ctrl_c().await?;
/// let _ = stop.send(()); // the server takes no new connections, and ends the idle ones
/// let drained = connections.drain().over(Duration::from_secs(5)).await;
/// println!("{} streams ended, {} were aborted", drained.ended, drained.aborted);
/// match tokio::time::timeout(Duration::from_secs(10), server).await {
///     Ok(served) => served?,
///     Err(_) => Ok(()), // what is left ends with the process
/// }
/// # }
/// ```
///
/// # Cancel safety
///
/// Once it has been polled the drain goes on by itself, also if its future is dropped.
///
/// [`Connections::drain`]: super::Connections::drain
/// [`SseConnection::ending`]: super::SseConnection::ending
#[must_use = "a drain does nothing until it is awaited"]
pub struct Drain {
    registry: Arc<Registry>,
    over: Duration,
    deadline: Duration,
    retry: RangeInclusive<Duration>,
}

/// What became of the streams of a registry that was drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Connections that were there when it began and have ended by themselves, for whatever reason.
    pub ended: usize,
    /// Connections that were aborted: their handlers had not finished, or queued events were not
    /// sent in time.
    pub aborted: usize,
}

impl Drain {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            over: Duration::from_secs(5),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(1)..=Duration::from_secs(5),
        }
    }

    /// Spreads the ends over this time. Defaults to 5 seconds.
    pub fn over(mut self, time: Duration) -> Self {
        self.over = time.min(NEVER);
        self
    }

    /// Aborts streams that have not ended this long after the drain began. Defaults to 10 seconds.
    /// It is at least [`over`](Self::over). The aborts of running handlers are spread like the
    /// ends: each handler has the difference between the two times.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = time.min(NEVER);
        self
    }

    /// Sets the range from which the reconnection delay of each client is drawn. Defaults to 1 to
    /// 5 seconds.
    ///
    /// # Panics
    ///
    /// Panics if the range is inverted.
    #[track_caller]
    pub fn retry(mut self, range: RangeInclusive<Duration>) -> Self {
        self.retry = retry_range(range);
        self
    }

    async fn carry_out(self) -> Drained {
        let deadline = self.deadline.max(self.over);
        let began = Instant::now();
        let (connections, cut_before) = self.registry.begin_drain();
        let count = connections.len();
        let visits = connections.into_iter().filter_map(|shared| {
            let time = began + between(Duration::ZERO, self.over);
            let visit = shared.plan(Plan {
                time,
                reason: CloseReason::Drained,
                deadline: time + (deadline - self.over),
                retry: Some(between(*self.retry.start(), *self.retry.end())),
            });
            visit.map(|visit| (shared, visit))
        });
        self.registry.visit_by(visits);

        // The last of them are cut at the deadline, and are given a moment more.
        let latest = began + deadline + 2 * LAST_CALL;
        let emptied = async {
            loop {
                let mut emptied = pin!(self.registry.emptied().notified());
                // Registered first, so that an end between the two is not missed.
                emptied.as_mut().enable();
                if self.registry.left_and_cut().0 == 0 {
                    return;
                }
                emptied.await;
            }
        };
        // Handlers that have not answered may outlast it: they can have no stream any more.
        let _ = timeout_at(latest, emptied).await;
        let (left, cut) = self.registry.left_and_cut();
        let cut = (left + cut - cut_before).min(count);
        Drained {
            ended: count - cut,
            aborted: cut,
        }
    }
}

impl IntoFuture for Drain {
    type Output = Drained;
    type IntoFuture = Pin<Box<dyn Future<Output = Drained> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.carry_out())
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("over", &self.over)
            .field("deadline", &self.deadline)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
