//! The connections that are open, and when each is to be looked at next.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use slab::Slab;
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

use super::{
    CloseReason, ConnectionStats, Drain, RefusalReason, SseConnection,
    config::Config,
    ending::{Plan, visits_every},
    limits::{Counts, KeyMaker, LimitKey},
    reader::Reader,
    shared::{RequestInfo, Shared},
    state::ConnectionState,
    stats::{SentCounts, Tally},
    ticker::Ticker,
    wheel::Wheel,
};

/// The open connections of one or more layers: to find one by its uuid, to count them, to go
/// through them, to close some.
///
/// It is a handle: clones name the same registry. Give it to each layer with
/// [`SseLayer::registry`](crate::SseLayer::registry); a layer that is given none makes its own.
///
/// A registry knows the connections of this process only.
///
/// Its one lock is taken when a connection opens or ends and at its heartbeats, never when an
/// event is sent.
///
/// # The ticker
///
/// Heartbeats come from one task for each registry. It is started when a connection is opened
/// inside a Tokio runtime, ends when there are no timers left or the registry is dropped, and is
/// started again by the next connection if its runtime was shut down. The runtime must have its
/// time enabled. Without a Tokio runtime streams work, but have no heartbeats.
///
/// # Example
///
/// ```
/// use tower_sse::{Connections, Event, SseLayer};
///
/// struct UserId(u64);
///
/// let connections = Connections::new();
/// let layer = SseLayer::new("/events").registry(&connections);
///
/// // Elsewhere, when a user's rights are revoked:
/// let revoked = 7;
/// connections.close_where(|c| c.get::<UserId>().is_some_and(|id| id.0 == revoked));
///
/// // Or to tell everybody something:
/// for connection in connections.iter() {
///     let _ = connection.try_send(Event::message("maintenance at noon"));
/// }
/// ```
#[derive(Clone, Default)]
pub struct Connections {
    registry: Arc<Registry>,
}

pub(crate) struct Registry {
    pub(super) tally: Tally,
    keys: KeyMaker,
    /// Notified when the last connection has gone from a registry that is draining.
    emptied: Notify,
    /// Guards the table of connections, their timers and the ticker's state. Held for a few moves
    /// at a time; never together with a connection's lock. No connection is dropped under it.
    table: Mutex<Table>,
    /// Tells the ticker of a timer that is earlier than all others.
    pub(super) earlier: Arc<Notify>,
    /// Tick 0.
    pub(super) epoch: Instant,
}

pub(super) struct Table {
    pub(super) connections: Slab<Arc<Shared>>,
    keys: HashMap<Uuid, usize>,
    pub(super) wheel: Wheel,
    counts: Counts,
    is_draining: bool,
    /// How many connections had to be cut since the drain began.
    cut: usize,
    pub(super) ticker: Option<Ticker>,
    /// How many tickers there have been.
    pub(super) tickers: u64,
    /// The tick for which the ticker sleeps.
    pub(super) next_tick: u64,
}

/// What a connection leaves behind.
pub(super) struct EndRecord {
    pub(super) reason: CloseReason,
    pub(super) sent: SentCounts,
    pub(super) keys: Vec<LimitKey>,
    /// Whether its stream had started.
    pub(super) was_open: bool,
    pub(super) was_cut: bool,
}

impl Connections {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of open streams, which is the number of connections that
    /// [`iter`](Self::iter) yields.
    ///
    /// Connections whose handler has not answered yet are not counted. Their number is
    /// [`ConnectionStats::pending`].
    pub fn len(&self) -> usize {
        self.registry.tally.streams()
    }

    /// Returns `true` if no stream is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The connection with this uuid, if it is open here.
    ///
    /// What it gives is a handle as any other: the stream stays open for as long as one is left.
    pub fn get(&self, uuid: &Uuid) -> Option<SseConnection> {
        let table = self.registry.lock();
        let key = *table.keys.get(uuid)?;
        let shared = Arc::clone(&table.connections[key]);
        drop(table);
        Some(SseConnection::counted(shared))
    }

    /// Returns the connections whose streams are open now.
    ///
    /// Costs one pass over the registry under its lock, and 8 bytes for each connection.
    pub fn iter(&self) -> impl Iterator<Item = SseConnection> + use<> {
        self.registry
            .snapshot()
            .into_iter()
            .filter(|shared| shared.lock().is_open)
            .map(SseConnection::counted)
    }

    /// Closes the connections for which the function says so, and tells how many it has closed.
    ///
    /// Those whose handler has not answered yet are asked about, too: if such a one is closed and
    /// its handler then answers 200 and means a stream, the stream ends as soon as it has started.
    /// The function runs outside all locks.
    pub fn close_where(&self, mut is_meant: impl FnMut(&SseConnection) -> bool) -> usize {
        self.registry
            .snapshot()
            .iter()
            .filter(|shared| is_meant(&SseConnection::uncounted(shared)))
            .filter(|shared| shared.close_from_outside())
            .count()
    }

    /// The figures as they are now.
    ///
    /// Costs one pass over the connections, each of which is locked for a moment: it is meant for
    /// every few seconds, not for every event.
    pub fn stats(&self) -> ConnectionStats {
        let connections = self.registry.snapshot();
        let mut stats = {
            let _table = self.registry.lock();
            self.registry.tally.snapshot()
        };
        for shared in connections {
            let state = shared.lock();
            // One that has ended meanwhile may have been counted.
            if !state.is_ended {
                stats.add(state.all_sent(), state.outbox.queued());
            }
        }
        stats
    }

    /// Ends all streams on purpose, spread over time, and takes no new ones: before a shutdown. See
    /// [`Drain`].
    pub fn drain(&self) -> Drain {
        Drain::new(Arc::clone(&self.registry))
    }

    /// Whether [`drain`](Self::drain) has begun: for readiness probes. It is not taken back.
    pub fn is_draining(&self) -> bool {
        self.registry.lock().is_draining
    }

    /// Opens a connection, if there may be one more, in all and of each key.
    pub(crate) fn open(
        &self,
        config: &Arc<Config>,
        request: RequestInfo,
        keys: &[(LimitKey, usize)],
    ) -> Result<(SseConnection, Reader), RefusalReason> {
        let shared = self.registry.open(config, request, keys)?;
        let reader = Reader::new(Arc::clone(&shared));
        Ok((SseConnection::first(shared), reader))
    }

    pub(crate) fn key_maker(&self) -> &KeyMaker {
        &self.registry.keys
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl Registry {
    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(
        self: &Arc<Self>,
        config: &Arc<Config>,
        request: RequestInfo,
        keys: &[(LimitKey, usize)],
    ) -> Result<Arc<Shared>, RefusalReason> {
        let uuid = Uuid::new_v4();
        let now = Instant::now();
        let mut state = ConnectionState::new(config);
        state.keys = keys.iter().map(|(key, _)| *key).collect();
        state.plan = Plan::of_life(config, now);
        let visit = now + visits_every(config);
        let first_visit = state.plan.map_or(visit, |plan| plan.time.min(visit));
        let mut table = self.lock();
        if let Err(reason) = table.admit(config, keys) {
            drop(table);
            self.tally.refused();
            return Err(reason);
        }
        // Under the lock, so that there are never fewer opened than closed.
        self.tally.opened();
        let entry = table.connections.vacant_entry();
        let key = entry.key();
        let shared = Arc::new(Shared::new(
            uuid,
            Arc::clone(self),
            key,
            Arc::clone(config),
            request,
            state,
        ));
        entry.insert(Arc::clone(&shared));
        table.keys.insert(uuid, key);
        let tick = self.set_timer(&mut table, key, first_visit);
        let starting = table.begin_ticker(tick);
        drop(table);
        if let Some((runtime, number)) = starting {
            self.start_ticker(&runtime, number);
        }
        Ok(shared)
    }

    /// Counts a stream that starts. Called under the lock of its connection, which has not ended,
    /// so that the stream is counted before it is removed.
    pub(super) fn count_stream(&self) {
        self.tally.started();
    }

    pub(super) fn remove(&self, key: usize, record: &EndRecord) {
        let mut table = self.lock();
        table.wheel.cancel(key);
        let shared = table.connections.try_remove(key);
        if let Some(shared) = &shared {
            table.keys.remove(&shared.uuid);
        }
        for key in &record.keys {
            table.counts.give_back(*key);
        }
        // For whatever reason it was to end: one that was closed before may wait to be taken still.
        table.cut += usize::from(record.was_cut && table.is_draining);
        let is_emptied = table.is_draining && table.connections.is_empty();
        // Under the lock, so that the counts of `stats` add up.
        self.tally
            .closed(record.reason, record.sent, record.was_open);
        drop(table);
        if record.reason == CloseReason::Refused {
            self.tally.refused();
        }
        if is_emptied {
            self.emptied.notify_waiters();
        }
        // Its values may be the application's, with destructors that come back here.
        drop(shared);
    }

    fn snapshot(&self) -> Vec<Arc<Shared>> {
        let table = self.lock();
        table
            .connections
            .iter()
            .map(|(_, shared)| Arc::clone(shared))
            .collect()
    }

    // ===== limits and drains =====

    pub(super) fn make_key<K: Hash + 'static>(&self, key: &K) -> LimitKey {
        self.keys.key(key)
    }

    /// Counts a connection under a key, if there are fewer than `max`.
    pub(super) fn take_key(&self, key: LimitKey, max: usize) -> bool {
        self.lock().counts.take(key, max)
    }

    pub(super) fn give_key_back(&self, key: LimitKey) {
        self.lock().counts.give_back(key);
    }

    /// Begins a drain. Gives those that are open now, no other will be; and how many were cut since
    /// an earlier drain began.
    pub(super) fn begin_drain(&self) -> (Vec<Arc<Shared>>, usize) {
        let mut table = self.lock();
        table.is_draining = true;
        let connections = table.connections.iter();
        let connections = connections.map(|(_, shared)| Arc::clone(shared)).collect();
        (connections, table.cut)
    }

    /// How many connections there are, and how many were cut since the drain began.
    pub(super) fn left_and_cut(&self) -> (usize, usize) {
        let table = self.lock();
        (table.connections.len(), table.cut)
    }

    pub(super) fn emptied(&self) -> &Notify {
        &self.emptied
    }
}

impl Table {
    /// Whether a connection is in the table: it may have ended, and another may have its key.
    pub(super) fn is_there(&self, key: usize, shared: &Arc<Shared>) -> bool {
        let there = self.connections.get(key);
        there.is_some_and(|it| Arc::ptr_eq(it, shared))
    }

    /// Counts a connection under all its keys, if there may be one more.
    fn admit(&mut self, config: &Config, keys: &[(LimitKey, usize)]) -> Result<(), RefusalReason> {
        if self.is_draining {
            return Err(RefusalReason::Draining);
        }
        let max = config.max_connections;
        if max.is_some_and(|max| self.connections.len() >= max) {
            return Err(RefusalReason::Full);
        }
        for (at, (key, max)) in keys.iter().enumerate() {
            if !self.counts.take(*key, *max) {
                for (key, _) in &keys[..at] {
                    self.counts.give_back(*key);
                }
                return Err(RefusalReason::KeyFull);
            }
        }
        Ok(())
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            tally: Tally::default(),
            keys: KeyMaker::default(),
            emptied: Notify::new(),
            table: Mutex::new(Table {
                connections: Slab::new(),
                keys: HashMap::new(),
                wheel: Wheel::new(),
                counts: Counts::default(),
                is_draining: false,
                cut: 0,
                ticker: None,
                tickers: 0,
                next_tick: 0,
            }),
            earlier: Arc::new(Notify::new()),
            epoch: Instant::now(),
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let table = self.table.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = table.ticker.take().and_then(|ticker| ticker.task) {
            task.abort();
        }
    }
}
