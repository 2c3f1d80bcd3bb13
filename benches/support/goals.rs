//! Goals: figures from medians of interleaved rounds, so that a noisy machine does not decide.

#![allow(dead_code)] // Each bench uses its part.
#![allow(clippy::disallowed_methods)] // Real time is what is measured.

use std::time::Instant;

/// What is measured: does its work this many times.
pub(crate) type Contender<'a> = &'a mut dyn FnMut(u64);

/// Which way a goal points.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

/// Runs the contenders in turn, round after round, each with so many iterations, and gives the
/// median time of one iteration of each, in nanoseconds.
///
/// One more round before the first warms them up. Each round begins with another contender, so
/// that none always follows the same one.
pub(crate) fn medians<const N: usize>(
    rounds: usize,
    iterations: u64,
    contenders: [Contender<'_>; N],
) -> [f64; N] {
    let mut runs = contenders.map(|contender| (contender, Vec::with_capacity(rounds)));
    for round in 0..=rounds {
        for turn in 0..N {
            let (contender, times) = &mut runs[(round + turn) % N];
            let start = Instant::now();
            contender(iterations);
            let time = start.elapsed().as_nanos() as f64 / iterations as f64;
            if round > 0 {
                times.push(time);
            }
        }
    }
    runs.map(|(_, mut times)| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

/// Prints the one line that says whether a goal is met.
pub(crate) fn goal(name: &str, measured: f64, wanted: Wanted) {
    match wanted {
        Wanted::AtLeast(wanted) => {
            println!("goal {name} measured {measured:.2} wanted >= {wanted}")
        }
        Wanted::AtMost(wanted) => println!("goal {name} measured {measured:.2} wanted <= {wanted}"),
    }
}
