//! What a layer bounds: how many connections there are, for how long, and how slow they may be.

use std::{hash::Hash, sync::Arc, time::Duration};

use http::{Request, request};

use crate::{
    SseLayer,
    connection::{KeyMaker, LimitKey, NEVER, Refusal},
    event::EventType,
    layer::Settings,
};

/// The key of a request, and how many connections may have the same.
pub(crate) type KeyFn =
    Arc<dyn Fn(&request::Parts, &KeyMaker) -> Option<(LimitKey, usize)> + Send + Sync>;

/// # Protection
///
/// What bounds the streams of a layer. A stream that is open is never ended to make room.
impl SseLayer {
    /// Bounds how many connections there may be in the layer's registry, those of other layers
    /// included. Unbounded by default.
    ///
    /// A connection counts from the request until its stream has ended, on whatever way. Requests
    /// beyond the bound get the layer's [`refusal`](Self::refusal).
    pub fn max_connections(mut self, most: usize) -> Self {
        self.config_mut().max_connections = Some(most);
        self
    }

    /// Bounds how many connections there may be with the same key, in all layers of the registry.
    /// The key comes from the request: a user that an authentication layer outside has put into its
    /// extensions, say, or an address. A request without a key is not bounded.
    ///
    /// Several bounds may be set, each with a key of its own; values of different types are
    /// different keys. A handler that finds the user out by itself has
    /// [`SseConnection::limit`](crate::SseConnection::limit).
    ///
    /// # Example
    ///
    /// ```
    /// use std::net::IpAddr;
    /// use tower_sse::SseLayer;
    ///
    /// let layer = SseLayer::new("/events").max_connections_per(6, |request| {
    ///     request.extensions.get::<IpAddr>().copied()
    /// });
    /// # let _ = layer;
    /// ```
    pub fn max_connections_per<K, F>(mut self, most: usize, key: F) -> Self
    where
        F: Fn(&request::Parts) -> Option<K> + Send + Sync + 'static,
        K: Hash + 'static,
    {
        let key = move |parts: &request::Parts, maker: &KeyMaker| {
            key(parts).map(|key| (maker.key(&key), most))
        };
        self.settings_mut().keys.push(Arc::new(key));
        self
    }

    /// Sets how requests are answered that get no stream, because there are too many or because of
    /// a drain. By default GET gets [`Refusal::RetryLater`], since an `EventSource` gives up for
    /// good on any status but 200, and other methods get [`Refusal::Unavailable`].
    pub fn refusal(mut self, refusal: Refusal) -> Self {
        self.config_mut().refusal = Some(refusal);
        self
    }

    /// Sets between which times a client that was refused is to come back: 5 to 15 seconds by
    /// default. Each is given a random time of its own.
    pub fn refusal_retry(mut self, least: Duration, most: Duration) -> Self {
        self.config_mut().refusal_retry = (least.min(NEVER), most.min(NEVER));
        self
    }

    /// Names the last event of a stream that the client is to come back for later: `reconnect` by
    /// default. Its data is `{"reason": "…"}`: `drained`, `draining`, `full` or `key_full`.
    pub fn reconnect_event(mut self, event_type: EventType<'_>) -> Self {
        self.config_mut().reconnect_event = Some(event_type.into_owned());
        self
    }

    /// Sends no such event: streams that are drained just end, and a refusal has the reconnection
    /// time alone.
    pub fn without_reconnect_event(mut self) -> Self {
        self.config_mut().reconnect_event = None;
        self
    }

    /// Ends each stream after this time, or up to a tenth earlier, at random. Unbounded by default.
    ///
    /// The stream ends cleanly, and its client comes back with its place: so connections move to new
    /// servers, and credentials are looked at again. A handler that still runs is told by
    /// [`SseConnection::ending`](crate::SseConnection::ending), and has the
    /// [`grace`](Self::grace) to finish.
    pub fn max_lifetime(mut self, time: Duration) -> Self {
        self.config_mut().max_lifetime = Some(time.min(NEVER));
        self
    }

    /// Sets how long a stream that is closing has to send what is queued, and a handler at the end
    /// of its stream's life has to finish: 10 seconds by default. What is left then is cut, and the
    /// stream breaks off. (A drain has a deadline of its own.)
    ///
    /// Closing streams are looked at every 15 seconds at least; that much later may the cut of one
    /// come which the application has closed.
    pub fn grace(mut self, time: Duration) -> Self {
        self.config_mut().grace = time.min(NEVER);
        self
    }

    /// Ends a stream from which the server takes nothing for this long although something waits (an
    /// event, or a heartbeat): its client has stopped reading, and the buffers on the way are full.
    /// 60 seconds by default. The reason is
    /// [`CloseReason::SlowConsumer`](crate::CloseReason::SlowConsumer).
    ///
    /// What is queued is freed, the hooks run, and the connection counts no more; the response body
    /// breaks off if it is ever polled again. The socket itself is the server's: it stays until the
    /// client leaves, or the server's own timeouts act.
    ///
    /// A kernel takes some megabytes ahead of a client that does not read. So on a quiet stream it
    /// is found late, or never: only a [lifetime](Self::max_lifetime) bounds that.
    ///
    /// It is at least 64 ms, the grain of the clock.
    pub fn stall_timeout(mut self, time: Duration) -> Self {
        let time = time.clamp(Duration::from_millis(64), NEVER);
        self.config_mut().stall_timeout = Some(time);
        self
    }

    /// Lets clients stop reading for as long as they like.
    pub fn without_stall_timeout(mut self) -> Self {
        self.config_mut().stall_timeout = None;
        self
    }
}

impl Settings {
    /// The keys under which a request is to be counted.
    pub(crate) fn keys_of<B>(&self, request: Request<B>) -> (Vec<(LimitKey, usize)>, Request<B>) {
        if self.keys.is_empty() {
            return (Vec::new(), request);
        }
        let (parts, body) = request.into_parts();
        let maker = self.connections.key_maker();
        let mut keys: Vec<(LimitKey, usize)> = Vec::with_capacity(self.keys.len());
        for (key, most) in self.keys.iter().filter_map(|key| key(&parts, maker)) {
            // Two bounds of one key: the connection counts once, and both hold.
            match keys.iter_mut().find(|(it, _)| *it == key) {
                Some((_, bound)) => *bound = most.min(*bound),
                None => keys.push((key, most)),
            }
        }
        (keys, Request::from_parts(parts, body))
    }
}
