//! The checks at the end of a stream, of a `publish` and of the world.

use std::{sync::Arc, time::Duration};

use tower_sse::CloseReason;

use crate::{
    log::{Kind, Place},
    oracle::{Anchor, Closed, End, Oracle, Stream, name},
    violation::Violation,
};

impl Oracle {
    pub(crate) fn ended(&mut self, client: usize, end: End, reason: Option<CloseReason>) {
        let Some(stream) = self.clients[client].stream.take() else {
            return;
        };
        if end == End::Cut || stream.call.is_none() {
            return;
        }
        let is_fast = self.clients[client].is_fast && !stream.has_paused;
        let is_expected = match reason {
            Some(CloseReason::Closed) => stream.closed.is_some(),
            Some(CloseReason::Drained) => stream.is_drained,
            Some(CloseReason::Lifetime) => stream.has_lifetime,
            Some(CloseReason::SlowConsumer) => self.plan.disconnects || !is_fast,
            _ => false,
        };
        if !is_expected {
            let what = format!("client {client}: stream ended {end:?} with {reason:?}");
            self.violate(Violation::Ended, what);
        }
        if reason == Some(CloseReason::SlowConsumer) && is_fast && self.plan.strict.pace {
            let what = format!("client {client} reads at once, and was disconnected for its pace");
            self.violate(Violation::Lagged, what);
        }
        let is_complete = end == End::Clean && stream.direct_received == stream.direct_sent;
        if end == End::Clean && reason != Some(CloseReason::SlowConsumer) && !is_complete {
            let (received, sent) = (stream.direct_received, stream.direct_sent);
            let what = format!("client {client}: clean end after {received} of {sent} events");
            self.violate(Violation::Direct, what);
        }
        let is_drained = reason == Some(CloseReason::Drained) && end == End::Clean;
        if is_fast && is_drained && !stream.has_reconnect {
            let what = format!("client {client}: drained without `reconnect`");
            self.violate(Violation::Ended, what);
        }
        if let (End::Clean, Some(CloseReason::Closed), Some(closed)) = (end, reason, stream.closed)
        {
            self.check_close(client, &stream, closed);
        }
    }

    /// Checks that everything visible at `close` was delivered, or a gap announced.
    fn check_close(&mut self, client: usize, stream: &Stream, closed: Closed) {
        let Some(owed) = closed.owed.filter(|_| self.plan.strict.close) else {
            return;
        };
        let log = self.log.lock().unwrap();
        let missing = self.missing(&log, client, stream, Place::Entry(owed), true);
        let missing = self.unannounced(&log, client, stream, missing);
        let missing: Vec<_> = missing.into_iter().map(|(entry, _)| entry).collect();
        drop(log);
        if !missing.is_empty() {
            let what = format!("client {client}: {} after `close`", self.names(&missing));
            self.violate(Violation::NotDelivered, what);
        }
    }

    // ===== the end of the world =====

    /// Checks that each client has received everything.
    pub(crate) fn settled(&mut self) {
        for client in 0..self.clients.len() {
            self.check_settled(client);
        }
    }

    fn check_settled(&mut self, index: usize) {
        let log = Arc::clone(&self.log);
        let log = log.lock().unwrap();
        let client = &self.clients[index];
        let Some(stream) = &client.stream else {
            drop(log);
            self.violate(
                Violation::Stalled,
                format!("client {index} has no stream at the end"),
            );
            return;
        };
        if stream.first_anchor.is_none() && client.anchor == Anchor::Start {
            drop(log);
            self.violate(
                Violation::Stalled,
                format!("client {index} has no position at the end"),
            );
            return;
        }
        let missing = self.missing(&log, index, stream, log.head(), true);
        let mut missing = self.unannounced(&log, index, stream, missing);
        if let Some(gap) = client.gaps.last() {
            // Later entries are due. A broker that has lost its log begins anew when it has read
            // the new one.
            missing = self.missing(&log, index, stream, log.head(), true);
            let is_due = |entry: usize| {
                let is_late = log.entries[entry].time > gap.time + Duration::from_secs(5);
                gap.is_of_topics() && log.got_after(stream.reader, entry, gap.step) || is_late
            };
            missing.retain(|(entry, _)| is_due(*entry));
        } else if let Anchor::At(place) = client.anchor
            && log.count_to(log.current(), place).is_none()
        {
            drop(log);
            let what = format!("client {index} was not announced the rewritten log");
            self.violate(Violation::Stalled, what);
            return;
        }
        let missing: Vec<_> = missing.into_iter().map(|(entry, _)| entry).collect();
        drop(log);
        if !missing.is_empty() {
            let what = format!("client {index}: {} at the end", self.names(&missing));
            self.violate(Violation::Stalled, what);
        }
    }

    /// Checks the answer to a `publish` against the log.
    pub(crate) fn published(&mut self, uid: usize, answer: &Result<String, bool>) {
        let log = self.log.lock().unwrap();
        let is_it = |kind: &Kind| matches!(kind, Kind::Event { uid: it, .. } if *it == uid);
        let entries: Vec<_> = (0..log.entries.len())
            .filter(|entry| is_it(&log.entries[*entry].kind))
            .collect();
        let is_right = match answer {
            Ok(id) => {
                let place = log.place(id);
                entries.len() == 1 && place == Some(Place::Entry(entries[0]))
            }
            // May have been sent.
            Err(true) => entries.len() <= 1,
            Err(false) => entries.is_empty(),
        };
        let count = entries.len();
        drop(log);
        if !is_right {
            let what = format!("event {uid}: {answer:?}, {count} times in the log");
            self.violate(Violation::Published, what);
        }
    }

    /// Entries as messages name them.
    pub(crate) fn names(&self, entries: &[usize]) -> String {
        let log = self.log.lock().unwrap();
        let names: Vec<_> = entries.iter().map(|entry| name(&log, *entry)).collect();
        format!("missing {}", names.join(", "))
    }
}
