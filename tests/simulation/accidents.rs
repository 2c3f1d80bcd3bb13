//! The accidents of a world: to links, to the log and to nodes.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use tokio::time::{Instant, sleep};

use crate::{log::Kind, plan::Accident, world::World};

pub(crate) async fn happen(world: Arc<World>, mut rng: Rng) {
    let accidents = &world.plan.accidents;
    let Some(every) = accidents.every.filter(|_| !accidents.kinds.is_empty()) else {
        return;
    };
    loop {
        sleep(Duration::from_millis(rng.u64(1..=2 * every))).await;
        if world.is_calm() {
            return;
        }
        let accident = accidents.kinds[rng.usize(0..accidents.kinds.len())];
        let node = rng.usize(0..world.plan.nodes);
        // Long ones now and then.
        let most = if rng.u8(0..4) == 0 { 3000 } else { 400 };
        let time = Duration::from_millis(rng.u64(1..=most));
        let until = (Instant::now() + time).min(world.calms_at);
        world
            .trace
            .note(format!("*** {accident:?} on node {node} for {time:?}"));
        match accident {
            Accident::Kill => world.restart(node),
            Accident::Drain => drain(&world, node, &mut rng).await,
            _ => strike(&world, accident, node, until, &mut rng),
        }
    }
}

/// Damages the log, or the way to it.
fn strike(world: &World, accident: Accident, node: usize, until: Instant, rng: &mut Rng) {
    let mut log = world.log.lock().unwrap();
    let mut wakers = Vec::new();
    match accident {
        Accident::Hang => {
            log.links[node].hangs_until = until;
            if rng.bool() {
                log.links[node].break_off();
            }
        }
        Accident::Fail => {
            log.links[node].fails_until = until;
            log.links[node].break_off();
        }
        Accident::Restart => {
            for link in &mut log.links {
                link.fails_until = until;
            }
            log.break_all();
        }
        Accident::Lose => {
            // Some nodes find out late.
            for link in &mut log.links {
                if rng.u8(0..3) == 0 {
                    link.hangs_until = until;
                }
            }
            log.lose(rng.usize(1..=6));
        }
        Accident::Replace => {
            for link in &mut log.links {
                if rng.u8(0..3) == 0 {
                    link.hangs_until = until;
                }
            }
            log.replace();
        }
        Accident::Forget => {
            let count = log.branch().entries.len() - log.branch().forgotten;
            log.forget(rng.usize(0..=count));
        }
        Accident::Unreadable => {
            let topic = rng.bool().then(|| rng.usize(0..world.plan.topics));
            (_, wakers) = log.append(Kind::Unreadable(topic));
        }
        Accident::Foreign => (_, wakers) = log.append(Kind::Foreign),
        Accident::Kill | Accident::Drain => {}
    }
    // Streams that wait find that they are broken.
    wakers.extend(log.take_wakers());
    drop(log);
    wakers.into_iter().for_each(|waker| waker.wake());
}

/// Drains a node, and starts it again.
async fn drain(world: &World, node: usize, rng: &mut Rng) {
    let it = world.node(node);
    let over = Duration::from_millis(rng.u64(0..1000));
    let deadline = over + Duration::from_millis(rng.u64(0..500));
    world.oracle.lock().unwrap().drains(it.reader);
    let drained = it.connections.drain().over(over).deadline(deadline).await;
    world.trace.note(format!("node {node}: {drained:?}"));
    world.restart(node);
}
