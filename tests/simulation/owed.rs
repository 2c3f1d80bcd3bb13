//! The entries that a client still lacks.

use crate::{
    log::{Kind, Log, Place},
    oracle::{Anchor, Oracle, Stream},
    violation::Violation,
};

impl Oracle {
    /// Lists the events between a position and the client's last one, where the position is behind
    /// the last one: they will be sent again.
    pub(crate) fn repeated(&self, log: &Log, client: usize, place: Place) -> Vec<usize> {
        let Anchor::At(anchor) = self.clients[client].anchor else {
            return Vec::new();
        };
        let branch = log.branch_of(anchor);
        let (Some(from), Some(end)) = (log.count_to(branch, place), log.count_to(branch, anchor))
        else {
            return Vec::new();
        };
        let entries = log.branches[branch].entries.get(from..end).unwrap_or(&[]);
        let uids = entries
            .iter()
            .filter_map(|entry| match log.entries[*entry].kind {
                Kind::Event { uid, .. } => Some(uid),
                _ => None,
            });
        uids.collect()
    }

    /// Removes from missing entries the losses that gaps have announced.
    pub(crate) fn unannounced(
        &self,
        log: &Log,
        client: usize,
        stream: &Stream,
        mut missing: Vec<(usize, Violation)>,
    ) -> Vec<(usize, Violation)> {
        let it = &self.clients[client];
        if it.gaps.iter().any(|gap| !gap.is_of_topics()) {
            return Vec::new();
        }
        if let Some(cover) = it.cover {
            let is_announced = |entry: usize| match log.got(stream.reader, entry) {
                Some((step, _)) => step < cover.step,
                None => cover.is_of_log && log.entries[entry].step < cover.step,
            };
            missing.retain(|(entry, _)| !is_announced(*entry));
        }
        missing
    }

    /// Lists the entries up to a position that the client lacks, with the promise that each breaks.
    pub(crate) fn missing(
        &self,
        log: &Log,
        client: usize,
        stream: &Stream,
        place: Place,
        is_inclusive: bool,
    ) -> Vec<(usize, Violation)> {
        let branch = log.branch_of(place);
        let anchor = self.clients[client].anchor;
        let from = match anchor {
            Anchor::Start => Some(0),
            Anchor::At(anchor) => log.count_to(branch, anchor),
        };
        let (Some(from), Some(end)) = (from, log.count_to(branch, place)) else {
            return Vec::new();
        };
        let end = if is_inclusive { end } else { end - 1 };
        let entries = log.branches[branch].entries.get(from..end).unwrap_or(&[]);
        let lacks = entries.iter().filter_map(|entry| {
            let violation = self.lacks(log, stream, anchor, *entry)?;
            Some((*entry, violation))
        });
        lacks.collect()
    }

    fn lacks(&self, log: &Log, stream: &Stream, anchor: Anchor, entry: usize) -> Option<Violation> {
        let it = &log.entries[entry];
        let is_strict = self.plan.strict.pending;
        let topics = stream.topics.iter().filter(|topic| topic.removed.is_none());
        topics
            .filter(|topic| it.concerns(topic.topic))
            .find_map(|topic| {
                if let Some((_, added)) = topic.added {
                    let is_late = topic.is_pending;
                    let is_due = it.step > added && (is_strict || !is_late);
                    let violation = if is_late {
                        Violation::MissedAtStart
                    } else {
                        Violation::Missed
                    };
                    return is_due.then_some(violation);
                }
                match anchor {
                    Anchor::At(_) => Some(Violation::Missed),
                    Anchor::Start => {
                        let is_later = stream.returned.is_some_and(|returned| it.step > returned);
                        let is_due = is_later && (is_strict || !stream.was_pending);
                        is_due.then_some(Violation::MissedAtStart)
                    }
                }
            })
    }
}
