//! How a record gets into the stream.
//!
//! It is published until the server acknowledges it, always with the same id, by which the server
//! drops what it has already. So an append that was on its way when the connection broke, or whose
//! acknowledgement was lost, ends well all the same, if its time allows.

use std::{error::Error, sync::Arc, time::Duration};

use async_nats::jetstream::{
    self, ErrorCode,
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
    publish::PublishAck,
};
use bytes::Bytes;
use tokio::{
    select,
    time::{Instant, sleep, timeout},
};

use super::log::{Known, StreamLog};
use crate::{
    backplane::{AppendError, AppendErrorKind, Record, envelope},
    log::Position,
};

/// How long to wait before a stream that was not there is looked for again.
const REST: Duration = Duration::from_millis(50);

struct Append<'a> {
    log: &'a StreamLog,
    payload: Bytes,
    id: String,
    tag: u32,
    /// When it was first sent, so that the server may have it.
    sent: Option<Instant>,
}

pub(super) async fn append(log: &StreamLog, record: &Record) -> Result<Position, AppendError> {
    let (size, max) = (envelope::size(record), log.settings.max_record);
    if size > max {
        let why = format!("record has {size} bytes: the limit is {max}");
        return Err(AppendError::new(AppendErrorKind::Rejected, why));
    }
    if !log.is_up() {
        let why = log.connection.why_down();
        return Err(AppendError::new(AppendErrorKind::NotSent, why));
    }
    let tag = fastrand::u32(1..);
    let mut append = Append {
        log,
        payload: envelope::encode(tag, record).into(),
        id: log.new_id(),
        tag,
        sent: None,
    };
    match timeout(log.settings.append_timeout, append.run()).await {
        Ok(result) => result,
        Err(late) => Err(append.failed(late)),
    }
}

impl Append<'_> {
    async fn run(&mut self) -> Result<Position, AppendError> {
        loop {
            let breaks = self.log.connection.breaks();
            let known = match self.log.known().await {
                Ok(known) => known,
                Err(error) => return Err(self.failed(error)),
            };
            if self.sent.is_some_and(|at| at.elapsed() > known.knows_for) {
                return Err(self.failed("the server would not know it again"));
            }
            let before = self.sent;
            match self.publish(breaks).await {
                Some(Ok(ack)) => return self.acknowledged(known, &ack),
                Some(Err(error)) => self.refused(before, error).await?,
                None => {}
            }
        }
    }

    /// Publishes it once. None if the connection broke.
    async fn publish(&mut self, breaks: u64) -> Option<Result<PublishAck, PublishError>> {
        let message = PublishMessage::build()
            .payload(self.payload.clone())
            .message_id(&self.id);
        let subject = self.log.settings.subject().to_owned();
        self.sent.get_or_insert_with(Instant::now);
        let answered = async {
            let ack = self.log.context.send_publish(subject, message).await?;
            ack.await
        };
        select! {
            biased;
            result = answered => Some(result),
            () = Arc::clone(&self.log.connection).wait_for_another(breaks) => None,
        }
    }

    fn acknowledged(&self, known: Known, ack: &PublishAck) -> Result<Position, AppendError> {
        if ack.stream != self.log.settings.stream {
            let why = format!("the subject is of another stream: {}", ack.stream);
            return Err(AppendError::new(AppendErrorKind::Rejected, why));
        }
        Ok(Position::new(known.epoch, ack.sequence, self.tag))
    }

    /// Decides whether it is worth another try.
    async fn refused(
        &mut self,
        before: Option<Instant>,
        error: PublishError,
    ) -> Result<(), AppendError> {
        match error.kind() {
            // It may be there all the same, or on its way.
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => Ok(()),
            // The server says that nobody has taken it.
            PublishErrorKind::StreamNotFound => {
                self.sent = before;
                self.log.forget();
                sleep(REST).await;
                Ok(())
            }
            PublishErrorKind::MaxPayloadExceeded => {
                Err(AppendError::new(AppendErrorKind::Rejected, error))
            }
            _ => {
                let refusal = error.source().and_then(|it| it.downcast_ref());
                let code = refusal.map(jetstream::Error::error_code);
                if code.is_none() {
                    return Err(self.failed(error));
                }
                self.sent = before;
                if code == Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM) {
                    return Err(AppendError::new(AppendErrorKind::Rejected, error));
                }
                Err(self.failed(error))
            }
        }
    }

    fn failed(&self, error: impl Into<crate::BoxError>) -> AppendError {
        let kind = match self.sent {
            Some(_) => AppendErrorKind::MaybeSent,
            None => AppendErrorKind::NotSent,
        };
        AppendError::new(kind, error)
    }
}
