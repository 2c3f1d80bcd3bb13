//! The connections that are open, and when each is to be looked at next.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use slab::Slab;
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout_at},
};
use uuid::Uuid;

use super::{
    SseConnection,
    config::Config,
    reader::Reader,
    shared::{RequestInfo, Shared},
    wheel::Wheel,
};

/// How finely time is cut: heartbeats come up to this much late.
const TICK: Duration = Duration::from_millis(64);

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
    /// Guards the table of connections, their timers and the ticker's state. Held for a few moves
    /// at a time; never together with a connection's lock. No connection is dropped under it.
    table: Mutex<Table>,
    /// Tells the ticker of a timer that is earlier than all others.
    earlier: Arc<Notify>,
    /// Tick 0.
    epoch: Instant,
}

struct Table {
    connections: Slab<Arc<Shared>>,
    keys: HashMap<Uuid, usize>,
    wheel: Wheel,
    ticker: Option<Ticker>,
    /// How many tickers there have been.
    tickers: u64,
    /// The tick for which the ticker sleeps.
    next_tick: u64,
}

struct Ticker {
    number: u64,
    /// None while it is being started.
    task: Option<AbortHandle>,
}

/// Notes the end of a ticker whose runtime was shut down.
struct TickerGuard {
    registry: Weak<Registry>,
    number: u64,
}

impl Connections {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many connections there are, those too whose handler has not answered yet.
    pub fn len(&self) -> usize {
        self.registry.lock().connections.len()
    }

    /// Whether there is none.
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

    /// The connections whose streams have started, as they are now.
    ///
    /// Costs one pass over the table under its lock, and 8 bytes for each connection.
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

    pub(crate) fn open(
        &self,
        config: &Arc<Config>,
        request: RequestInfo,
    ) -> (SseConnection, Reader) {
        let shared = self.registry.open(config, request);
        let reader = Reader::new(Arc::clone(&shared));
        (SseConnection::first(shared), reader)
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
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(self: &Arc<Self>, config: &Arc<Config>, request: RequestInfo) -> Arc<Shared> {
        let uuid = Uuid::new_v4();
        let first_visit = config.keep_alive.map(|time| Instant::now() + time);
        let mut table = self.lock();
        let entry = table.connections.vacant_entry();
        let key = entry.key();
        let shared = Arc::new(Shared::new(
            uuid,
            Arc::clone(self),
            key,
            Arc::clone(config),
            request,
        ));
        entry.insert(Arc::clone(&shared));
        table.keys.insert(uuid, key);
        let starting = first_visit.and_then(|time| {
            let tick = self.set_timer(&mut table, key, time);
            table.begin_ticker(tick)
        });
        drop(table);
        if let Some((runtime, number)) = starting {
            self.start_ticker(&runtime, number);
        }
        shared
    }

    pub(super) fn remove(&self, key: usize) {
        let mut table = self.lock();
        table.wheel.cancel(key);
        let shared = table.connections.try_remove(key);
        if let Some(shared) = &shared {
            table.keys.remove(&shared.uuid);
        }
        drop(table);
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

    // ===== time =====

    /// Sets the timer of a connection. Gives the tick at which it will expire.
    fn set_timer(&self, table: &mut Table, key: usize, time: Instant) -> u64 {
        let since = time.saturating_duration_since(self.epoch);
        // Rounded up: a timer is never early.
        let tick = since.as_nanos().div_ceil(TICK.as_nanos());
        let tick = table
            .wheel
            .set(key, tick.try_into().unwrap_or(u64::MAX / 2));
        if table.ticker.is_some() && tick < table.next_tick {
            table.next_tick = tick;
            self.earlier.notify_one();
        }
        tick
    }

    /// Starts the ticker of this number. Not under the lock: a runtime that was shut down drops the
    /// task at once, and the guard in it takes the lock.
    fn start_ticker(self: &Arc<Self>, runtime: &Handle, number: u64) {
        let guard = TickerGuard {
            registry: Arc::downgrade(self),
            number,
        };
        let task = runtime.spawn(run(guard, Arc::clone(&self.earlier)));
        let mut table = self.lock();
        if let Some(ticker) = &mut table.ticker {
            if ticker.number == number {
                ticker.task = Some(task.abort_handle());
            }
        }
    }

    /// Visits the connections whose time has come. Gives the time of the next round, or nothing
    /// when there is none: the ticker has to end then.
    fn tick(self: &Arc<Self>, due: &mut Vec<usize>) -> Option<Instant> {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.epoch).as_nanos();
        let now_tick = (since / TICK.as_nanos()).try_into().unwrap_or(u64::MAX / 2);

        let mut table = self.lock();
        table.wheel.expire(now_tick, due);
        let visits: Vec<_> = due
            .drain(..)
            .map(|key| (key, Arc::clone(&table.connections[key])))
            .collect();
        drop(table);

        let visited: Vec<_> = visits
            .into_iter()
            .map(|(key, shared)| (key, shared.tick(now), shared))
            .collect();

        let mut table = self.lock();
        for (key, next, shared) in &visited {
            // It may have ended meanwhile, and another may have its key.
            let is_there = table.connections.get(*key);
            if let Some(next) = next.filter(|_| is_there.is_some_and(|it| Arc::ptr_eq(it, shared)))
            {
                self.set_timer(&mut table, *key, next);
            }
        }
        let next_tick = table.wheel.next_tick();
        match next_tick {
            Some(tick) => table.next_tick = tick,
            None => table.ticker = None,
        }
        drop(table);
        drop(visited);
        next_tick.map(|tick| self.epoch + TICK * u32::try_from(tick).unwrap_or(u32::MAX))
    }
}

impl Table {
    /// Notes that a ticker is being started, if there is none. Gives its number, and the runtime to
    /// start it on.
    fn begin_ticker(&mut self, first_tick: u64) -> Option<(Handle, u64)> {
        if self.ticker.is_some() {
            return None;
        }
        // Outside a runtime there is nothing to sleep on.
        let runtime = Handle::try_current().ok()?;
        let number = self.tickers;
        self.tickers += 1;
        self.next_tick = first_tick;
        self.ticker = Some(Ticker { number, task: None });
        Some((runtime, number))
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            table: Mutex::new(Table {
                connections: Slab::new(),
                keys: HashMap::new(),
                wheel: Wheel::new(),
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

impl Drop for TickerGuard {
    fn drop(&mut self) {
        let Some(registry) = self.registry.upgrade() else {
            return;
        };
        let mut table = registry.lock();
        table.ticker.take_if(|ticker| ticker.number == self.number);
        drop(table);
        // Explicit, and last: this may be the registry's last owner.
        drop(registry);
    }
}

/// The ticker: one task for each registry, which it does not keep alive.
async fn run(guard: TickerGuard, earlier: Arc<Notify>) {
    let mut due = Vec::new();
    loop {
        let Some(registry) = guard.registry.upgrade() else {
            return;
        };
        let Some(next) = registry.tick(&mut due) else {
            return;
        };
        drop(registry);
        // Either way it is time to look again.
        let _ = timeout_at(next, earlier.notified()).await;
    }
}
