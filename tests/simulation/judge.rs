//! The judgement of each event that a client receives.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tower_sse::{broker::Outcome, event::MessageEvent};

use crate::{
    log::{Kind, Log, Place},
    oracle::{Anchor, Cover, Gap, Membership, Oracle, name},
    violation::Violation,
};

/// The longest time in which an event reaches a client that waits for it.
const PROMPT: Duration = Duration::from_secs(1);

const REASONS: [&str; 7] = [
    "other_log",
    "unknown_position",
    "evicted",
    "lagged",
    "lost",
    "unreadable",
    "unavailable",
];

/// The reasons of gaps at the beginning of a stream.
const OF_RESUME: [&str; 4] = ["other_log", "unknown_position", "evicted", "unavailable"];

impl Oracle {
    pub(crate) fn receives(&mut self, client: usize, event: &MessageEvent) {
        let Some(stream) = &mut self.clients[client].stream else {
            return;
        };
        let is_new = !event.last_event_id.is_empty() && event.last_event_id != stream.last_id;
        if is_new {
            stream.last_id.clone_from(&event.last_event_id);
        }
        let id = is_new.then(|| event.last_event_id.clone());
        if stream.has_last {
            let what = format!("client {client}: {event:?} after the last event");
            self.violate(Violation::AfterClose, what);
            return;
        }
        match &*event.event_type {
            "welcome" => {
                if let Some(id) = id {
                    self.position(client, &id);
                }
            }
            "direct" => self.direct(client, event, id.is_some()),
            "gap" => self.gap(client, &event.data, id.is_some()),
            "position" => {
                if event.data != "{}" || event.last_event_id.is_empty() {
                    self.violate(Violation::BadGap, format!("client {client}: {event:?}"));
                }
                self.position(client, &event.last_event_id);
            }
            "message" => match id {
                Some(id) => self.event(client, &id, &event.data),
                None => {
                    let what = format!("client {client}: no id on {}", short(&event.data));
                    self.violate(Violation::WrongEvent, what);
                }
            },
            "last" if stream.closed.is_some() => stream.has_last = true,
            "reconnect" => stream.has_reconnect = true,
            other => {
                let what = format!("client {client}: event of type {other:?}");
                self.violate(Violation::WrongEvent, what);
            }
        }
        if is_new {
            self.clients[client].last_id = Some(event.last_event_id.clone());
        }
    }

    fn direct(&mut self, client: usize, event: &MessageEvent, has_id: bool) {
        let Some(stream) = &mut self.clients[client].stream else {
            return;
        };
        let expected = stream.direct_received;
        stream.direct_received += 1;
        let number = event
            .data
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok());
        if number != Some(expected) || has_id {
            let what = format!("client {client}: {number:?} where {expected} was next");
            self.violate(Violation::Direct, what);
        }
    }

    fn gap(&mut self, client: usize, data: &str, has_id: bool) {
        let gap: Option<serde_json::Value> = serde_json::from_str(data).ok();
        let reason = gap.as_ref().and_then(|gap| gap["reason"].as_str());
        let missed = gap.as_ref().map(|gap| &gap["missed"]);
        let is_number = missed.is_some_and(|missed| missed.is_u64() || missed.is_null());
        let reason = reason.filter(|reason| REASONS.contains(reason) && is_number && !has_id);
        let Some(reason) = reason else {
            self.violate(Violation::BadGap, format!("client {client}: gap {data}"));
            return;
        };
        let missed = missed.and_then(serde_json::Value::as_u64);
        let is_calm = self.plan.is_calm && !self.is_evicting(client);
        let strict = self.plan.strict;
        let it = &mut self.clients[client];
        let Some(stream) = &mut it.stream else {
            return;
        };
        let is_fast = it.is_fast && !stream.has_paused;
        let is_first = stream.first_anchor.is_none();
        let is_of_resume = OF_RESUME.contains(&reason);
        stream.starts_now |= is_first && is_of_resume;
        let outcome = stream.outcome;
        let step = stream.frame_step;
        it.gaps.push(Gap {
            reason: reason.to_owned(),
            step,
            time: Instant::now(),
        });
        let is_of_log = it.gaps.iter().any(|gap| !gap.is_of_topics());
        let has_changed = |it: &Membership| it.added.is_some() || it.removed.is_some();
        let is_countable = !is_first && !stream.topics.iter().any(has_changed);
        let missed = missed.filter(|_| is_countable);
        it.cover = Some(match it.cover {
            None => Cover {
                step,
                announced: missed,
                missing: 0,
                is_of_log,
            },
            Some(cover) => Cover {
                step,
                announced: cover.announced.zip(missed).map(|(a, b)| a + b),
                missing: cover.missing,
                is_of_log: cover.is_of_log || is_of_log,
            },
        });
        if is_first && is_of_resume && outcome == Some(Outcome::Exact) {
            let what = format!("client {client}: gap {data} after the outcome `Exact`");
            self.violate(Violation::Outcome, what);
        }
        if is_calm {
            let what = format!("client {client}: gap {data}, but nothing was lost");
            self.violate(Violation::PointlessGap, what);
        }
        if is_fast && reason == "lagged" && strict.pace {
            let what = format!("client {client} reads at once, and was announced {data}");
            self.violate(Violation::Lagged, what);
        }
    }

    /// Returns whether a topic of the client has had more events than its history keeps.
    fn is_evicting(&self, client: usize) -> bool {
        let Some(stream) = &self.clients[client].stream else {
            return true;
        };
        let log = self.log.lock().unwrap();
        stream.topics.iter().any(|it| {
            let entries = log.entries.iter().filter(|entry| entry.concerns(it.topic));
            entries.count() > self.plan.history
        })
    }

    /// Checks a position that the client received.
    fn position(&mut self, client: usize, id: &str) {
        let log = Arc::clone(&self.log);
        let log = log.lock().unwrap();
        let Some(place) = log.place(id) else {
            drop(log);
            let what = format!("client {client} received {id}");
            self.violate(Violation::UnknownId, what);
            return;
        };
        drop(log);
        let is_own = self.clients[client].anchor == Anchor::At(place);
        self.check_order(client, id, is_own);
        self.advance(client, place, false, id);
    }

    /// Checks a topic event that the client received.
    fn event(&mut self, client: usize, id: &str, data: &str) {
        let shared = Arc::clone(&self.log);
        let log = shared.lock().unwrap();
        let place = log.place(id);
        let Some(Place::Entry(entry)) = place else {
            drop(log);
            let what = format!("client {client}: event {} with id {id}", short(data));
            self.violate(Violation::UnknownId, what);
            return;
        };
        let it = log.entries[entry].clone();
        let named = name(&log, entry);
        let got = self.clients[client]
            .stream
            .as_ref()
            .and_then(|it| log.got(it.reader, entry));
        drop(log);
        let uid = data.split(' ').next().and_then(|uid| uid.parse().ok());
        let (topic, uid) = match &it.kind {
            Kind::Event {
                topic,
                uid: own,
                lines,
            } if Some(*own) == uid && *lines == format!("data: {data}\n").into_bytes() => {
                (*topic, *own)
            }
            _ => {
                let what = format!("client {client}: {} with the id of {named}", short(data));
                self.violate(Violation::WrongEvent, what);
                return;
            }
        };
        self.check_order(client, id, false);
        self.check_topic(
            client,
            topic,
            &it.kind,
            it.step,
            got.map(|(step, _)| step),
            &named,
        );
        let is_old = self.is_old(client, it.step);
        if !self.clients[client].seen.insert(uid) && !is_old {
            self.violate(Violation::Twice, format!("client {client}: {named}"));
        }
        self.check_time(client, got.map(|(_, time)| time), &named);
        self.advance(client, Place::Entry(entry), true, id);
    }

    /// Returns whether a step precedes the `subscribe` of a stream that begins now.
    fn is_old(&self, client: usize, step: u64) -> bool {
        let stream = self.clients[client].stream.as_ref();
        stream.is_some_and(|it| it.starts_now && it.call.is_some_and(|call| step < call))
    }

    /// Checks that everything sent before `live` precedes topic events and positions.
    fn check_order(&mut self, client: usize, id: &str, is_own: bool) {
        let Some(stream) = &self.clients[client].stream else {
            return;
        };
        let (received, sent) = (stream.direct_received, stream.sent_before_live);
        let is_early = stream.live.is_none() || received < sent;
        if is_early && !is_own {
            let what = format!("client {client}: {id} after {received} of {sent} events");
            self.violate(Violation::TooEarly, what);
        }
    }

    fn check_topic(
        &mut self,
        client: usize,
        topic: usize,
        kind: &Kind,
        step: u64,
        got: Option<u64>,
        named: &str,
    ) {
        debug_assert!(matches!(kind, Kind::Event { .. }));
        let is_old = self.is_old(client, step);
        let strict = self.plan.strict.start;
        let Some(stream) = &mut self.clients[client].stream else {
            return;
        };
        let mut call = stream.call.filter(|_| is_old);
        let mut is_subscribed = false;
        for it in stream.topics.iter_mut().filter(|it| it.topic == topic) {
            if it.removed.is_none_or(|removed| step < removed) {
                is_subscribed = true;
                it.is_pending = false;
                if let Some((added, _)) = it.added.filter(|(added, _)| step < *added) {
                    call = Some(added);
                }
            }
        }
        let is_after_close = stream.closed.is_some_and(|closed| step > closed.step);
        if !is_subscribed {
            self.violate(
                Violation::NotSubscribed,
                format!("client {client}: {named}"),
            );
        }
        if is_after_close {
            self.violate(Violation::AfterClose, format!("client {client}: {named}"));
        }
        // Unless the world is strict, what the broker had not read yet may count as later.
        let is_old = call.is_some_and(|call| strict || got.is_some_and(|got| got < call));
        if is_old {
            let what = format!("client {client}: {named} was appended before the subscription");
            self.violate(Violation::Old, what);
        }
    }

    /// Checks that a client that waits received an event at once.
    fn check_time(&mut self, client: usize, got: Option<Instant>, named: &str) {
        let it = &self.clients[client];
        let Some(stream) = it.stream.as_ref().filter(|_| it.is_fast) else {
            return;
        };
        let (Some(got), Some(live), Some(first)) = (got, stream.live, stream.first_anchor) else {
            return;
        };
        let since = got.max(live).max(first).max(stream.reading_since);
        let late = since.elapsed();
        if late > PROMPT {
            let what = format!("client {client}: {named} came {late:?} late");
            self.violate(Violation::Late, what);
        }
    }

    /// Moves the client on to a position, and checks that nothing before it is missing.
    fn advance(&mut self, client: usize, place: Place, is_event: bool, id: &str) {
        let shared = Arc::clone(&self.log);
        let log = shared.lock().unwrap();
        let it = &self.clients[client];
        let Some(stream) = &it.stream else {
            return;
        };
        let mut found = Vec::new();
        let branch = log.branch_of(place);
        let end = log.count_to(branch, place).unwrap_or(0);
        let is_first = stream.first_anchor.is_none();
        // Unless the world is strict, a node that lags may begin before what a client had.
        let may_repeat = stream.starts_now && !self.plan.strict.start;
        if let Anchor::At(anchor) = it.anchor {
            let is_back = match log.count_to(branch, anchor) {
                Some(from) => from > end || (from == end && is_event),
                None => log.count_to(log.branch_of(anchor), place).is_some(),
            };
            // A part of the log that was lost may be behind, once that is announced.
            let is_lost = log.count_to(log.current(), anchor).is_none();
            let is_back = is_back && (!is_lost || it.gaps.is_empty());
            let is_on_path = log.count_to(branch, anchor).is_some();
            let is_known_old = stream.starts_now && !is_event && !it.gaps.is_empty();
            if is_back && !may_repeat {
                let violation = if is_known_old {
                    Violation::Old
                } else {
                    Violation::Backwards
                };
                let is_named_old = is_event && self.is_old(client, entry_step(&log, place));
                if !is_named_old {
                    found.push((violation, format!("client {client}: {id} after {anchor:?}")));
                }
            } else if !is_back && !is_on_path && it.gaps.is_empty() {
                let what = format!("client {client}: {id} after {anchor:?} of a lost part");
                found.push((Violation::Rewritten, what));
            }
        }
        let missing = self.missing(&log, client, stream, place, !is_event);
        let all = missing.len() as u64;
        let missing = self.unannounced(&log, client, stream, missing);
        for violation in [Violation::Missed, Violation::MissedAtStart] {
            let of_it = missing.iter().filter(|(_, it)| *it == violation);
            let names: Vec<_> = of_it.map(|(entry, _)| name(&log, *entry)).collect();
            if !names.is_empty() {
                let what = format!("client {client}: {} before {id}", names.join(", "));
                found.push((violation, what));
            }
        }
        if it.gaps.is_empty() && is_first && stream.outcome == Some(Outcome::Gap) {
            let what = format!("client {client}: outcome `Gap`, but {id} came first");
            found.push((Violation::Outcome, what));
        }
        let mut cover = it.cover;
        if let Some(counted) = &mut cover {
            counted.missing += all - missing.len() as u64;
            let is_passed = |entry| log.got_after(stream.reader, entry, counted.step);
            if matches!(place, Place::Entry(entry) if is_passed(entry)) {
                if counted
                    .announced
                    .is_some_and(|announced| announced != counted.missing)
                {
                    let what = format!("client {client}: before {id}, {counted:?}");
                    found.push((Violation::BadGap, what));
                }
                cover = None;
            }
        }
        let repeated = self.repeated(&log, client, place);
        drop(log);
        for (violation, what) in found {
            self.violate(violation, what);
        }
        let it = &mut self.clients[client];
        for uid in repeated {
            it.seen.remove(&uid);
        }
        it.anchor = Anchor::At(place);
        it.gaps.clear();
        it.cover = cover;
        if let Some(stream) = &mut it.stream {
            stream.first_anchor.get_or_insert_with(Instant::now);
            stream.has_paused = false;
        }
    }
}

fn entry_step(log: &Log, place: Place) -> u64 {
    match place {
        Place::Entry(entry) => log.entries[entry].step,
        Place::Beginning(_) => 0,
    }
}

/// The start of an event's text.
fn short(data: &str) -> &str {
    data.get(..20).unwrap_or(data)
}
