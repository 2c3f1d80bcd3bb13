//! The model of the log: everything that was ever appended, in its order, and what was lost of it.
//!
//! The oracle judges clients by this model. It shares no code with the library.
//!
//! 1. A log is a sequence of branches. A branch begins empty with a new epoch, or with the records
//!    of its predecessor that a failover has kept. The last branch is the current one.
//! 2. Entries are never removed from the model. Each remembers the step of its append.
//! 3. Steps number everything that happens in a world, so that any two events can be ordered.

use std::{collections::BTreeMap, task::Waker, time::Duration};

use fastrand::Rng;
use tokio::time::Instant;

pub(crate) struct Log {
    pub(crate) entries: Vec<Entry>,
    pub(crate) branches: Vec<Branch>,
    /// The brokers that have read this log, in the order of their starts.
    pub(crate) readers: Vec<Replica>,
    /// One link for each node.
    pub(crate) links: Vec<Link>,
    /// Streams that wait for the next record.
    pub(crate) wakers: BTreeMap<u64, Waker>,
    pub(crate) rng: Rng,
    /// The number of records that the log retains.
    pub(crate) retained: usize,
    step: u64,
    streams: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    pub(crate) tag: u32,
    pub(crate) branch: usize,
    pub(crate) kind: Kind,
    /// When it was appended.
    pub(crate) step: u64,
    pub(crate) time: Instant,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Event {
        topic: usize,
        uid: usize,
        lines: Vec<u8>,
    },
    /// A record that cannot be decoded, with its topic where that is legible.
    Unreadable(Option<usize>),
    /// An entry that is not a record of the library.
    Foreign,
}

pub(crate) struct Branch {
    pub(crate) epoch: u64,
    /// All its entries, those of its predecessor included.
    pub(crate) entries: Vec<usize>,
    /// The number of its oldest entries that are no longer retained.
    pub(crate) forgotten: usize,
    /// The offset of its last entry.
    pub(crate) head: u64,
}

/// The part of the log that one broker has read.
#[derive(Default)]
pub(crate) struct Replica {
    /// By entry: when the broker first got it.
    pub(crate) got: Vec<Option<(u64, Instant)>>,
    /// The entry that it got last.
    pub(crate) last: Option<usize>,
    /// Set when the broker begins to read.
    pub(crate) has_begun: bool,
}

/// The way from one node to the log.
pub(crate) struct Link {
    /// Raised to break the open streams and the pending appends.
    pub(crate) session: u64,
    /// When that was.
    pub(crate) broke_at: Instant,
    /// Until when nothing is answered.
    pub(crate) hangs_until: Instant,
    /// Until when everything fails.
    pub(crate) fails_until: Instant,
    pub(crate) delays: Delays,
}

/// The longest times that a link takes, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delays {
    /// Until an append is carried out.
    pub(crate) append: u64,
    /// Until its answer arrives.
    pub(crate) answer: u64,
    /// Until `read` and `head` have answered.
    pub(crate) open: u64,
    /// Until a record that was there when the stream was opened arrives.
    pub(crate) backlog: u64,
    /// Until a later record arrives.
    pub(crate) live: u64,
    /// Of 100 appends, how many lose their answer.
    pub(crate) lost_answers: u8,
    /// Of 100 appends, how many break the node's stream.
    pub(crate) breaks: u8,
}

/// A position in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before the first record of an epoch.
    Beginning(u64),
    /// The position of an entry.
    Entry(usize),
}

impl Log {
    pub(crate) fn new(seed: u64, links: Vec<Delays>, retained: usize) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x6c6f_6721);
        let now = Instant::now();
        let links = links.into_iter().map(|delays| Link {
            session: 0,
            broke_at: now,
            hangs_until: now,
            fails_until: now,
            delays,
        });
        Self {
            entries: Vec::new(),
            branches: vec![Branch::new(rng.u64(..))],
            readers: Vec::new(),
            links: links.collect(),
            wakers: BTreeMap::new(),
            rng,
            retained,
            step: 0,
            streams: 0,
        }
    }

    /// Numbers the next thing that happens.
    pub(crate) fn next_step(&mut self) -> u64 {
        self.step += 1;
        self.step
    }

    pub(crate) fn next_stream(&mut self) -> u64 {
        self.streams += 1;
        self.streams
    }

    pub(crate) fn current(&self) -> usize {
        self.branches.len() - 1
    }

    pub(crate) fn branch(&self) -> &Branch {
        &self.branches[self.current()]
    }

    /// A random time of up to `most` milliseconds.
    pub(crate) fn delay(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.rng.u64(0..=most))
    }

    /// Appends an entry. The wakers of waiting streams have to be called once the lock is released.
    pub(crate) fn append(&mut self, kind: Kind) -> (usize, Vec<Waker>) {
        let step = self.next_step();
        let index = self.entries.len();
        let current = self.current();
        // Offsets rise, but not always by one.
        let hole = if self.rng.u8(..) < 4 {
            self.rng.u64(1..4)
        } else {
            0
        };
        let tag = self.rng.u32(1..);
        let branch = &mut self.branches[current];
        branch.head += 1 + hole;
        branch.entries.push(index);
        self.entries.push(Entry {
            epoch: branch.epoch,
            offset: branch.head,
            tag,
            branch: current,
            kind,
            step,
            time: Instant::now(),
        });
        let kept = branch.entries.len() - branch.forgotten;
        self.forget(kept.saturating_sub(self.retained));
        (index, self.take_wakers())
    }

    pub(crate) fn take_wakers(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakers).into_values().collect()
    }

    // ===== accidents =====

    /// Drops the oldest records.
    pub(crate) fn forget(&mut self, count: usize) {
        let current = self.current();
        let branch = &mut self.branches[current];
        branch.forgotten = (branch.forgotten + count).min(branch.entries.len());
    }

    /// Loses the latest records, although their appends were acknowledged.
    pub(crate) fn lose(&mut self, count: usize) {
        let old = self.branch();
        let kept = (old.entries.len() - count.min(old.entries.len())).max(old.forgotten);
        let entries = old.entries[..kept].to_vec();
        let head = entries.last().map_or(0, |last| self.entries[*last].offset);
        let branch = Branch {
            epoch: old.epoch,
            forgotten: old.forgotten,
            entries,
            head,
        };
        self.branches.push(branch);
        self.break_all();
    }

    /// Replaces the log by an empty one.
    pub(crate) fn replace(&mut self) {
        let branch = Branch::new(self.rng.u64(..));
        self.branches.push(branch);
        self.break_all();
    }

    /// Breaks all streams and pending appends.
    pub(crate) fn break_all(&mut self) {
        for link in &mut self.links {
            link.break_off();
        }
    }

    // ===== questions of the oracle =====

    /// The position that a text names, by the format of ids: `<epoch>-<offset>-<tag>`.
    pub(crate) fn place(&self, id: &str) -> Option<Place> {
        let mut parts = id.split('-');
        let (epoch, offset, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let epoch = u64::from_str_radix(epoch, 16).ok()?;
        let offset: u64 = offset.parse().ok()?;
        let tag = u32::from_str_radix(tag, 16).ok()?;
        if offset == 0 {
            let is_known = self.branches.iter().any(|branch| branch.epoch == epoch);
            return is_known.then_some(Place::Beginning(epoch));
        }
        let is_it = |entry: &Entry| {
            let is_tag = entry.tag == tag || tag == 0;
            entry.epoch == epoch && entry.offset == offset && is_tag
        };
        // Of several with tag 0, the latest is meant.
        self.entries.iter().rposition(is_it).map(Place::Entry)
    }

    /// The branch on which a position lies first.
    pub(crate) fn branch_of(&self, place: Place) -> usize {
        match place {
            Place::Entry(entry) => self.entries[entry].branch,
            Place::Beginning(epoch) => {
                let is_it = |branch: &Branch| branch.epoch == epoch;
                self.branches.iter().position(is_it).unwrap_or(0)
            }
        }
    }

    /// Counts the entries of a branch up to a position, if the position lies on the branch.
    pub(crate) fn count_to(&self, branch: usize, place: Place) -> Option<usize> {
        let branch = &self.branches[branch];
        match place {
            Place::Beginning(epoch) => (branch.epoch == epoch).then_some(0),
            Place::Entry(entry) => {
                let at = branch.entries.binary_search(&entry);
                at.ok().map(|at| at + 1)
            }
        }
    }

    /// The position of the last record.
    pub(crate) fn head(&self) -> Place {
        let branch = self.branch();
        let last = branch.entries.last();
        last.map_or(Place::Beginning(branch.epoch), |last| Place::Entry(*last))
    }

    /// When a broker got an entry.
    pub(crate) fn got(&self, reader: usize, entry: usize) -> Option<(u64, Instant)> {
        self.readers[reader].got.get(entry).copied().flatten()
    }

    /// Returns the last entry, if it has been there for this time and a broker has not read it,
    /// although its link works.
    pub(crate) fn is_behind(&self, node: usize, reader: usize, time: Duration) -> Option<usize> {
        let branch = self.branch();
        let last = *branch.entries.get(branch.forgotten..)?.last()?;
        let since = self.links[node].works_since().max(self.entries[last].time);
        let is_due = since.elapsed() > time && self.readers[reader].has_begun;
        (is_due && self.got(reader, last).is_none()).then_some(last)
    }

    /// Returns whether a broker got an entry after a step.
    pub(crate) fn got_after(&self, reader: usize, entry: usize, step: u64) -> bool {
        self.got(reader, entry).is_some_and(|(got, _)| got > step)
    }
}

impl Link {
    pub(crate) fn break_off(&mut self) {
        self.session += 1;
        self.broke_at = Instant::now();
    }

    /// Since when nothing is wrong with it, at the earliest.
    pub(crate) fn works_since(&self) -> Instant {
        self.broke_at.max(self.hangs_until).max(self.fails_until)
    }
}

impl Branch {
    fn new(epoch: u64) -> Self {
        Self {
            epoch,
            entries: Vec::new(),
            forgotten: 0,
            head: 0,
        }
    }
}

impl Entry {
    /// Returns whether a subscriber of the topic misses something without this entry.
    pub(crate) fn concerns(&self, topic: usize) -> bool {
        match &self.kind {
            Kind::Event { topic: it, .. } => *it == topic,
            Kind::Unreadable(it) => it.is_none_or(|it| it == topic),
            Kind::Foreign => false,
        }
    }
}
