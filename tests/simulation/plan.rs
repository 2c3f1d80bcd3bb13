//! The settings that a seed draws for its world: sizes, speeds, accidents.

use std::time::Duration;

use fastrand::Rng;

use crate::{known, log::Delays};

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) topics: usize,
    pub(crate) clients: usize,
    pub(crate) publishers: usize,
    /// When the last accident is over and the publishers have finished.
    pub(crate) active: Duration,
    /// The number of events that a topic keeps.
    pub(crate) history: usize,
    /// The time for which an event is kept.
    pub(crate) age: Option<Duration>,
    /// The number of bytes that a broker keeps of all topics.
    pub(crate) max_bytes: Option<usize>,
    /// The number of records by which a broker notices a rewritten log.
    pub(crate) window: usize,
    /// Set if subscribers that lag are disconnected.
    pub(crate) disconnects: bool,
    /// The number of records that the log retains.
    pub(crate) retained: usize,
    pub(crate) may_be_rewritten: bool,
    pub(crate) delays: Vec<Delays>,
    pub(crate) accidents: Accidents,
    pub(crate) lifetime: Option<Duration>,
    /// After how long a client that stops reading is ended.
    pub(crate) stall_timeout: Option<Duration>,
    /// Nothing fails, and everything is kept: no gap is justified.
    pub(crate) is_calm: bool,
    /// The longest burst of a publisher.
    pub(crate) burst: usize,
    /// The longest pause of a publisher between bursts, in milliseconds.
    pub(crate) pause: u64,
    /// Of 100 events, how many are large.
    pub(crate) large: u8,
    pub(crate) strict: Strict,
}

/// The accidents of a world, and the mean time between two of them in milliseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accidents {
    pub(crate) every: Option<u64>,
    /// The kinds, each as often as its weight.
    pub(crate) kinds: Vec<Accident>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accident {
    /// A node's link to the log does not answer for a time.
    Hang,
    /// A node's link fails for a time.
    Fail,
    /// The log restarts: all links fail for a time.
    Restart,
    /// The log loses records whose appends were acknowledged.
    Lose,
    /// The log is replaced by an empty one.
    Replace,
    /// The log drops old records.
    Forget,
    /// A record that cannot be decoded.
    Unreadable,
    /// An entry that is not a record.
    Foreign,
    /// A node is killed, and starts again.
    Kill,
    /// A node is drained, and starts again.
    Drain,
}

/// Which of the promises that today's code breaks a world is held to: see [`known`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strict {
    /// Nothing is missing after the return of `subscribe`, also where the outcome is pending.
    pub(crate) pending: bool,
    /// Nothing that was appended before the call of `subscribe` is sent.
    pub(crate) start: bool,
    /// Everything visible at `close` is delivered.
    pub(crate) close: bool,
    /// A subscriber that reads at once does not lag.
    pub(crate) pace: bool,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = &mut Rng::with_seed(seed);
        let mut chance = |share: u8| rng.u8(0..100) < share;
        // Drawn first: another share does not change the rest of a world.
        let strict = Strict {
            pending: chance(known::STRICT_PENDING),
            start: chance(known::STRICT_START),
            close: chance(known::STRICT_CLOSE),
            pace: chance(known::STRICT_PACE),
        };
        let is_calm = chance(20);
        let nodes = rng.usize(1..=3);
        let topics = rng.usize(1..=6);
        let history = match rng.u8(0..4) {
            0 => rng.usize(1..=3),
            1 => rng.usize(4..=16),
            _ => rng.usize(17..=64),
        };
        let accidents = if is_calm {
            Accidents {
                every: (rng.u8(0..2) == 0).then(|| rng.u64(1000..5000)),
                kinds: vec![Accident::Drain, Accident::Kill],
            }
        } else {
            Accidents::new(rng)
        };
        let may_be_rewritten = accidents.kinds.contains(&Accident::Lose) || rng.u8(0..3) == 0;
        let is_slow = rng.u8(0..3) == 0;
        let delays = (0..nodes).map(|_| delays(rng, is_slow, is_calm)).collect();
        Self {
            nodes,
            topics,
            clients: rng.usize(1..=5),
            publishers: rng.usize(1..=3),
            active: Duration::from_millis(rng.u64(1500..8000)),
            history,
            age: (rng.u8(0..5) == 0 && !is_calm).then(|| Duration::from_millis(rng.u64(20..2000))),
            max_bytes: (rng.u8(0..5) == 0 && !is_calm).then(|| rng.usize(200..8000)),
            window: if rng.u8(0..3) == 0 && !is_calm {
                rng.usize(8..=64)
            } else {
                1 << 16
            },
            disconnects: rng.u8(0..4) == 0,
            retained: match rng.u8(0..4) {
                0 if !is_calm => rng.usize(2..=64),
                _ => 1 << 20,
            },
            may_be_rewritten,
            delays,
            accidents,
            lifetime: (rng.u8(0..4) == 0).then(|| Duration::from_millis(rng.u64(500..4000))),
            stall_timeout: (rng.u8(0..6) == 0).then(|| Duration::from_millis(rng.u64(300..2000))),
            is_calm,
            burst: if rng.u8(0..3) == 0 {
                2 * history + 2
            } else {
                rng.usize(1..=4)
            },
            pause: rng.u64(60..600),
            large: if rng.u8(0..5) == 0 && !is_calm { 20 } else { 0 },
            strict,
        }
    }
}

impl Accidents {
    fn new(rng: &mut Rng) -> Self {
        use Accident::{
            Drain, Fail, Foreign, Forget, Hang, Kill, Lose, Replace, Restart, Unreadable,
        };
        let all = [
            Hang, Hang, Fail, Restart, Lose, Lose, Replace, Forget, Unreadable, Foreign, Kill,
            Drain,
        ];
        let share = rng.u8(10..=90);
        Self {
            every: (rng.u8(0..8) > 0).then(|| rng.u64(200..3000)),
            kinds: all.into_iter().filter(|_| rng.u8(0..100) < share).collect(),
        }
    }
}

fn delays(rng: &mut Rng, is_slow: bool, is_calm: bool) -> Delays {
    if rng.u8(0..3) == 0 {
        return Delays::default();
    }
    let breaks = if !is_calm && rng.u8(0..4) == 0 {
        rng.u8(1..8)
    } else {
        0
    };
    let mut up_to = |most: u64| if rng.bool() { 0 } else { rng.u64(0..=most) };
    Delays {
        append: up_to(20),
        answer: up_to(60),
        open: if is_slow { up_to(400) } else { 0 },
        backlog: if is_slow { up_to(200) } else { 0 },
        live: up_to(120),
        lost_answers: if is_calm { 0 } else { up_to(20) as u8 },
        breaks,
    }
}
