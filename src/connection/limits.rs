//! How many connections there may be, in all and for each key.
//!
//! A connection is counted from its opening to its end, whichever way out it takes: what counts it
//! is its entry in the registry, which goes with the response body, not with the head.

use std::{
    any::TypeId,
    collections::HashMap,
    error::Error,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
};

use super::{SseConnection, shared::Shared};

/// Whose connections are counted together: a hash of 128 bits, drawn with random keys, so that
/// nobody can make two that are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LimitKey(u64, u64);

/// What makes keys of values. Two registries make different ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyMaker(RandomState, RandomState);

impl KeyMaker {
    /// Values of two types are never the same key.
    pub(crate) fn key<K: Hash + 'static>(&self, key: &K) -> LimitKey {
        let key = (TypeId::of::<K>(), key);
        LimitKey(self.0.hash_one(key), self.1.hash_one(key))
    }
}

/// The counts of all keys that have any.
#[derive(Debug, Default)]
pub(super) struct Counts(HashMap<LimitKey, usize>);

impl Counts {
    /// Counts one more, if that makes no more than `max`.
    pub(super) fn take(&mut self, key: LimitKey, max: usize) -> bool {
        let count = self.0.get(&key).copied().unwrap_or(0);
        let has_room = count < max;
        if has_room {
            self.0.insert(key, count + 1);
        }
        has_room
    }

    pub(super) fn give_back(&mut self, key: LimitKey) {
        if let Some(count) = self.0.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&key);
                if self.0.len() < self.0.capacity() / 4 {
                    self.0.shrink_to(self.0.len() * 2);
                }
            }
        }
    }
}

/// Why a request gets no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalReason {
    /// There are as many connections as the layer admits.
    Full,
    /// There are as many connections with the same key as are admitted.
    KeyFull,
    /// The registry is draining.
    Draining,
}

impl RefusalReason {
    /// A short name, the same in every version: for logs and labels, and in the event that tells
    /// the client to come back later.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::KeyFull => "key_full",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "too many event streams",
            Self::KeyFull => "too many event streams of the same kind",
            Self::Draining => "server is shutting down",
        })
    }
}

impl SseConnection {
    /// Counts the connection under a key that a handler has found out, such as a user. At most
    /// `max` connections may have the same key, in all layers of the registry. Values of different
    /// types are different keys. The connection is counted until it ends, and once per key.
    ///
    /// # Errors
    ///
    /// Returns [`LimitError`] if the limit is reached. The connection is then refused: whatever
    /// the handler answers, the client receives the layer's
    /// [`refusal`](crate::layer::Limits::refusal). A stream that has started ends.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_sse::{Broker, SseConnection};
    ///
    /// #[derive(Hash)]
    /// struct UserId(u64);
    ///
    /// async fn events(user: UserId, broker: Broker, sse: SseConnection) -> Result<(), tower_sse::Error> {
    ///     sse.limit(&user, 5)?;
    ///     broker.subscribe(&sse, format!("user:{}", user.0)).await?.start();
    ///     Ok(())
    /// }
    /// ```
    pub fn limit<K: Hash + 'static>(&self, key: &K, max: usize) -> Result<(), LimitError> {
        self.shared.limit(key, max)
    }
}

impl Shared {
    /// Counts the connection under a key, or refuses it.
    pub(super) fn limit<K: Hash + 'static>(&self, key: &K, max: usize) -> Result<(), LimitError> {
        let key = self.registry.make_key(key);
        if self.lock().keys.contains(&key) {
            return Ok(());
        }
        if !self.registry.take_key(key, max) {
            self.refuse();
            return Err(LimitError { max });
        }
        let mut state = self.lock();
        // Another handle may have done the same meanwhile, and one that has ended counts for nothing.
        let is_kept = !state.is_ended && !state.keys.contains(&key);
        if is_kept {
            state.keys.push(key);
        }
        drop(state);
        if !is_kept {
            self.registry.give_key_back(key);
        }
        Ok(())
    }
}

/// How a request is answered that gets no stream, because there are too many or because of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// `200 OK` with an event stream that ends at once, and says when to come back: an `EventSource`
    /// gives up for good on any other status.
    RetryLater,
    /// `503 Service Unavailable`, with `Retry-After` and a short text.
    Unavailable,
}

/// The limit of [`SseConnection::limit`](super::SseConnection::limit) is reached. The connection
/// has been refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitError {
    pub(super) max: usize,
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection limit of {} reached for this key", self.max)
    }
}

impl Error for LimitError {}
