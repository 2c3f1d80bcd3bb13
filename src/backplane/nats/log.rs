//! The stream behind a log, as all handles and readers share it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client,
    jetstream::{
        Context, ContextBuilder,
        consumer::{AckPolicy, Consumer, DeliverPolicy, pull},
        stream::LastRawMessageErrorKind,
    },
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    api::{self, ANSWER, StreamState},
    connection::NatsConnection,
    found::find,
    settings::JetStreamSettings,
};
use crate::{
    BoxError,
    backplane::{ReadError, Skipped},
    log::{Epoch, Position},
};

/// For how long a server that is there is asked again, when it does not answer well.
const RETRY_FOR: Duration = Duration::from_secs(5);

/// How long an append waits for its acknowledgement, at most, before it is sent once more.
const REPEAT_AFTER: Duration = Duration::from_millis(2500);

/// How long to wait before a stream is made in the position of one that was there. It is said to be
/// gone before its files are: a server (2.9.10) that is asked for another at once removes those as
/// well.
const RECREATE_DELAY: Duration = Duration::from_millis(500);

/// How long the making of a consumer is waited for, before another one is asked for.
const CONSUMER_TIMEOUT: Duration = Duration::from_millis(700);

/// How long the server keeps a consumer that nobody asks for messages.
const INACTIVE_AFTER: Duration = Duration::from_secs(10);

pub(super) struct StreamLog {
    pub(super) connection: Arc<NatsConnection>,
    /// For appends.
    pub(super) context: Context,
    /// For all that readers ask. What was asked while the servers of a cluster elect a leader is not
    /// answered, ever.
    questions: Context,
    pub(super) settings: JetStreamSettings,
    /// How many messages were skipped.
    pub(super) skipped: Skipped,
    client: Client,
    /// Whether a stream was seen ever.
    was_there: AtomicBool,
    /// Guards what appends have to know of the stream, with the count of breaks for which it holds.
    known: Mutex<Option<(u64, Known)>>,
    /// Held by the one append that asks for it.
    asking: tokio::sync::Mutex<()>,
    /// Begins the ids of this handle's messages.
    prefix: u64,
    next_id: AtomicU64,
}

/// What an append has to know of the stream.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) epoch: Epoch,
    pub(super) knows_for: Duration,
}

impl StreamLog {
    pub(super) fn new(
        client: Client,
        connection: Arc<NatsConnection>,
        settings: JetStreamSettings,
    ) -> Self {
        let context = |timeout| {
            let context = ContextBuilder::new().timeout(timeout);
            context.build(client.clone())
        };
        Self {
            connection,
            context: context(REPEAT_AFTER.min(settings.append_timeout / 2)),
            questions: context(ANSWER),
            settings,
            skipped: Skipped::new("entries of the log skipped"),
            client,
            was_there: AtomicBool::new(false),
            known: Mutex::new(None),
            asking: tokio::sync::Mutex::new(()),
            prefix: fastrand::u64(..),
            next_id: AtomicU64::new(0),
        }
    }

    /// Waits until there is a connection.
    pub(super) async fn connected(&self) {
        self.connection.wait(&self.client).await;
    }

    pub(super) fn is_up(&self) -> bool {
        self.connection.is_up()
    }

    /// An id that no other message has.
    pub(super) fn new_id(&self) -> String {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}-{number:x}", self.prefix)
    }

    /// The stream as it is, if there is one.
    pub(super) async fn check(&self) -> Result<Option<StreamState>, BoxError> {
        let breaks = self.connection.breaks();
        let state = api::stream_state(&self.client, &self.settings).await?;
        if state.is_some() {
            self.was_there.store(true, Ordering::Release);
        }
        let known = state.map(|state| {
            let known = Known {
                epoch: state.epoch,
                knows_for: state.knows_for,
            };
            (breaks, known)
        });
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(state)
    }

    /// The stream as it is, made if there is none. Waits for a connection, and for a server that
    /// starts.
    pub(super) async fn state(&self) -> Result<StreamState, BoxError> {
        let mut until = Instant::now() + RETRY_FOR;
        let mut rest = Duration::from_millis(25);
        loop {
            if !self.connection.is_up() {
                self.connected().await;
                until = Instant::now() + RETRY_FOR;
            }
            let error = match self.check_or_create().await {
                Ok(Some(state)) => return Ok(state),
                Ok(None) => "the stream is gone as soon as it is made".into(),
                Err(error) => error,
            };
            if Instant::now() > until {
                return Err(error);
            }
            sleep(rest.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            rest = (rest * 2).min(Duration::from_millis(500));
        }
    }

    async fn check_or_create(&self) -> Result<Option<StreamState>, BoxError> {
        if let Some(state) = self.check().await? {
            return Ok(Some(state));
        }
        if self.was_there.load(Ordering::Acquire) {
            sleep(RECREATE_DELAY.mul_f64(1.0 + fastrand::f64() / 2.0)).await;
            // Another node may have been faster.
            if let Some(state) = self.check().await? {
                return Ok(Some(state));
            }
        }
        api::create(&self.client, &self.settings).await?;
        self.check().await
    }

    /// What an append has to know, asked for once for each connection.
    pub(super) async fn known(&self) -> Result<Known, BoxError> {
        if let Some(known) = self.known_now() {
            return Ok(known);
        }
        let _asking = self.asking.lock().await;
        if let Some(known) = self.known_now() {
            return Ok(known);
        }
        let state = self.state().await?;
        Ok(Known {
            epoch: state.epoch,
            knows_for: state.knows_for,
        })
    }

    fn known_now(&self) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (breaks, known) = (*known)?;
        (breaks == self.connection.breaks()).then_some(known)
    }

    /// The stream has proved to be another one, or none.
    pub(super) fn forget(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) async fn head(&self) -> Result<Position, ReadError> {
        let state = self.state().await.map_err(ReadError::unavailable)?;
        let tag = match state.last {
            0 => 0,
            last => {
                let tag = self.tag_at(last).await.map_err(ReadError::unavailable)?;
                tag.unwrap_or_else(|| tag_of_loss(state.epoch, last))
            }
        };
        Ok(Position::new(state.epoch, state.last, tag))
    }

    /// The tag of the message at this offset, if there is one.
    pub(super) async fn tag_at(&self, offset: u64) -> Result<Option<u32>, BoxError> {
        let stream = &self.settings.stream;
        let mut tries = 0;
        loop {
            let stream = self.questions.get_stream_no_info(stream).await?;
            match stream.get_raw_message(offset).await {
                Ok(message) => return Ok(Some(find(&message.payload, usize::MAX).0)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    return Ok(None);
                }
                // A server that does not answer has lost nothing.
                Err(error) if tries == 2 => return Err(error.into()),
                Err(_) => self.connected().await,
            }
            tries += 1;
        }
    }

    /// A consumer that delivers from this offset on.
    pub(super) async fn consumer(&self, from: u64) -> Result<Consumer<pull::Config>, BoxError> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: from,
            },
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE_AFTER,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let stream = &self.settings.stream;
        for _ in 0..3 {
            // In a cluster it may be given to a server that is not there, and then nobody answers.
            // The next one may not.
            let created = self
                .questions
                .create_consumer_on_stream(config.clone(), stream);
            if let Ok(created) = timeout(CONSUMER_TIMEOUT, created).await {
                return Ok(created?);
            }
        }
        Ok(self
            .questions
            .create_consumer_on_stream(config, stream)
            .await?)
    }
}

/// Marks a position that was reached by a loss, so that a reader which comes back to it is known,
/// and does not report the loss again. No record is marked so, except by chance.
pub(super) fn tag_of_loss(epoch: Epoch, offset: u64) -> u32 {
    let bytes = epoch.value().to_be_bytes().into_iter();
    (api::hash(bytes.chain(offset.to_be_bytes())) >> 32) as u32 | 1
}

pub(super) fn position_of_loss(epoch: Epoch, offset: u64) -> Position {
    Position::new(epoch, offset, tag_of_loss(epoch, offset))
}
