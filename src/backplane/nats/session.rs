//! One consumer of a reader, and the watch on its stream.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use async_nats::jetstream::consumer::pull;
use bytes::Bytes;
use futures_core::Stream;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{
    api::StreamState,
    log::{StreamLog, position_of_loss},
};
use crate::{BoxError, log::Position};

/// How many messages the server sends ahead. Half of them read, it is asked for as many again.
const BATCH: usize = 512;

/// How often the server says that there is nothing. After two times without a word the consumer
/// counts as gone.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long a request for messages holds.
const EXPIRES: Duration = Duration::from_secs(10);

/// How often the stream is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Session {
    messages: pull::Stream,
    /// How many messages the consumer has delivered: one that is missing was lost on the way.
    delivered: u64,
    watch: Watch,
}

/// What a session comes to.
pub(super) enum SessionStep {
    /// What the next message holds, and its offset.
    Message(Bytes, u64),
    /// The consumer is of no use any more. Another one will do.
    Broken,
    /// It lives, but does not give what follows.
    Stalled,
    /// The stream is another one.
    Rewritten,
}

impl Session {
    /// A session on a consumer that was made while the connection had broken so often.
    pub(super) async fn start(
        log: &Arc<StreamLog>,
        from: u64,
        breaks: u64,
    ) -> Result<(Self, u64), BoxError> {
        let consumer = log.consumer(from).await?;
        let pending = consumer.cached_info().num_pending;
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .expires(EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await?;
        let session = Self {
            messages,
            delivered: 0,
            watch: Watch::new(log, breaks),
        };
        Ok((session, pending))
    }

    /// The next message of a reader that is at this position.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, position: Position) -> Poll<SessionStep> {
        loop {
            match Pin::new(&mut self.messages).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    let Ok(info) = message.info() else {
                        continue;
                    };
                    let offset = info.stream_sequence;
                    self.delivered += 1;
                    if info.consumer_sequence != self.delivered {
                        return Poll::Ready(SessionStep::Broken);
                    }
                    return Poll::Ready(SessionStep::Message(message.message.payload, offset));
                }
                Poll::Ready(_) => return Poll::Ready(SessionStep::Broken),
                Poll::Pending => return self.watch.poll(cx, position),
            }
        }
    }
}

type Checking = Pin<Box<dyn Future<Output = Result<Option<StreamState>, BoxError>> + Send>>;

/// Sees what no consumer tells of: that the stream was purged, deleted or made anew, that the
/// connection is another one, that messages do not come.
struct Watch {
    log: Arc<StreamLog>,
    tick: Interval,
    checking: Option<Checking>,
    /// Where the reader was at the last check.
    position: Option<Position>,
    /// Where it was when it was behind the stream.
    was_behind_at: Option<Position>,
    another_connection: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Watch {
    fn new(log: &Arc<StreamLog>, breaks: u64) -> Self {
        let mut tick = interval(CHECK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let connection = Arc::clone(&log.connection);
        Self {
            log: Arc::clone(log),
            tick,
            checking: None,
            position: None,
            was_behind_at: None,
            another_connection: Box::pin(connection.wait_for_another(breaks)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, position: Position) -> Poll<SessionStep> {
        if self.another_connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(SessionStep::Broken);
        }
        loop {
            if let Some(checking) = &mut self.checking {
                let state = ready!(checking.as_mut().poll(cx));
                self.checking = None;
                if let Some(step) = state.ok().and_then(|state| self.judge(state, position)) {
                    return Poll::Ready(step);
                }
            }
            ready!(self.tick.poll_tick(cx));
            let log = Arc::clone(&self.log);
            self.position = Some(position);
            self.checking = Some(Box::pin(async move { log.check().await }));
        }
    }

    fn judge(&mut self, state: Option<StreamState>, position: Position) -> Option<SessionStep> {
        let asked_at = self.position?;
        let state = match state {
            Some(state) if state.epoch == asked_at.epoch() && state.last >= asked_at.offset() => {
                state
            }
            _ => return Some(SessionStep::Rewritten),
        };
        let is_still = asked_at == position;
        // What was read last is gone, though nothing had to make room for it.
        let is_reported = position.offset() == 0
            || position == position_of_loss(position.epoch(), position.offset());
        let is_purged = is_still && state.messages == 0 && !state.expires && !is_reported;
        let behind_at = (is_still && state.last > position.offset()).then_some(position);
        let was_behind_at = mem::replace(&mut self.was_behind_at, behind_at);
        let is_stalled = behind_at.is_some() && behind_at == was_behind_at;
        if is_stalled {
            return Some(SessionStep::Stalled);
        }
        (is_purged && behind_at.is_none()).then_some(SessionStep::Broken)
    }
}
