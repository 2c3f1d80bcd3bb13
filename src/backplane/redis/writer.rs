//! Appends in batches: what has come while one batch was under way goes with the next.
//!
//! 1. One batch is under way at a time, and each has a number. The script notes the last one of each
//!    publisher with what became of it, so that a batch which is sent again, because nothing was
//!    heard of it, is carried out once. One that comes late, after a later one, is refused.
//! 2. So a batch is sent again until its outcome is known or nobody waits for it any more.
//! 3. A server that has gone is waited for, as long as an append may take. While it stays away
//!    appends fail as soon as a try to reach it has failed.

use std::{sync::Arc, time::Duration};

use redis::{ErrorKind, RedisError, ServerErrorKind, make_extension_error};
use tokio::time::{Instant, sleep};

use super::{
    RedisShared,
    connection::{Connection, Side, is_answer},
    error::Unexpected,
    queue::QueuedAppend,
};
use crate::{
    BoxError,
    backplane::{AppendError, AppendErrorKind},
    log::{Epoch, Position},
};

/// What the script says: the epoch, the offset of the first record, how many were appended, and why
/// not more.
type Reply = (Vec<u8>, u64, usize, String);

/// How a server begins to say that it is a replica.
const READ_ONLY: &str = "READONLY";

pub(super) struct Writer {
    shared: Arc<RedisShared>,
    /// How many attempts have failed since the last success.
    failures: u32,
    /// Until when attempts are repeated while the server does not respond.
    retry_until: Instant,
}

impl Writer {
    pub(super) fn new(shared: Arc<RedisShared>) -> Self {
        Self {
            shared,
            failures: 0,
            retry_until: Instant::now(),
        }
    }

    /// Appends, and sees meanwhile whether the server has become another one.
    pub(super) async fn run(self) {
        let shared = Arc::clone(&self.shared);
        tokio::join!(self.append_all(), shared.watch());
    }

    async fn append_all(mut self) {
        let shared = Arc::clone(&self.shared);
        // At once, so that it is known whether the server is there.
        match shared.commands.get(&shared.location, &shared.health).await {
            Ok(_) => self.succeeded(),
            Err(error) => shared.queue.set_last_error(Some(error)),
        }
        loop {
            let batch = shared.queue.take().await;
            self.send(batch).await;
        }
    }

    async fn send(&mut self, mut batch: Vec<QueuedAppend>) {
        let shared = Arc::clone(&self.shared);
        let number = shared.next_batch();
        let mut may_be_sent = false;
        while batch.iter().any(QueuedAppend::is_awaited) {
            let error = match shared.commands.get(&shared.location, &shared.health).await {
                Err(error) => error,
                // What nobody waits for any more before the first try is in none.
                Ok(_) if !may_be_sent && !claim(&mut batch) => return,
                Ok(connection) => match self.try_to_send(connection, &batch, number).await {
                    Ok((_, _, 0, why_not)) if why_not.starts_with(READ_ONLY) => {
                        // It has become a replica. The primary may be found elsewhere.
                        shared.commands.drop_connection().await;
                        make_extension_error(READ_ONLY.to_owned(), Some(why_not))
                    }
                    Ok(reply) => {
                        self.succeeded();
                        if finish(batch, reply, may_be_sent).is_err() {
                            // It may be a replica now.
                            shared.commands.drop_connection().await;
                        }
                        return;
                    }
                    Err(error) if is_answer(&error) && !self.is_passing(&error) => {
                        self.succeeded();
                        return fail(batch, may_be_sent, || error.clone().into());
                    }
                    Err(error) => {
                        may_be_sent |= !is_answer(&error);
                        shared.health.set(Side::Append, Some(is_answer(&error)));
                        shared.commands.drop_connection().await;
                        error
                    }
                },
            };
            if !may_be_sent {
                batch.iter().for_each(QueuedAppend::unclaim);
            }
            shared.queue.set_last_error(Some(error.clone()));
            if Instant::now() >= self.retry_until {
                fail(batch, may_be_sent, || error.clone().into());
                shared.queue.fail_all(&error);
                return self.back_off().await;
            }
            self.back_off().await;
        }
    }

    async fn try_to_send(
        &self,
        mut connection: Connection,
        batch: &[QueuedAppend],
        number: u64,
    ) -> Result<Reply, RedisError> {
        let shared = &self.shared;
        let mut command = connection.append(&shared.location);
        command
            .arg(&fastrand::u64(..).to_be_bytes()[..])
            .arg(&shared.publisher)
            .arg(number)
            .arg(shared.location.options.window);
        for append in batch {
            command.arg(&append.envelope[..]);
        }
        connection.query(&command).await
    }

    /// Whether a refusal is one of a server that is not ready, or not the right one any more.
    fn is_passing(&self, error: &RedisError) -> bool {
        match error.kind() {
            ErrorKind::Server(kind) => match kind {
                ServerErrorKind::NoScript
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown => true,
                // Else nobody would find the other one.
                ServerErrorKind::Moved | ServerErrorKind::Ask => {
                    self.shared.location.discovery.has_directory()
                }
                _ => false,
            },
            _ => error.code() == Some("BUSY"),
        }
    }

    fn succeeded(&mut self) {
        let shared = &self.shared;
        shared.health.set(Side::Append, Some(true));
        if self.failures > 0 {
            self.failures = 0;
            shared.queue.set_last_error(None);
        }
        self.retry_until = Instant::now() + shared.location.options.append_timeout;
    }

    /// Backs off after a failed attempt, longer each time.
    async fn back_off(&mut self) {
        let longest = Duration::from_millis(50 << self.failures.min(4));
        self.failures += 1;
        sleep(longest.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

/// Claims what is still waited for. Returns whether there is any.
fn claim(batch: &mut Vec<QueuedAppend>) -> bool {
    batch.retain(|append| append.is_awaited() && append.claim());
    !batch.is_empty()
}

/// Completes the appends by the server's reply. An error: the server has refused some.
fn finish(mut batch: Vec<QueuedAppend>, reply: Reply, may_be_sent: bool) -> Result<(), ()> {
    let (epoch, first, count, why_not) = reply;
    let epoch = epoch.try_into().map(u64::from_be_bytes);
    let epoch = Epoch::new(epoch.unwrap_or_default());
    let refused = batch.split_off(count.min(batch.len()));
    for (offset, append) in (first..).zip(batch) {
        let position = Position::new(epoch, offset, append.tag);
        append.finish(Ok(position));
    }
    if refused.is_empty() {
        return Ok(());
    }
    fail(refused, may_be_sent, || Unexpected(why_not.clone()).into());
    Err(())
}

fn fail(batch: Vec<QueuedAppend>, may_be_sent: bool, cause: impl Fn() -> BoxError) {
    let kind = if may_be_sent {
        AppendErrorKind::MaybeSent
    } else {
        AppendErrorKind::NotSent
    };
    for append in batch {
        append.finish(Err(AppendError::new(kind, cause())));
    }
}
