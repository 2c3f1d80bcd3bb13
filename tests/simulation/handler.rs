//! The server's side of a stream: subscribe, snapshot, `live`.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use http::{Request, Response};
use http_body_util::Empty;
use tokio::time::{Instant, sleep};
use tower_sse::{Broker, CloseReason, Event, SseConnection, broker::Outcome};

use crate::{link::topic_name, world::World};

/// The stream that a connection belongs to.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Owner {
    pub(crate) client: usize,
    pub(crate) number: u64,
}

/// One request of a client.
pub(crate) struct Visit {
    pub(crate) world: Arc<World>,
    pub(crate) owner: Owner,
    pub(crate) broker: Broker,
    pub(crate) topics: Vec<usize>,
    pub(crate) replays: bool,
    pub(crate) reason: Arc<Mutex<Option<CloseReason>>>,
    pub(crate) rng: Rng,
}

impl Visit {
    pub(crate) async fn handle(
        mut self,
        mut request: Request<()>,
    ) -> Result<Response<Empty<Bytes>>, Infallible> {
        let sse: SseConnection = request
            .extensions_mut()
            .remove()
            .expect("the layer matches");
        let reason = Arc::clone(&self.reason);
        sse.on_close(move |it| *reason.lock().unwrap() = Some(it));
        let _ = sse.insert(self.owner);
        self.plan_end(&sse);
        if self.rng.u8(0..3) == 0 {
            // The handler answers at once, and a task has the handle.
            tokio::spawn(async move { self.carry_out(&sse).await });
        } else {
            self.carry_out(&sse).await;
        }
        Ok(Response::default())
    }

    /// Gives some streams a lifetime.
    fn plan_end(&mut self, sse: &SseConnection) {
        let Some(most) = self.world.plan.lifetime else {
            return;
        };
        let time = Instant::now() + most.mul_f64(0.5 + self.rng.f64() / 2.0);
        if time < self.world.calms_at {
            let Owner { client, number } = self.owner;
            let mut oracle = self.world.oracle.lock().unwrap();
            if let Some(stream) = oracle.stream(client, number) {
                stream.has_lifetime = true;
            }
            drop(oracle);
            sse.close_at(time);
        }
    }

    async fn carry_out(&mut self, sse: &SseConnection) {
        let world = Arc::clone(&self.world);
        let Owner { client, number } = self.owner;
        let is_calm = world.is_calm();
        if self.rng.u8(0..10) == 0 && !is_calm {
            self.pause(60).await;
        }
        if self.rng.u8(0..12) == 0 {
            self.send(sse, 1).await;
        }
        world
            .oracle
            .lock()
            .unwrap()
            .calls(client, number, &self.topics);
        let names: Vec<_> = self.topics.iter().map(|topic| topic_name(*topic)).collect();
        let mut subscribing = self.broker.subscribe(sse, names);
        if !self.replays {
            subscribing = subscribing.without_replay();
        }
        let subscription = match subscribing.await {
            Ok(subscription) => subscription,
            Err(error) => {
                world
                    .trace
                    .note(format!("client {client}: cannot subscribe: {error}"));
                if let Some(stream) = world.oracle.lock().unwrap().stream(client, number) {
                    stream.call = None;
                }
                return;
            }
        };
        let mut outcome = subscription.outcome();
        world
            .trace
            .note(format!("client {client}: subscribed, {outcome:?}"));
        world
            .oracle
            .lock()
            .unwrap()
            .returns(client, number, outcome);

        let style = self.rng.u8(0..5);
        if style >= 3 {
            // The snapshot comes after the outcome, if it is needed.
            outcome = subscription.resolved().await;
            world
                .trace
                .note(format!("client {client}: outcome {outcome:?}"));
            world
                .oracle
                .lock()
                .unwrap()
                .resolved(client, number, outcome);
        }
        if style >= 1 && outcome != Outcome::Exact {
            let count = self.rng.usize(1..=4);
            self.send(sse, count).await;
        }
        world.oracle.lock().unwrap().goes_live(client, number);
        if style == 2 {
            // It goes live with the answer.
            drop(subscription);
        } else {
            subscription.start();
            if self.rng.u8(0..4) == 0 && !is_calm {
                let count = self.rng.usize(1..=4);
                self.send(sse, count).await;
            }
        }
    }

    async fn send(&mut self, sse: &SseConnection, count: usize) {
        // Large ones fill more than a frame.
        let is_large = self.rng.u8(0..6) == 0;
        let padding = "x".repeat(if is_large { 14_000 } else { 0 });
        for _ in 0..count {
            let Owner { client, number } = self.owner;
            let it = self
                .world
                .oracle
                .lock()
                .unwrap()
                .next_direct(client, number);
            let text = format!("{it} {}", padding);
            let event = Event::new("direct", text).expect("the type is valid");
            if sse.send(event).await.is_err() {
                return;
            }
            self.world.oracle.lock().unwrap().has_sent(client, number);
            if self.rng.u8(0..3) == 0 {
                self.pause(120).await;
            }
        }
    }

    async fn pause(&mut self, most: u64) {
        sleep(Duration::from_millis(self.rng.u64(1..=most))).await;
    }
}
