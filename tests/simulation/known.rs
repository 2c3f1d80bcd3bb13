//! Faults that the library is known to have, with the seeds that show them.
//!
//! Once a fault is fixed, remove its entry: a listed seed that passes fails the run. `LIST=1` prints
//! the lists anew, where a change has altered all worlds.
//!
//! The first four promises are broken often. Each is checked in a share of all worlds only, so that
//! its list stays short. The share does not change what happens in a world: it can be raised to 100
//! when the fault is fixed.

use crate::violation::Violation;

/// Of 100 worlds, how many are held to a promise.
pub(crate) const STRICT_PENDING: u8 = 25;
pub(crate) const STRICT_CLOSE: u8 = 8;
pub(crate) const STRICT_PACE: u8 = 5;
pub(crate) const STRICT_START: u8 = 6;

/// A promise that is broken, and the seeds that show it.
type Fault = (Violation, &'static [u64]);

const FAULTS: &[Fault] = &[
    // A subscriber whose outcome is pending loses what is published before the window is read.
    (
        Violation::MissedAtStart,
        &[
            36, 93, 140, 188, 215, 286, 328, 336, 365, 478, 585, 639, 674, 676, 739, 765, 785, 824,
            907, 921,
        ],
    ),
    // An event that was published before `close` is not delivered.
    (
        Violation::NotDelivered,
        &[
            6, 11, 21, 43, 65, 70, 108, 113, 118, 130, 156, 161, 209, 231, 270, 343, 355, 387, 399,
            403, 447, 473, 495, 542, 617, 735, 767, 794, 804,
        ],
    ),
    // A publisher that does not pause, or a batch from the log, makes a fast subscriber lose events.
    (
        Violation::Lagged,
        &[
            6, 138, 177, 211, 215, 383, 398, 457, 647, 756, 832, 907, 999,
        ],
    ),
    // A subscriber that begins now gets what its node had not read when it subscribed.
    (
        Violation::Old,
        &[
            186, 215, 222, 255, 266, 298, 335, 346, 411, 418, 444, 545, 625, 676, 881,
        ],
    ),
    // A broker whose log breaks during a `publish` or a `subscribe` does not read it again until the
    // next call.
    (
        Violation::Unread,
        &[67, 261, 322, 326, 334, 377, 479, 591, 604, 692, 738, 769],
    ),
    // The subscribers of such a broker get nothing until then.
    (
        Violation::Stalled,
        &[67, 261, 289, 326, 479, 591, 604, 692, 738, 769],
    ),
    // While a rewritten log is read again, a subscriber gets a `position` event. What lies between
    // that position and the end of the window is skipped, and a resume from there is exact.
    (Violation::Missed, &[31, 164, 215, 289]),
    // A consequence of the last fault: that position may lie before what the subscriber has had.
    (Violation::Backwards, &[31]),
];

/// Returns the promises that a seed is known to break.
pub(crate) fn of_seed(seed: u64) -> Vec<Violation> {
    let faults = FAULTS.iter().filter(|(_, seeds)| seeds.contains(&seed));
    faults.map(|(violation, _)| *violation).collect()
}

pub(crate) fn is_listed(violation: Violation) -> bool {
    FAULTS.iter().any(|(it, _)| *it == violation)
}

/// All seeds that are listed.
pub(crate) fn seeds() -> impl Iterator<Item = u64> {
    FAULTS.iter().flat_map(|(_, seeds)| *seeds).copied()
}
