//! What a layer bounds: how many connections there are, for how long, and how slow they may be.

use std::{hash::Hash, sync::Arc, time::Duration};

use http::request;

use super::{layer::SseLayer, origin::GuardError};
use crate::{
    connection::{KeyMaker, NEVER, Refusal},
    event::EventType,
};

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

/// Guards, off by default. They look at requests that are the layer's own, before a connection is
/// opened and before the inner service is called. What they refuse is answered `403 Forbidden`,
/// with a line of text that names the setting; an `EventSource` then gives up.
impl SseLayer {
    /// Admits requests from pages of these origins only: `https://example.com`,
    /// `http://localhost:3000`, `http://[::1]:8080`. Off by default; with an empty list no page is
    /// admitted. A second call replaces the list of the first.
    ///
    /// This is against other sites that use a visitor's cookies, or network, to read streams. A
    /// request without `Origin` is admitted, since no page of another site could read its answer:
    /// browsers leave it out of GET for the page's own origin, and where the answer stays hidden
    /// from the page (images, navigation). With POST they send it for the own origin too, which
    /// then has to be listed. Other programs send what they like: this is no authentication.
    /// Several `Origin` headers, and one that is invalid, are refused.
    ///
    /// Scheme, host and port must be the same, where case, a dot at the end of the host and the
    /// spelling of an IPv6 address do not matter, and 80 is the port of `http`, 443 that of
    /// `https`. There are no wildcards. `null`, which any site can send from a sandboxed frame, is
    /// refused unless it is listed.
    ///
    /// # Panics
    ///
    /// If an origin is invalid. For origins that are not known before run time there is
    /// [`try_allowed_origins`](Self::try_allowed_origins).
    #[track_caller]
    pub fn allowed_origins(self, origins: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        or_panic(self.try_allowed_origins(origins))
    }

    /// As [`allowed_origins`](Self::allowed_origins).
    ///
    /// # Errors
    ///
    /// If an origin is invalid: it has no scheme, or more than a scheme, a host and a port (a
    /// slash at its end is a path), or a host that is none.
    pub fn try_allowed_origins(
        mut self,
        origins: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self, GuardError> {
        self.settings_mut().guard.allow_origins(origins)?;
        Ok(self)
    }

    /// Admits requests for these hosts only: `example.com` on any port, `localhost:8080`,
    /// `127.0.0.1`, `[::1]:8080`. Off by default; with an empty list nothing is admitted. A second
    /// call replaces the list of the first.
    ///
    /// This is against DNS rebinding: a site that has its own name point to this server passes for
    /// the page's own origin, but cannot change the name that it is asked for. It is for servers
    /// that listen on the local machine or in a private network.
    ///
    /// The host is that of the request's target (`:authority` in HTTP/2), or else the `Host`
    /// header. A request is refused when they are both there and differ, when there is none, when
    /// there are several `Host` headers, and when one is invalid (with user information, say).
    ///
    /// Case, a dot at the end and the spelling of an IPv6 address do not matter; IPv4 addresses are
    /// compared as text; there are no wildcards. A request without a port has that of its scheme,
    /// or, where the scheme is not known (HTTP/1, mostly), both 80 and 443. Behind a proxy it may be
    /// another than the client used: list hosts without a port there.
    ///
    /// # Panics
    ///
    /// If a host is invalid. For hosts that are not known before run time there is
    /// [`try_allowed_hosts`](Self::try_allowed_hosts).
    #[track_caller]
    pub fn allowed_hosts(self, hosts: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        or_panic(self.try_allowed_hosts(hosts))
    }

    /// As [`allowed_hosts`](Self::allowed_hosts).
    ///
    /// # Errors
    ///
    /// If a host is invalid: it has a scheme or a path, or is an IPv6 address without brackets, or
    /// no name at all.
    pub fn try_allowed_hosts(
        mut self,
        hosts: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self, GuardError> {
        self.settings_mut().guard.allow_hosts(hosts)?;
        Ok(self)
    }
}

#[track_caller]
fn or_panic(result: Result<SseLayer, GuardError>) -> SseLayer {
    match result {
        Ok(layer) => layer,
        Err(error) => panic!("{error}"),
    }
}
