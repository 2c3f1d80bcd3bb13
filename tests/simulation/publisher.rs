//! Publishers: they publish on any node, one event or a burst at a time.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use tokio::time::{sleep, timeout};
use tower_sse::{Event, backplane::AppendErrorKind, broker::BrokerErrorKind};

use crate::{link::topic_name, world::World};

/// The length of a large event: a few of them fill a frame.
const LARGE: usize = 12_000;

pub(crate) async fn publish(world: Arc<World>, mut rng: Rng) {
    let plan = &world.plan;
    while !world.is_calm() {
        sleep(Duration::from_millis(rng.u64(1..=plan.pause))).await;
        let node = rng.usize(0..plan.nodes);
        let topic = rng.usize(0..plan.topics);
        let most = if rng.u8(0..3) == 0 { plan.burst } else { 2 };
        let count = rng.usize(1..=most);
        let keeps_topic = rng.bool();
        for _ in 0..count {
            if world.is_calm() {
                return;
            }
            let topic = if keeps_topic {
                topic
            } else {
                rng.usize(0..plan.topics)
            };
            let padding = if rng.u8(0..100) < plan.large {
                "x".repeat(rng.usize(0..LARGE))
            } else {
                String::new()
            };
            let publishing = publish_one(&world, node, topic, &padding);
            if rng.u8(0..20) == 0 {
                // The publisher gives up: the event may have been published or not.
                let patience = Duration::from_millis(rng.u64(0..20));
                let _ = timeout(patience, publishing).await;
            } else {
                publishing.await;
            }
        }
    }
}

pub(crate) async fn publish_one(world: &World, node: usize, topic: usize, padding: &str) {
    let uid = world.next_uid();
    let broker = world.node(node).broker;
    world
        .trace
        .note(format!("publish {uid} on node {node}, topic {topic}"));
    let text = if padding.is_empty() {
        uid.to_string()
    } else {
        format!("{uid} {padding}")
    };
    let answer = broker
        .publish(topic_name(topic), Event::message(text))
        .await;
    world.trace.note(match &answer {
        Ok(position) => format!("published {uid}: {}", position.offset()),
        Err(error) => format!("published {uid}: {error}"),
    });
    let answer = match answer {
        Ok(position) => Ok(position.to_string()),
        Err(error) => {
            let kind = error.kind();
            Err(kind != BrokerErrorKind::Append(AppendErrorKind::NotSent))
        }
    };
    world.oracle.lock().unwrap().published(uid, &answer);
}
