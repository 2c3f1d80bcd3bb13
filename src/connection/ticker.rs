//! When each connection is to be looked at next, and the task that does so.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use super::{
    registry::{Registry, Table},
    shared::Shared,
};

/// How finely time is cut: heartbeats come up to this much late.
const TICK: Duration = Duration::from_millis(64);

pub(super) struct Ticker {
    number: u64,
    /// None while it is being started.
    pub(super) task: Option<AbortHandle>,
}

/// Notes the end of a ticker whose runtime was shut down.
struct TickerGuard {
    registry: Weak<Registry>,
    number: u64,
}

impl Registry {
    /// Sees to it that these connections are visited at these times, or before.
    pub(super) fn visit_by(
        self: &Arc<Self>,
        visits: impl IntoIterator<Item = (Arc<Shared>, Instant)>,
    ) {
        let visits: Vec<_> = visits.into_iter().collect();
        let mut table = self.lock();
        let mut first = None;
        for (shared, time) in &visits {
            if table.is_there(shared.key, shared) {
                let tick = self.set_timer_earlier(&mut table, shared.key, *time);
                first = Some(first.map_or(tick, |it: u64| it.min(tick)));
            }
        }
        let starting = first.and_then(|tick| table.begin_ticker(tick));
        drop(table);
        if let Some((runtime, number)) = starting {
            self.start_ticker(&runtime, number);
        }
        drop(visits);
    }

    /// Sets the timer of a connection. Gives the tick at which it will expire.
    pub(super) fn set_timer(&self, table: &mut Table, key: usize, time: Instant) -> u64 {
        let tick = table.wheel.set(key, self.tick_of(time));
        self.wake_ticker(table, tick);
        tick
    }

    fn set_timer_earlier(&self, table: &mut Table, key: usize, time: Instant) -> u64 {
        let tick = table.wheel.set_earlier(key, self.tick_of(time));
        self.wake_ticker(table, tick);
        tick
    }

    fn tick_of(&self, time: Instant) -> u64 {
        let since = time.saturating_duration_since(self.epoch);
        // Rounded up: a timer is never early.
        let tick = since.as_nanos().div_ceil(TICK.as_nanos());
        tick.try_into().unwrap_or(u64::MAX / 2)
    }

    /// Wakes a ticker that sleeps for longer than this.
    fn wake_ticker(&self, table: &mut Table, tick: u64) {
        if table.ticker.is_some() && tick < table.next_tick {
            table.next_tick = tick;
            self.earlier.notify_one();
        }
    }

    /// Starts the ticker of this number. Not under the lock: a runtime that was shut down drops the
    /// task at once, and the guard in it takes the lock.
    pub(super) fn start_ticker(self: &Arc<Self>, runtime: &Handle, number: u64) {
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
            if let Some(next) = next.filter(|_| table.is_there(*key, shared)) {
                // It may have been given an earlier one meanwhile.
                self.set_timer_earlier(&mut table, *key, next);
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
    pub(super) fn begin_ticker(&mut self, first_tick: u64) -> Option<(Handle, u64)> {
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
