//! The oracle's record of each client, kept against the model of the log.
//!
//! The oracle is notified of what the server's side does (subscribe, `live`, `close`, ...) and of
//! every event that a client receives. The judgement itself is in `judge`.

use std::{collections::BTreeSet, sync::Arc};

use tokio::time::Instant;
use tower_sse::broker::Outcome;

use crate::{
    link::SharedLog,
    log::{Kind, Log, Place},
    plan::Plan,
    trace::Trace,
    violation::Violation,
};

pub(crate) struct Oracle {
    pub(crate) plan: Plan,
    pub(crate) log: SharedLog,
    pub(crate) trace: Arc<Trace>,
    pub(crate) clients: Vec<Client>,
    pub(crate) found: Vec<(Violation, String)>,
}

/// The record of one client, over all its streams.
#[derive(Default)]
pub(crate) struct Client {
    /// Set if it reads at once.
    pub(crate) is_fast: bool,
    /// The id that it returns with.
    pub(crate) last_id: Option<String>,
    pub(crate) seen: BTreeSet<usize>,
    /// Up to where it has everything.
    pub(crate) anchor: Anchor,
    /// The gaps that were announced since.
    pub(crate) gaps: Vec<Gap>,
    /// The losses that gaps of this stream have announced beyond that.
    pub(crate) cover: Option<Cover>,
    pub(crate) stream: Option<Stream>,
    pub(crate) streams: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Anchor {
    /// At a moment of the subscription.
    #[default]
    Start,
    At(Place),
}

#[derive(Clone, Debug)]
pub(crate) struct Gap {
    pub(crate) reason: String,
    pub(crate) step: u64,
    pub(crate) time: Instant,
}

impl Gap {
    /// Returns whether it announces lost entries of single topics, not of the log.
    pub(crate) fn is_of_topics(&self) -> bool {
        matches!(&*self.reason, "lagged" | "unreadable")
    }
}

/// Losses that gaps have announced. One topic may be ahead of the others: its lost entries may lie
/// behind positions that the client receives after the gap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cover {
    /// Entries that the broker got before this step may be missing.
    pub(crate) step: u64,
    /// The announced number, if it can be verified.
    pub(crate) announced: Option<u64>,
    pub(crate) missing: u64,
    /// Set if the log has lost entries: entries that the broker never got may be missing.
    pub(crate) is_of_log: bool,
}

/// One connection of a client.
pub(crate) struct Stream {
    pub(crate) number: u64,
    /// The broker's number among the log's readers.
    pub(crate) reader: usize,
    /// The position that the client came with, if the server is to resume from it.
    pub(crate) from: Option<Place>,
    /// Set if it begins now, not after a position.
    pub(crate) starts_now: bool,
    pub(crate) call: Option<u64>,
    pub(crate) returned: Option<u64>,
    pub(crate) was_pending: bool,
    /// The outcome, once it is not pending.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) topics: Vec<Membership>,
    /// The id that the stream has given last.
    pub(crate) last_id: String,
    pub(crate) direct_sent: usize,
    pub(crate) direct_received: usize,
    /// The number of events that were sent directly before `live`.
    pub(crate) sent_before_live: usize,
    pub(crate) live: Option<Instant>,
    /// When the first position came.
    pub(crate) first_anchor: Option<Instant>,
    /// Since when the client waits without a pause.
    pub(crate) reading_since: Instant,
    /// The step at which the client polled the frame that it reads.
    pub(crate) frame_step: u64,
    /// The client has paused since its last position, so that it may lag.
    pub(crate) has_paused: bool,
    pub(crate) closed: Option<Closed>,
    pub(crate) is_drained: bool,
    pub(crate) has_lifetime: bool,
    pub(crate) has_reconnect: bool,
    /// The event that `close_with` was called with has come.
    pub(crate) has_last: bool,
}

/// A topic of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) topic: usize,
    /// The steps of the call and of the return that have added it to a live stream.
    pub(crate) added: Option<(u64, u64)>,
    /// The outcome of that was pending, and no event has come since.
    pub(crate) is_pending: bool,
    pub(crate) removed: Option<u64>,
}

/// A call of `close`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closed {
    pub(crate) step: u64,
    /// The last entry that the broker had read, if the stream was live.
    pub(crate) owed: Option<usize>,
}

impl Client {
    /// Returns whether the topics of its stream wait for `live`.
    pub(crate) fn is_held_back(&self) -> bool {
        let stream = self.stream.as_ref();
        stream.is_none_or(|stream| stream.live.is_none() || stream.first_anchor.is_none())
    }
}

/// The end of a stream, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Clean,
    Broken,
    /// The client has left, or its node was killed.
    Cut,
}

impl Oracle {
    pub(crate) fn new(plan: &Plan, log: &SharedLog, trace: &Arc<Trace>) -> Self {
        Self {
            plan: plan.clone(),
            log: Arc::clone(log),
            trace: Arc::clone(trace),
            clients: (0..plan.clients).map(|_| Client::default()).collect(),
            found: Vec::new(),
        }
    }

    pub(crate) fn violate(&mut self, violation: Violation, what: impl AsRef<str>) {
        self.trace
            .note(format!("!!! {violation:?}: {}", what.as_ref()));
        if self.found.len() < 50 {
            self.found.push((violation, what.as_ref().to_owned()));
        }
    }

    pub(crate) fn step(&self) -> u64 {
        self.log.lock().unwrap().next_step()
    }

    /// The stream of this number, if the client still has it.
    pub(crate) fn stream(&mut self, client: usize, number: u64) -> Option<&mut Stream> {
        let stream = self.clients[client].stream.as_mut();
        stream.filter(|stream| stream.number == number)
    }

    /// A client forgets everything, as a page that is loaded again.
    pub(crate) fn forget(&mut self, client: usize) {
        let client = &mut self.clients[client];
        *client = Client {
            is_fast: client.is_fast,
            streams: client.streams,
            ..Client::default()
        };
    }

    /// A client opens a stream. Returns its number.
    pub(crate) fn connects(&mut self, client: usize, reader: usize, replays: bool) -> u64 {
        let log = self.log.lock().unwrap();
        let client = &mut self.clients[client];
        let id = client.last_id.as_ref().filter(|_| replays);
        let from = id.and_then(|id| log.place(id));
        drop(log);
        // A gap that was announced before counts only once the client has a position after it.
        client.anchor = from.map_or(Anchor::Start, Anchor::At);
        client.gaps.clear();
        client.cover = None;
        client.streams += 1;
        client.stream = Some(Stream {
            number: client.streams,
            reader,
            from,
            starts_now: from.is_none(),
            call: None,
            returned: None,
            was_pending: false,
            outcome: None,
            topics: Vec::new(),
            last_id: String::new(),
            direct_sent: 0,
            direct_received: 0,
            sent_before_live: 0,
            live: None,
            first_anchor: None,
            reading_since: Instant::now(),
            frame_step: 0,
            has_paused: true,
            closed: None,
            is_drained: false,
            has_lifetime: false,
            has_reconnect: false,
            has_last: false,
        });
        client.streams
    }

    // ===== the server's side =====

    pub(crate) fn calls(&mut self, client: usize, number: u64, topics: &[usize]) {
        let step = self.step();
        if let Some(stream) = self.stream(client, number) {
            stream.call = Some(step);
            stream.topics = topics
                .iter()
                .map(|topic| Membership {
                    topic: *topic,
                    added: None,
                    is_pending: false,
                    removed: None,
                })
                .collect();
        }
    }

    pub(crate) fn returns(&mut self, client: usize, number: u64, outcome: Outcome) {
        let step = self.step();
        if let Some(stream) = self.stream(client, number) {
            stream.returned = Some(step);
            stream.was_pending = outcome == Outcome::Pending;
        }
        if outcome != Outcome::Pending {
            self.resolved(client, number, outcome);
        }
    }

    pub(crate) fn resolved(&mut self, client: usize, number: u64, outcome: Outcome) {
        let Some(stream) = self.stream(client, number) else {
            return;
        };
        stream.outcome = Some(outcome);
        let allowed: &[Outcome] = match stream.from {
            None => &[Outcome::Fresh],
            Some(_) => &[Outcome::Exact, Outcome::Gap],
        };
        if !allowed.contains(&outcome) {
            let from = stream.from;
            let what = format!("client {client}: outcome {outcome:?} from {from:?}");
            self.violate(Violation::Outcome, what);
        }
    }

    pub(crate) fn goes_live(&mut self, client: usize, number: u64) {
        if let Some(stream) = self.stream(client, number) {
            stream.live.get_or_insert_with(Instant::now);
            stream.sent_before_live = stream.direct_sent;
        }
    }

    /// The number of the next event that is sent directly.
    pub(crate) fn next_direct(&mut self, client: usize, number: u64) -> usize {
        self.stream(client, number)
            .map_or(0, |stream| stream.direct_sent)
    }

    pub(crate) fn has_sent(&mut self, client: usize, number: u64) {
        if let Some(stream) = self.stream(client, number) {
            stream.direct_sent += 1;
        }
    }

    pub(crate) fn adds(&mut self, client: usize, topic: usize, call: u64, outcome: Outcome) {
        let step = self.step();
        if let Some(stream) = &mut self.clients[client].stream {
            stream.topics.push(Membership {
                topic,
                added: Some((call, step)),
                is_pending: outcome == Outcome::Pending,
                removed: None,
            });
        }
    }

    pub(crate) fn removes(&mut self, client: usize, topic: usize) {
        let step = self.step();
        if let Some(stream) = &mut self.clients[client].stream {
            let mut topics = stream.topics.iter_mut();
            if let Some(it) = topics.find(|it| it.topic == topic && it.removed.is_none()) {
                it.removed = Some(step);
            }
            if let Some(cover) = &mut self.clients[client].cover {
                cover.announced = None;
            }
        }
    }

    pub(crate) fn closes(&mut self, client: usize) {
        let step = self.step();
        let log = self.log.lock().unwrap();
        if let Some(stream) = &mut self.clients[client].stream {
            let is_resolved = !stream.was_pending || stream.first_anchor.is_some();
            let is_live = stream.live.is_some() && is_resolved;
            let owed = log.readers[stream.reader].last.filter(|_| is_live);
            stream.closed.get_or_insert(Closed { step, owed });
        }
    }

    /// All streams of a node's registry are going to end.
    pub(crate) fn drains(&mut self, reader: usize) {
        for client in &mut self.clients {
            if let Some(stream) = client.stream.as_mut().filter(|it| it.reader == reader) {
                stream.is_drained = true;
            }
        }
    }

    /// The client does something else than reading.
    pub(crate) fn pauses(&mut self, client: usize) {
        if let Some(stream) = &mut self.clients[client].stream {
            stream.has_paused = true;
        }
    }

    /// The client has taken a frame.
    pub(crate) fn takes(&mut self, client: usize) {
        let step = self.step();
        if let Some(stream) = &mut self.clients[client].stream {
            stream.frame_step = step;
        }
    }

    pub(crate) fn reads_again(&mut self, client: usize) {
        if let Some(stream) = &mut self.clients[client].stream {
            stream.reading_since = Instant::now();
        }
    }
}

/// An entry as messages name it.
pub(crate) fn name(log: &Log, entry: usize) -> String {
    let it = &log.entries[entry];
    let (offset, branch) = (it.offset, it.branch);
    match &it.kind {
        Kind::Event { topic, uid, .. } => format!("event {uid} (topic {topic}, {branch}/{offset})"),
        Kind::Unreadable(topic) => format!("unreadable record ({topic:?}, {branch}/{offset})"),
        Kind::Foreign => format!("foreign entry ({branch}/{offset})"),
    }
}
