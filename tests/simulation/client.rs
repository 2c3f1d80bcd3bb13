//! A client: it connects, reads at its pace, leaves and returns with its last id.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use http::Request;
use tokio::time::{Instant, sleep, timeout_at};
use tower::{Layer, service_fn};
use tower_sse::{
    CloseReason, Event, SseConnection,
    event::{Decoded, Decoder, MessageEvent},
    test_util::{self, EventReader, ReadError},
};

use crate::{
    handler::{Owner, Visit},
    link::topic_name,
    oracle::End,
    publisher,
    world::{Node, World},
};

/// Longer than any world.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

struct Client {
    world: Arc<World>,
    number: usize,
    rng: Rng,
    /// The longest pause after an event, in milliseconds.
    pace: u64,
    topics: BTreeSet<usize>,
}

/// A stream that a client has open.
struct Open {
    number: usize,
    node: Node,
    owner: Owner,
    reader: EventReader,
    decoder: Decoder,
    /// Events of the last frame that the client has not read.
    events: VecDeque<MessageEvent>,
    reason: Arc<Mutex<Option<CloseReason>>>,
}

pub(crate) async fn live(world: Arc<World>, number: usize, mut rng: Rng) {
    let pace = if rng.bool() { 0 } else { rng.u64(1..300) };
    world.oracle.lock().unwrap().clients[number].is_fast = pace == 0;
    let mut client = Client {
        world,
        number,
        rng,
        pace,
        topics: BTreeSet::new(),
    };
    client.choose_topics();
    while Instant::now() < client.world.ends_at {
        client.visit().await;
    }
}

impl Open {
    /// Takes the next frame, once everything of the last one has been read.
    async fn fill(&mut self) -> Result<bool, ReadError> {
        if !self.events.is_empty() {
            return Ok(false);
        }
        let frame = self.reader.frame().await?;
        self.decoder.feed(&frame).map_err(ReadError::TooLong)?;
        for decoded in self.decoder.by_ref() {
            if let Decoded::Event(event) = decoded {
                self.events.push_back(event);
            }
        }
        Ok(true)
    }
}

impl Client {
    fn note(&self, what: impl AsRef<str>) {
        let line = format!("client {}: {}", self.number, what.as_ref());
        self.world.trace.note(line);
    }

    fn choose_topics(&mut self) {
        let all = self.world.plan.topics;
        let first = self.rng.usize(0..all);
        self.topics = (0..all).filter(|_| self.rng.bool()).collect();
        self.topics.insert(first);
    }

    /// One stream, from its request to its end.
    async fn visit(&mut self) {
        let is_calm = self.world.is_calm();
        // Often at once, before other nodes have read what it has.
        let most = if is_calm || self.rng.bool() { 20 } else { 600 };
        sleep(Duration::from_millis(self.rng.u64(1..=most))).await;
        if self.rng.u8(0..20) == 0 && !is_calm {
            self.note("is a new client");
            self.world.oracle.lock().unwrap().forget(self.number);
        }
        if self.rng.u8(0..10) == 0 && !is_calm {
            self.choose_topics();
        }
        let Some(open) = self.connect().await else {
            return;
        };
        let reason = Arc::clone(&open.reason);
        let end = self.read(open).await;
        let reason = *reason.lock().unwrap();
        self.note(format!("stream ended: {end:?}, {reason:?}"));
        self.world
            .oracle
            .lock()
            .unwrap()
            .ended(self.number, end, reason);
    }

    async fn connect(&mut self) -> Option<Open> {
        let number = self.rng.usize(0..self.world.plan.nodes);
        let node = self.world.node(number);
        let replays = self.rng.u8(0..16) > 0;
        let (stream, id) = {
            let mut oracle = self.world.oracle.lock().unwrap();
            let stream = oracle.connects(self.number, node.reader, replays);
            (stream, oracle.clients[self.number].last_id.clone())
        };
        self.note(format!(
            "connects to node {number} with {id:?}, topics {:?}",
            self.topics
        ));
        let mut request = Request::get("/").header("accept", "text/event-stream");
        if let Some(id) = id {
            request = request.header("last-event-id", id);
        }
        let request = request.body(()).expect("ids are header values");

        let owner = Owner {
            client: self.number,
            number: stream,
        };
        let reason = Arc::new(Mutex::new(None));
        let mut visit = Some(Visit {
            world: Arc::clone(&self.world),
            owner,
            broker: node.broker.clone(),
            topics: self.topics.iter().copied().collect(),
            replays,
            reason: Arc::clone(&reason),
            rng: self.rng.fork(),
        });
        let service = node.layer.layer(service_fn(move |request| {
            visit.take().expect("there is one request").handle(request)
        }));
        match test_util::open(service, request).await {
            Ok(response) => Some(Open {
                number,
                node,
                owner,
                reader: response.into_body().time_limit(DAY),
                decoder: Decoder::new(),
                events: VecDeque::new(),
                reason,
            }),
            Err(error) => {
                self.note(format!("cannot connect: {error}"));
                self.world
                    .oracle
                    .lock()
                    .unwrap()
                    .ended(self.number, End::Cut, None);
                None
            }
        }
    }

    /// Reads until the stream ends, or leaves.
    async fn read(&mut self, mut open: Open) -> End {
        let mut killed = open.node.killed.subscribe();
        let leaves_at = self.leaves_at();
        let mut acts_at = self.acts_at();
        self.world.oracle.lock().unwrap().reads_again(self.number);
        loop {
            let until = acts_at.min(leaves_at);
            let filled = tokio::select! {
                biased;
                _ = killed.wait_for(|is_killed| *is_killed) => return End::Cut,
                filled = timeout_at(until, open.fill()) => filled,
            };
            match filled {
                Ok(Ok(true)) => self.world.oracle.lock().unwrap().takes(self.number),
                Ok(Ok(false)) => {
                    let Some(event) = open.events.pop_front() else {
                        continue;
                    };
                    let data = event.data.get(..40).unwrap_or(&event.data);
                    let (event_type, id) = (&event.event_type, &event.last_event_id);
                    self.note(format!("<- {event_type} {data} {id}"));
                    self.world
                        .oracle
                        .lock()
                        .unwrap()
                        .receives(self.number, &event);
                    self.rest().await;
                }
                Ok(Err(ReadError::Ended)) => return End::Clean,
                Ok(Err(ReadError::Broken(_))) => return End::Broken,
                Ok(Err(error)) => panic!("client {}: {error}", self.number),
                Err(_) if Instant::now() >= leaves_at => return End::Cut,
                Err(_) => {
                    self.world.oracle.lock().unwrap().pauses(self.number);
                    self.act(&open).await;
                    self.world.oracle.lock().unwrap().reads_again(self.number);
                    acts_at = self.acts_at();
                }
            }
        }
    }

    fn leaves_at(&mut self) -> Instant {
        let ends_at = self.world.ends_at;
        if self.world.is_calm() || self.rng.u8(0..3) == 0 {
            return ends_at;
        }
        let time = Instant::now() + Duration::from_millis(self.rng.u64(0..3000));
        if time < self.world.calms_at {
            time
        } else {
            ends_at
        }
    }

    fn acts_at(&mut self) -> Instant {
        let time = Instant::now() + Duration::from_millis(self.rng.u64(1..2500));
        if time < self.world.calms_at {
            time
        } else {
            self.world.ends_at
        }
    }

    /// Pauses after an event, as a slow client.
    async fn rest(&mut self) {
        if self.pace == 0 || self.world.is_calm() {
            return;
        }
        // Some pauses are long.
        let most = if self.rng.u8(0..20) == 0 {
            2000
        } else {
            self.pace
        };
        sleep(Duration::from_millis(self.rng.u64(0..=most))).await;
    }

    /// The server does something with the stream.
    async fn act(&mut self, open: &Open) {
        let is_it = |sse: &SseConnection| sse.get::<Owner>() == Some(&open.owner);
        let Some(sse) = open.node.connections.iter().find(is_it) else {
            return;
        };
        if self.world.oracle.lock().unwrap().clients[self.number].is_held_back() {
            return;
        }
        match self.rng.u8(0..4) {
            0 => {
                if self.rng.bool() {
                    // Its last event, as the application sees it.
                    let topic = *self.topics.first().expect("one topic stays");
                    publisher::publish_one(&self.world, open.number, topic, "").await;
                }
                self.note("is closed by the server");
                self.world.oracle.lock().unwrap().closes(self.number);
                if self.rng.bool() {
                    open.node.connections.close_where(is_it);
                } else {
                    let last = Event::new("last", "{}").expect("the type is valid");
                    let _ = sse.close_with(last);
                }
            }
            1 => self.remove(open, &sse),
            _ => self.add(open, &sse).await,
        }
    }

    fn remove(&mut self, open: &Open, sse: &SseConnection) {
        let Some(topic) = self.topics.iter().copied().next_back() else {
            return;
        };
        // The last one stays: the stream would end.
        if self.topics.len() < 2 {
            return;
        }
        self.note(format!("unsubscribes from topic {topic}"));
        if open.node.broker.unsubscribe(sse, topic_name(topic)).is_ok() {
            self.topics.remove(&topic);
            self.world
                .oracle
                .lock()
                .unwrap()
                .removes(self.number, topic);
        }
    }

    async fn add(&mut self, open: &Open, sse: &SseConnection) {
        let topic = self.rng.usize(0..self.world.plan.topics);
        if self.topics.contains(&topic) {
            return;
        }
        let call = self.world.oracle.lock().unwrap().step();
        let Ok(subscription) = open.node.broker.subscribe(sse, topic_name(topic)).await else {
            return;
        };
        let outcome = subscription.outcome();
        subscription.start();
        self.note(format!("subscribes to topic {topic}: {outcome:?}"));
        self.topics.insert(topic);
        self.world
            .oracle
            .lock()
            .unwrap()
            .adds(self.number, topic, call, outcome);
    }
}
