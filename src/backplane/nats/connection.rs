//! The connection to the server, as far as it concerns a log.

use std::{
    future::ready,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, connection::State};
use tokio::{sync::watch, time::timeout};

/// The longest time between two attempts to connect.
const MAX_BACKOFF: Duration = Duration::from_millis(500);

const FOR_EVER: Duration = Duration::from_secs(1 << 40);

pub(super) struct NatsConnection {
    up: watch::Sender<bool>,
    /// How often it was broken: what was known of the server before need not hold after.
    breaks: AtomicU64,
    /// Guards the last errors of connecting.
    errors: Mutex<ConnectionErrors>,
}

/// The last errors of connecting.
#[derive(Default)]
struct ConnectionErrors {
    event: Option<String>,
    /// The error of one of the servers, with its cause.
    last_error: Option<String>,
}

impl Default for NatsConnection {
    fn default() -> Self {
        Self {
            up: watch::Sender::new(false),
            breaks: AtomicU64::new(0),
            errors: Mutex::default(),
        }
    }
}

impl NatsConnection {
    /// Returns options with which a client reports its state here, for as long as this value
    /// exists.
    pub(super) fn options(this: &Arc<Self>, options: ConnectOptions) -> ConnectOptions {
        let (events, delays) = (Arc::downgrade(this), Arc::downgrade(this));
        let failed = Arc::downgrade(this);
        options
            .reconnect_to_server_callback(move |servers, _| {
                // Here alone stands more than "IO error".
                let mut errors = servers.into_iter().filter_map(|server| server.last_error);
                if let Some((connection, error)) = failed.upgrade().zip(errors.next()) {
                    connection.errors().last_error = Some(error);
                }
                // It may choose as it would.
                ready(None)
            })
            .event_callback(move |event| {
                if let Some(connection) = events.upgrade() {
                    connection.apply(&event);
                }
                ready(())
            })
            .reconnect_delay_callback(move |tries| {
                // A client whose handles are gone while it has no connection does not notice, and
                // would go on trying. So it gets to rest.
                let is_left = delays.strong_count() == 0;
                if is_left { FOR_EVER } else { backoff(tries) }
            })
    }

    fn apply(&self, event: &Event) {
        match event {
            Event::Connected => {
                *self.errors() = ConnectionErrors::default();
                self.up.send_replace(true);
            }
            Event::ClientError(error) => self.errors().event = Some(error.to_string()),
            Event::Disconnected | Event::Closed => {
                self.breaks.fetch_add(1, Ordering::AcqRel);
                self.up.send_replace(false);
            }
            _ => {}
        }
    }

    pub(super) fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Why there is no connection.
    pub(super) fn why_down(&self) -> String {
        let errors = self.errors();
        let cause = errors.last_error.as_ref().or(errors.event.as_ref());
        let cause = cause.map_or("it is broken", |it| it);
        format!("there is no connection to the server: {cause}")
    }

    fn errors(&self) -> MutexGuard<'_, ConnectionErrors> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    pub(super) fn breaks(&self) -> u64 {
        self.breaks.load(Ordering::Acquire)
    }

    /// Waits until there is a connection.
    pub(super) async fn wait(&self, client: &Client) {
        loop {
            // The client drops events where there are too many: then its own word is asked for.
            if !self.is_up() && client.connection_state() == State::Connected {
                self.up.send_replace(true);
            }
            let mut up = self.up.subscribe();
            if timeout(MAX_BACKOFF, up.wait_for(|is_up| *is_up))
                .await
                .is_ok()
            {
                return;
            }
        }
    }

    /// Waits until there is a connection that is not the one of this count of breaks.
    pub(super) async fn wait_for_another(self: Arc<Self>, breaks: u64) {
        let mut up = self.up.subscribe();
        let is_another = |is_up: &bool| *is_up && self.breaks() != breaks;
        // It fails only with the connection, which is here.
        let _ = up.wait_for(is_another).await;
    }
}

/// How long to rest before another try to connect, so that many nodes do not come back at once.
fn backoff(tries: usize) -> Duration {
    if tries <= 1 {
        return Duration::ZERO;
    }
    let longest = Duration::from_millis(50 << tries.min(6)).min(MAX_BACKOFF);
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}
