//! The broker: topics, replay, resume.
//!
//! A [`Broker`] numbers all events that are published with it in one sequence. Each topic keeps the
//! latest of its own, encoded once, however many receive them; a subscription is a cursor into
//! them. So replay, live delivery and catching up are the same, and a subscriber that waits costs
//! next to nothing.
//!
//! # Places
//!
//! Each topic event carries its [`Position`] as its id, `<epoch>-<offset>-<tag>`: one id names a
//! place in all of a connection's topics. A client that comes back with it in `Last-Event-ID`
//!
//! - gets everything after it, once and in order ([`Outcome::Exact`]), or
//! - is told, by a `gap` event, that something may be missing ([`Outcome::Gap`]):
//!   `{"reason": "…", "missed": n}`, where `n` is a number if it is known and else `null`.
//!
//! It never misses something in silence, nor gets everything again. A client without an id, or with
//! one that is not a position, starts from now ([`Outcome::Fresh`]).
//!
//! A `position` event now and then brings the clients of quiet topics up to date.
//!
//! # Order, and what is told of losses
//!
//! Events of all topics reach a subscriber in the order in which they were published. A publisher
//! never waits for a subscriber: one that is so slow that its topic has dropped what it has not had
//! gets the `gap` event and goes on ([`SlowConsumer`]).
//!
//! # Who may see what
//!
//! The server chooses the topics of a connection, the id is only a place in them: an id from
//! another user's stream shows nothing of that stream. A client may name any retained place of a
//! topic that it may read now; [`Subscribe::without_replay`] is for topics where that is too much.
//!
//! # Example
//!
//! ```
//! use tower_sse::{Broker, BrokerError, Event, SseConnection};
//!
//! async fn events(broker: Broker, sse: SseConnection) -> Result<(), BrokerError> {
//!     broker.subscribe(&sse, ["orders", "alerts"]).await?.live();
//!     Ok(()) // the stream goes on: it has a subscription
//! }
//!
//! async fn place_order(broker: &Broker) -> Result<(), tower_sse::Error> {
//!     broker.publish("orders", Event::json("placed", &42)?).await?;
//!     Ok(())
//! }
//! ```

mod core;
mod cursors;
mod error;
mod handshake;
mod keeping;
mod log_reader;
mod outcome;
mod pending;
mod replica;
mod settings;
mod stats;
mod store;
mod subscribe;
mod subscriber;
mod subscription;
mod sync;
mod topic;
mod waiter;
mod wakeups;

pub use self::{
    error::{BrokerError, BrokerErrorKind},
    outcome::Outcome,
    settings::{History, SlowConsumer},
    stats::BrokerStats,
    subscribe::{IntoTopics, Subscribe},
    subscription::Resume,
};
pub use crate::{
    backplane::{TopicError, TopicName},
    log::{Epoch, Position},
};

use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Poll, ready},
};

use self::{core::Core, settings::Settings};
use crate::{
    Event, SseConnection,
    backplane::{Backplane, Memory, Record},
    event::EventType,
};

/// Owns the topics of a process: publish, subscribe, resume. See the [module](self).
///
/// It is a handle: clones name the same broker. It works for as long as a handle, or a connection
/// that is subscribed, is left.
///
/// Subscribers are woken by one task for each broker, on the Tokio runtime that uses the broker
/// first; when that runtime is shut down, on the next one. A runtime that is neither driven nor shut
/// down (a current-thread one outside `block_on`) leaves them asleep.
#[derive(Clone)]
pub struct Broker {
    core: Arc<Core>,
}

/// Sets up a [`Broker`].
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until it builds"]
pub struct BrokerBuilder {
    settings: Settings,
}

impl BrokerBuilder {
    /// Sets what each topic keeps: 1,024 events, 1 MiB and one hour by default.
    pub fn history(mut self, history: History) -> Self {
        self.settings.history = history;
        self
    }

    /// Bounds what all topics keep together: 64 MiB by default. The oldest events go first,
    /// whosever they are. An event counts with its frame and 128 bytes more, and each topic that
    /// keeps any with its name and 512 bytes.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.settings.bytes = bytes;
        self
    }

    /// Sets what happens to subscribers that fall off their topics' history.
    pub fn slow_consumer(mut self, policy: SlowConsumer) -> Self {
        self.settings.slow_consumer = policy;
        self
    }

    /// Names the event that announces a gap: `gap` by default.
    pub fn gap_event(mut self, event_type: EventType<'_>) -> Self {
        self.settings.gap_event = event_type.into_owned();
        self
    }

    /// Names the event that gives a client its place: `position` by default.
    pub fn position_event(mut self, event_type: EventType<'_>) -> Self {
        self.settings.position_event = event_type.into_owned();
        self
    }

    /// Sets how many of the latest records, of all topics, are remembered well enough to tell them
    /// from rewritten ones: 65,536 by default, at 8 bytes each. A subscriber whose last id is
    /// further back than half of it gets a `position` event.
    pub fn window(mut self, records: usize) -> Self {
        self.settings.window = records.max(8);
        self
    }

    /// A broker on a log of its own, in memory.
    pub fn in_memory(self) -> Broker {
        self.build(Memory::with_window(0))
    }

    /// A broker on this log.
    pub fn build(self, backplane: impl Backplane) -> Broker {
        Broker {
            core: Arc::new(Core::new(Arc::new(backplane), self.settings)),
        }
    }
}

impl Broker {
    /// A broker on a log of its own, in memory, with the default history.
    pub fn in_memory() -> Self {
        Self::builder().in_memory()
    }

    /// A broker on this log, with the default history.
    pub fn new(backplane: impl Backplane) -> Self {
        Self::builder().build(backplane)
    }

    /// Sets up a broker.
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder::default()
    }

    /// Publishes an event to a topic. Gives its place in the log.
    ///
    /// It is encoded once, and no subscriber is waited for.
    ///
    /// # Errors
    ///
    /// If the topic's name is empty or longer than 256 bytes; if the event has an id of its own, no
    /// data, or the type of a control event (`welcome`, `gap`, `position`, `reconnect`); or if the
    /// log does not take it: the error then says what is known, see
    /// [`AppendErrorKind`](crate::backplane::AppendErrorKind).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the event may have been published or not.
    pub async fn publish<T>(&self, topic: T, event: Event) -> Result<Position, BrokerError>
    where
        T: TryInto<TopicName>,
        T::Error: Into<TopicError>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        if event.has_id() {
            return Err(BrokerError::has_id());
        }
        if !event.has_data() {
            return Err(BrokerError::no_data());
        }
        self.core.replica.settings.check_type(event.event_type())?;
        // The log has to be open before its first record, or nobody would be there to read it.
        if !self.core.replica.has_head() {
            self.core.read();
        }
        let record = Record::new(topic, event.into_lines());
        let mut append = self.core.backplane.append(record);
        // Marked as publishing only while it runs: what others publish does not wait for it.
        let appended = poll_fn(|cx| {
            let publishing = self.core.publishing();
            let appended = ready!(append.as_mut().poll(cx));
            Poll::Ready(appended.map(|position| (position, publishing)))
        });
        let (position, publishing) = appended.await?;
        self.core.replica.tally.published();
        self.core.read();
        drop(publishing);
        Ok(position)
    }

    /// Subscribes a connection to topics: one name, or several.
    ///
    /// The place is fixed when the future that this gives is ready: after the client's
    /// `Last-Event-ID`, if it has one, or from now. Events flow from there on, once
    /// [`Resume::live`] is called, or the [`Resume`] is dropped and the handler has answered.
    ///
    /// A subscription lives as long as its connection, and keeps it open. Topics that a connection
    /// has already are passed over. A connection that is live already, as one that was found by its
    /// uuid, gets the new topics from now on.
    ///
    /// # Errors
    ///
    /// If a name is empty or longer than 256 bytes, if the connection is closed, if its events are
    /// numbered, or if it is subscribed with another broker. Nothing is subscribed then.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing is subscribed.
    pub fn subscribe<'a>(
        &'a self,
        connection: &'a SseConnection,
        topics: impl IntoTopics,
    ) -> Subscribe<'a> {
        Subscribe::new(self, connection, topics.into_topics())
    }

    /// Ends subscriptions of a connection. Topics that it does not have are passed over.
    ///
    /// The stream ends when neither a subscription nor a handle is left.
    ///
    /// # Errors
    ///
    /// If a name is empty or longer than 256 bytes. Nothing is ended then.
    pub fn unsubscribe(
        &self,
        connection: &SseConnection,
        topics: impl IntoTopics,
    ) -> Result<(), BrokerError> {
        let topics = topics.into_topics()?;
        if let Some(subscriber) = subscribe::subscriber_of(&self.core, connection) {
            subscriber.unsubscribe(&topics);
        }
        Ok(())
    }

    /// How many connections of this node are subscribed to a topic.
    ///
    /// # Errors
    ///
    /// If the name is empty or longer than 256 bytes.
    pub fn subscribers<T>(&self, topic: T) -> Result<usize, BrokerError>
    where
        T: TryInto<TopicName>,
        T::Error: Into<TopicError>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let topic = self.core.replica.topic(&topic);
        Ok(topic.map_or(0, |topic| topic.subscribers()))
    }

    /// How many topics this node holds in memory: those with subscribers or a history.
    pub fn topics(&self) -> usize {
        self.core.replica.topics()
    }

    /// The figures as they are now.
    ///
    /// Costs one pass over the topics under the broker's lock: it is meant for every few seconds, not
    /// for every event.
    pub fn stats(&self) -> BrokerStats {
        self.core.replica.stats()
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("topics", &self.topics())
            .field("visible", &self.core.replica.visible())
            .finish_non_exhaustive()
    }
}
