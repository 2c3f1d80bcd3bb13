//! What a test costs the processor.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

/// What this thread has used: the runtime of a test, with all its nodes, runs on one.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Checks that the runtime is at rest, and prints how much processor time it used.
pub async fn is_at_rest() {
    let second = Duration::from_secs(1);
    let before = processor_time();
    sleep(second).await;
    let used = processor_time() - before;
    println!("processor time in a second: {used:?}");
    assert!(used < second / 2, "{used:?} of {second:?}");
}
