//! Subscribing: from names and a position to cursors.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::time::Instant;

use super::{
    Broker, BrokerError,
    core::Core,
    cursors::{Cursor, Cursors, PendingTopics, PositionOrigin},
    outcome::{Outcome, ResumeDecision, SharedOutcome},
    pending::Pending,
    store::Store,
    subscriber::Subscriber,
    subscription::Subscription,
    topic::Topic,
};
use crate::{
    SseConnection,
    backplane::{TopicError, TopicName},
    connection::Hold,
    log::Position,
};

/// One or several topic names.
///
/// Sealed: it stands for what can be turned into names, as `"orders"`, `["orders", "alerts"]`, a
/// `Vec<String>` or a `&[TopicName]`.
pub trait IntoTopics: sealed::Sealed {
    #[doc(hidden)]
    fn into_topics(self) -> Result<Vec<TopicName>, TopicError>;
}

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Sealed {}
}

macro_rules! one_name {
    ($($name:ty),*) => {$(
        impl sealed::Sealed for $name {}
        impl IntoTopics for $name {
            fn into_topics(self) -> Result<Vec<TopicName>, TopicError> {
                Ok(vec![self.try_into()?])
            }
        }
    )*};
}

one_name!(&str, String, &String, TopicName, &TopicName);

fn names<T>(names: impl IntoIterator<Item = T>) -> Result<Vec<TopicName>, TopicError>
where
    T: TryInto<TopicName>,
    T::Error: Into<TopicError>,
{
    let names = names.into_iter();
    names
        .map(|name| name.try_into().map_err(Into::into))
        .collect()
}

macro_rules! many_names {
    ($([$($generics:tt)*] $names:ty, $name:ty);* $(;)?) => {$(
        impl<$($generics)*> sealed::Sealed for $names {}
        impl<$($generics)*> IntoTopics for $names
        where
            $name: TryInto<TopicName>,
            <$name as TryInto<TopicName>>::Error: Into<TopicError>,
        {
            fn into_topics(self) -> Result<Vec<TopicName>, TopicError> {
                names(self)
            }
        }
    )*};
}

many_names! {
    [T, const N: usize] [T; N], T;
    [T] Vec<T>, T;
    ['a, T] &'a [T], &'a T;
    ['a, T] &'a Vec<T>, &'a T;
}

/// A pending call of [`Broker::subscribe`], which `.await` carries out.
#[must_use = "nothing is subscribed until this is awaited"]
pub struct Subscribe<'a> {
    broker: &'a Broker,
    connection: &'a SseConnection,
    topics: Result<Vec<TopicName>, TopicError>,
    from: From<'a>,
}

#[derive(Clone, Copy)]
enum From<'a> {
    /// The position in the client's `Last-Event-ID`.
    LastEventId,
    Now,
    Position(&'a Position),
}

impl<'a> Subscribe<'a> {
    pub(super) fn new(
        broker: &'a Broker,
        connection: &'a SseConnection,
        topics: Result<Vec<TopicName>, TopicError>,
    ) -> Self {
        Self {
            broker,
            connection,
            topics,
            from: From::LastEventId,
        }
    }

    /// Starts from now, whatever position the client sent. This is for topics whose past events
    /// must not be read by every client that may read them now.
    pub fn without_replay(mut self) -> Self {
        self.from = From::Now;
        self
    }

    /// Starts after this position, whatever position the client sent.
    pub fn from(mut self, position: &'a Position) -> Self {
        self.from = From::Position(position);
        self
    }

    async fn carry_out(self) -> Result<Subscription, BrokerError> {
        let core = &self.broker.core;
        let names = self.topics?;
        core.read();
        let is_explicit = matches!(self.from, From::Position(_));
        let from = match self.from {
            From::Now => None,
            From::Position(position) => Some(*position),
            From::LastEventId => {
                let id = self.connection.last_event_id();
                id.and_then(|id| Position::parse(id.as_bytes()))
            }
        };
        if let Some(position) = from {
            // It may come from a node that has read further.
            let is_ahead = {
                let log = core.replica.lock();
                let head = log.head.filter(|_| log.is_window_read);
                head.is_some_and(|it| {
                    it.epoch() == position.epoch() && it.offset() < position.offset()
                })
            };
            if is_ahead {
                core.catch_up().await;
            }
        }

        let (subscriber, hold) = match subscriber_of(core, self.connection) {
            Some(subscriber) => (subscriber, self.connection.hold_source()),
            None => attach(core, self.connection)?,
        };
        let outcome = subscriber.subscribe(&names, from, is_explicit)?;
        Ok(Subscription {
            core: Arc::clone(core),
            hold,
            outcome,
        })
    }
}

impl<'a> IntoFuture for Subscribe<'a> {
    type Output = Result<Subscription, BrokerError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.carry_out())
    }
}

impl fmt::Debug for Subscribe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribe")
            .field("connection", &self.connection)
            .field("topics", &self.topics)
            .finish_non_exhaustive()
    }
}

/// Returns the connection's subscriptions with this broker, if it has any.
pub(super) fn subscriber_of(
    core: &Arc<Core>,
    connection: &SseConnection,
) -> Option<Arc<Subscriber>> {
    let subscriber = connection.source()?.into_any().downcast::<Subscriber>();
    let subscriber = subscriber.ok()?;
    Arc::ptr_eq(&subscriber.replica, &core.replica).then_some(subscriber)
}

fn attach(
    core: &Arc<Core>,
    connection: &SseConnection,
) -> Result<(Arc<Subscriber>, Hold), BrokerError> {
    let subscriber = Arc::new(Subscriber::new(core, connection.source_waker()));
    match connection.attach(Arc::clone(&subscriber) as _) {
        Ok(hold) => Ok((subscriber, hold)),
        // Another task may have been first.
        Err(error) => match subscriber_of(core, connection) {
            Some(subscriber) => Ok((subscriber, connection.hold_source())),
            None => Err(error.into()),
        },
    }
}

impl Subscriber {
    /// Adds topics, from a position on. Topics that it already has are skipped.
    fn subscribe(
        self: &Arc<Self>,
        names: &[TopicName],
        from: Option<Position>,
        is_explicit: bool,
    ) -> Result<SharedOutcome, BrokerError> {
        let mut cursors = self.lock();
        if cursors.is_detached {
            let reason = self.close_reason();
            drop(cursors);
            return Err(BrokerError::closed(reason));
        }
        // The position that the client sent is long past on a stream that is live.
        let from = from.filter(|_| is_explicit || !cursors.is_live);
        let without_ids = cursors.last_sent;
        let mut log = self.replica.lock();
        let mut topics: Vec<Arc<Topic>> = Vec::with_capacity(names.len());
        for name in names {
            let topic = log.topic_or_new(name);
            let is_there = |it: &Arc<Topic>| Arc::ptr_eq(it, &topic);
            if !topics.iter().any(is_there) && !cursors.has(&topic) {
                topics.push(topic);
            }
        }
        // Added under the log's lock: no entry can come between the position and the cursor.
        for topic in &topics {
            cursors.topics.push(Cursor {
                topic: Arc::clone(topic),
                key: topic.add(&self.waiter),
                next: topic.ring().end(),
                without_ids,
            });
        }
        cursors.topics.shrink_to_fit();
        self.count(&cursors);

        if log.is_window_read {
            let origin = PositionOrigin {
                is_explicit,
                is_late: false,
            };
            let decision = self.move_cursors(&mut cursors, &log, &topics, from, origin);
            return Ok(Arc::new(Mutex::new(decision.outcome())));
        }
        let outcome = Arc::new(Mutex::new(Outcome::Pending));
        cursors.pending.push(PendingTopics {
            topics,
            from,
            is_explicit,
            was_ahead: false,
            outcome: Arc::clone(&outcome),
        });
        if cursors.pending_key.is_none() {
            let pending = Arc::clone(self) as Arc<dyn Pending>;
            cursors.pending_key = Some(self.core.pending().insert(pending));
        }
        drop(log);
        Ok(outcome)
    }

    /// Moves the cursors of these topics to the client's position.
    fn move_cursors(
        &self,
        cursors: &mut Cursors,
        log: &Store,
        topics: &[Arc<Topic>],
        from: Option<Position>,
        origin: PositionOrigin,
    ) -> ResumeDecision {
        let decision = self.replica.resume_decision(log, topics, from);
        for cursor in &mut cursors.topics {
            if topics.iter().any(|topic| Arc::ptr_eq(topic, &cursor.topic)) {
                let ring = cursor.topic.ring();
                cursor.next = match decision {
                    ResumeDecision::Exact(position) => ring.number_after(position.offset()),
                    _ => ring.end(),
                };
            }
        }
        if let Some(head) = log.head {
            cursors.begin(decision, head, origin);
        }
        decision
    }

    /// Removes topics.
    pub(super) fn unsubscribe(&self, names: &[TopicName]) {
        let mut cursors = self.lock();
        let is_meant = |cursor: &Cursor| names.contains(&cursor.topic.name);
        let (gone, kept) = std::mem::take(&mut cursors.topics)
            .into_iter()
            .partition(is_meant);
        cursors.topics = kept;
        self.count(&cursors);
        drop(cursors);
        let gone: Vec<Cursor> = gone;
        for cursor in gone {
            cursor.leave(&self.replica);
        }
    }
}

impl Pending for Subscriber {
    fn is_found_ahead_of(&self, head: &Position) -> bool {
        let mut is_ahead = false;
        for one in &mut self.lock().pending {
            let position = one.from.filter(|it| it.epoch() == head.epoch());
            let is_this = position.is_some_and(|it| it.offset() > head.offset());
            is_ahead |= is_this && !std::mem::replace(&mut one.was_ahead, true);
        }
        is_ahead
    }

    fn resolve(&self) {
        let mut cursors = self.lock();
        let pending = std::mem::take(&mut cursors.pending);
        cursors.pending_key = None;
        let log = self.replica.lock();
        for one in pending {
            let origin = PositionOrigin {
                is_explicit: one.is_explicit,
                is_late: true,
            };
            let decision = self.move_cursors(&mut cursors, &log, &one.topics, one.from, origin);
            let mut outcome = one.outcome.lock().unwrap_or_else(PoisonError::into_inner);
            *outcome = decision.outcome();
        }
    }

    fn is_waiting(&self) -> bool {
        !self.lock().pending.is_empty()
    }

    fn wake(&self) {
        if let Some(waker) = self.waiter.take_waker(Instant::now()) {
            waker.wake();
        }
    }
}
