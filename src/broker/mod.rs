//! The broker: topics, replay, resume.
//!
//! A [`Broker`] numbers all events that are published with it in one sequence. Each topic keeps its
//! latest events, encoded once, however many subscribers receive them. A subscription is a cursor
//! into these events. Replay, live delivery and lag therefore share one code path, and an idle
//! subscriber costs one cursor.
//!
//! # Positions
//!
//! Each topic event carries its [`Position`] as its id, `<epoch>-<offset>-<tag>`. One id is valid
//! for all topics of a connection. A client that reconnects with a position in `Last-Event-ID`
//!
//! - receives everything after it, once and in order ([`Outcome::Exact`]), or
//! - receives a `gap` event, which announces that something may be missing ([`Outcome::Gap`]). Its
//!   data is `{"reason": "…", "missed": n}`, where `n` is a number if it is known, otherwise
//!   `null`.
//!
//! A loss is never silent, and nothing is delivered twice. A client without an id, or with an id
//! that is not a position, starts from now ([`Outcome::Fresh`]).
//!
//! On quiet topics an occasional `position` event brings clients up to date.
//!
//! # Order and losses
//!
//! Events of all topics reach a subscriber in the order in which they were published. A publisher
//! never waits for a subscriber. If a topic has dropped events that a slow subscriber has not
//! received, the subscriber receives a `gap` event and continues ([`SlowConsumer`]).
//!
//! # Access
//!
//! The server chooses the topics of a connection. The id is only a position in them: an id from
//! another user's stream reveals nothing of that stream. A client may name any retained position of
//! a topic that it may read now. [`Subscribe::without_replay`] is for topics where that is too
//! much.
//!
//! # Example
//!
//! ```
//! use tower_sse::{Broker, BrokerError, Event, SseConnection};
//!
//! async fn events(broker: Broker, sse: SseConnection) -> Result<(), BrokerError> {
//!     broker.subscribe(&sse, ["orders", "alerts"]).await?.start();
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
    subscription::Subscription,
};
pub use crate::{
    backplane::record::{TopicError, TopicName},
    log::{Epoch, Position},
};

use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Poll, ready},
};

use self::{core::Core, settings::BrokerSettings};
use crate::{
    Event, SseConnection,
    backplane::{Backplane, Memory, Record},
    event::EventType,
};

/// The topics of a process: publish, subscribe, resume. See the [module](self).
///
/// It is a handle: clones refer to the same broker. The broker works as long as a handle or a
/// subscribed connection is left.
///
/// One task for each broker wakes the subscribers. It runs on the Tokio runtime that uses the
/// broker first, and moves to the next one when that runtime is shut down. A runtime that is
/// neither driven nor shut down (a current-thread one outside `block_on`) leaves subscribers
/// asleep.
#[derive(Clone)]
pub struct Broker {
    core: Arc<Core>,
}

/// Sets up a [`Broker`].
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until it builds"]
pub struct BrokerBuilder {
    settings: BrokerSettings,
}

impl BrokerBuilder {
    /// Sets what each topic keeps. Defaults to [`History::default`].
    pub fn history(mut self, history: History) -> Self {
        self.settings.history = history;
        self
    }

    /// Sets how many bytes all topics together keep. Defaults to 64 MiB.
    ///
    /// At the limit the oldest events are dropped first, regardless of their topics. An event
    /// counts with its frame and 128 bytes more. A topic that keeps any events counts with its name
    /// and 512 bytes. The latest event is kept in any case.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.settings.bytes = bytes;
        self
    }

    /// Sets what happens to subscribers that lag behind the history of their topics. Defaults to
    /// [`SlowConsumer::Announce`].
    pub fn slow_consumer(mut self, policy: SlowConsumer) -> Self {
        self.settings.slow_consumer = policy;
        self
    }

    /// Sets the type of the event that announces a gap. Defaults to `gap`.
    pub fn gap_event(mut self, event_type: EventType<'_>) -> Self {
        self.settings.gap_event = event_type.into_owned();
        self
    }

    /// Sets the type of the event that carries a client's position. Defaults to `position`.
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

    /// Returns a broker with a log of its own, in memory.
    pub fn in_memory(self) -> Broker {
        self.build(Memory::with_window(0))
    }

    /// Returns a broker on this log.
    pub fn build(self, backplane: impl Backplane) -> Broker {
        Broker {
            core: Arc::new(Core::new(Arc::new(backplane), self.settings)),
        }
    }
}

impl Broker {
    /// Returns a broker with a log of its own, in memory, and the default settings.
    pub fn in_memory() -> Self {
        Self::builder().in_memory()
    }

    /// Returns a broker on this log, with the default settings.
    pub fn new(backplane: impl Backplane) -> Self {
        Self::builder().build(backplane)
    }

    /// Returns a builder, which sets up a broker.
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder::default()
    }

    /// Publishes an event to a topic and returns its position in the log.
    ///
    /// The event is encoded once. The future does not wait for any subscriber.
    ///
    /// # Errors
    ///
    /// Returns an error if
    ///
    /// - the topic's name is empty or longer than 256 bytes,
    /// - the event has an id of its own, has no data, or has the type of a control event
    ///   (`welcome`, `gap`, `position`, `reconnect`),
    /// - the log does not accept the event. [`BrokerError::kind`] then returns what is known of the
    ///   record, see [`AppendErrorKind`](crate::backplane::AppendErrorKind).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the event may or may not have been published.
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
        // The log has to be open before its first record. Otherwise this node would not read it.
        if !self.core.replica.has_head() {
            self.core.read();
        }
        let record = Record::new(topic, event.into_lines());
        let mut append = self.core.backplane.append(record);
        // Marked as publishing only while it runs, so that other publishers do not wait for it.
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
    /// The position is fixed when the returned future completes: after the client's
    /// `Last-Event-ID`, if it sent one, otherwise from now. Events are delivered from that position
    /// once [`Subscription::start`] is called, or once the [`Subscription`] is dropped and the
    /// handler has answered.
    ///
    /// A subscription lasts as long as its connection, and keeps it open. Topics that the
    /// connection already has are skipped. On a connection whose events are already being
    /// delivered, the new topics start from now.
    ///
    /// # Errors
    ///
    /// Returns an error, and subscribes nothing, if
    ///
    /// - a name is empty or longer than 256 bytes,
    /// - the connection is closed,
    /// - the connection's events are numbered,
    /// - the connection is subscribed with another broker.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, nothing is subscribed.
    pub fn subscribe<'a>(
        &'a self,
        connection: &'a SseConnection,
        topics: impl IntoTopics,
    ) -> Subscribe<'a> {
        Subscribe::new(self, connection, topics.into_topics())
    }

    /// Ends subscriptions of a connection. Topics that it does not have are skipped.
    ///
    /// The stream ends when neither a subscription nor a handle is left.
    ///
    /// # Errors
    ///
    /// Returns an error, and ends nothing, if a name is empty or longer than 256 bytes.
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

    /// Returns the number of this node's connections that are subscribed to a topic.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is empty or longer than 256 bytes.
    pub fn subscriber_count<T>(&self, topic: T) -> Result<usize, BrokerError>
    where
        T: TryInto<TopicName>,
        T::Error: Into<TopicError>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let topic = self.core.replica.topic(&topic);
        Ok(topic.map_or(0, |topic| topic.subscriber_count()))
    }

    /// Returns the number of topics that this node holds in memory: those with subscribers or a
    /// history.
    pub fn topic_count(&self) -> usize {
        self.core.replica.topic_count()
    }

    /// Returns the current figures.
    ///
    /// This costs one pass over the topics under the broker's lock. It is meant to be called every
    /// few seconds, not for every event.
    pub fn stats(&self) -> BrokerStats {
        self.core.replica.stats()
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("topics", &self.topic_count())
            .field("visible", &self.core.replica.visible())
            .finish_non_exhaustive()
    }
}
