//! Publish, subscribe, pull, cut, resume, evict, unsubscribe in any order, against a model that
//! says what each reader has to get, event by event.

use super::{paths, timed};
use paths::connection_untouched;
use std::collections::{BTreeSet, VecDeque};

use futures_util::FutureExt;
use http::Request;
use proptest::prelude::*;
use tower_sse::{
    Broker, Event, SseConnection, SseLayer,
    broker::{History, Outcome, Position, Subscription},
    event::{Decoded, Decoder, MessageEvent},
    test_util::EventReader,
};

const TOPICS: [&str; 3] = ["a", "b", "c"];
const CLIENTS: usize = 3;
/// How many events a topic keeps.
const KEPT: usize = 4;
/// How many records tell a rewritten log: a client that is further behind than half of them is
/// given its place.
const WINDOW: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Publish {
        topic: usize,
        times: usize,
    },
    /// Comes, or comes back; subscribes, and is sent a snapshot of this many events.
    Connect {
        client: usize,
        topics: BTreeSet<usize>,
        snapshot: usize,
        is_live: bool,
    },
    Live(usize),
    /// Takes at most this many events.
    Read {
        client: usize,
        events: usize,
    },
    Cut(usize),
    Subscribe {
        client: usize,
        topic: usize,
    },
    Unsubscribe {
        client: usize,
        topic: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    let topic = 0..TOPICS.len();
    let topics = prop::collection::btree_set(topic.clone(), 1..=TOPICS.len());
    prop_oneof![
        6 => (topic.clone(), 1..7_usize).prop_map(|(topic, times)| Step::Publish { topic, times }),
        4 => (client.clone(), topics, 0..3_usize, any::<bool>()).prop_map(
            |(client, topics, snapshot, is_live)| Step::Connect { client, topics, snapshot, is_live }
        ),
        2 => client.clone().prop_map(Step::Live),
        6 => (client.clone(), 1..12_usize).prop_map(|(client, events)| Step::Read { client, events }),
        2 => client.clone().prop_map(Step::Cut),
        1 => (client.clone(), topic.clone()).prop_map(|(client, topic)| Step::Subscribe { client, topic }),
        1 => (client, topic).prop_map(|(client, topic)| Step::Unsubscribe { client, topic }),
    ]
}

/// What was published: the topic of each offset, from 1 on.
#[derive(Default)]
struct Log(Vec<usize>);

impl Log {
    fn head(&self) -> u64 {
        self.0.len() as u64
    }

    /// The offsets of a topic, the latest first.
    fn latest(&self, topic: usize) -> impl Iterator<Item = u64> {
        let offsets = (1..=self.head()).rev().zip(self.0.iter().rev());
        offsets
            .filter(move |(_, it)| **it == topic)
            .map(|(offset, _)| offset)
    }

    /// The last offset that a topic has dropped.
    fn lost(&self, topic: usize) -> u64 {
        self.latest(topic).nth(KEPT).unwrap_or(0)
    }

    fn after(&self, place: u64, topics: &BTreeSet<usize>) -> VecDeque<u64> {
        let offsets = (1..).zip(&self.0);
        offsets
            .filter(|(offset, topic)| *offset > place && topics.contains(topic))
            .map(|(offset, _)| offset)
            .collect()
    }
}

/// What a client knows, over all its connections.
#[derive(Default)]
struct Client {
    topics: BTreeSet<usize>,
    last_id: Option<String>,
    /// The offset of the last event that it got.
    last_event: u64,
    stream: Option<Stream>,
}

/// A client's connection, and what it has to get.
struct Stream {
    sse: SseConnection,
    subscription: Option<Subscription>,
    reader: EventReader,
    decoder: Decoder,
    /// What has been taken from the body, and checked, and not been read by the client yet.
    taken: VecDeque<MessageEvent>,
    /// Control events and snapshots that come next.
    first: VecDeque<Expected>,
    /// Those that come once it is live.
    then: VecDeque<Expected>,
    /// The events that it has to get after that.
    events: VecDeque<u64>,
    /// The offset of the last id that was given.
    given: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    Welcome,
    Snapshot(usize),
    Gap,
    Position(u64),
}

impl Stream {
    /// Takes frames until there are this many events, or no more; checks each event.
    fn take(&mut self, log: &Log, topics: &BTreeSet<usize>, wanted: usize) {
        while self.taken.len() < wanted {
            // What has fallen out of the rings is lost at this moment, to be told first.
            let is_live = self.subscription.is_none();
            let mut missed = 0;
            if is_live {
                let before = self.events.len();
                self.events
                    .retain(|offset| *offset > log.lost(log.0[*offset as usize - 1]));
                missed = before - self.events.len();
            }
            let Some(frame) = self.reader.frame().now_or_never() else {
                assert_eq!(missed, 0, "a loss was not told");
                assert!(self.first.is_empty(), "{:?} did not come", self.first);
                if is_live {
                    assert!(self.then.is_empty(), "{:?} did not come", self.then);
                    assert!(self.events.is_empty(), "{:?} did not come", self.events);
                    let is_near = log.head() - self.given <= WINDOW as u64 / 2;
                    assert!(is_near || topics.is_empty(), "no position came");
                }
                return;
            };
            let frame = frame.expect("the stream goes on");
            self.decoder.feed(&frame).unwrap();
            while let Some(decoded) = self.decoder.next() {
                if let Decoded::Event(event) = decoded {
                    self.check(&event, log, is_live, &mut missed);
                    self.taken.push_back(event);
                }
            }
        }
    }

    fn check(&mut self, event: &MessageEvent, log: &Log, is_live: bool, missed: &mut usize) {
        let id = Position::parse(event.last_event_id.as_bytes()).map(|id| id.offset());
        if let Some(expected) = self.first.pop_front() {
            match expected {
                Expected::Welcome => assert_eq!(event.event_type, "welcome"),
                Expected::Snapshot(number) => {
                    assert_eq!(
                        (&*event.event_type, &*event.data),
                        ("snapshot", &*number.to_string())
                    );
                }
                _ => unreachable!("that comes later"),
            }
            assert_eq!(id, None, "a place was given too early");
            return;
        }
        assert!(is_live, "{event:?} came before the stream was live");
        if event.event_type == "gap" {
            // A place that is lost is told with what was lost since then, in one.
            let is_place = self.then.front() == Some(&Expected::Gap);
            let count = if is_place {
                "null".to_owned()
            } else {
                missed.to_string()
            };
            let reason = if is_place { "evicted" } else { "lagged" };
            assert!(
                is_place || *missed > 0,
                "a gap was told, and nothing was lost"
            );
            assert_eq!(
                event.data,
                format!(r#"{{"reason":"{reason}","missed":{count}}}"#)
            );
            *missed = 0;
            if is_place {
                self.then.pop_front();
            }
            return;
        }
        assert_eq!(
            *missed, 0,
            "{event:?} came before the loss of {missed} was told"
        );
        if event.event_type == "position" {
            match self.then.pop_front() {
                Some(expected) => assert_eq!(Some(expected), id.map(Expected::Position)),
                None => {
                    assert!(self.events.is_empty(), "a position came before its events");
                    assert_eq!(id, Some(log.head()));
                    let distance = log.head() - self.given;
                    assert!(distance > WINDOW as u64 / 2, "a position came without need");
                }
            }
            self.given = id.unwrap();
            return;
        }
        assert!(
            self.then.is_empty(),
            "{event:?} came before {:?}",
            self.then
        );
        assert_eq!(self.events.pop_front(), id);
        assert_eq!(id.unwrap().to_string(), event.data);
        self.given = id.unwrap();
    }

    fn go_live(&mut self) {
        if let Some(subscription) = self.subscription.take() {
            subscription.start();
        }
    }
}

struct World {
    broker: Broker,
    log: Log,
    clients: [Client; CLIENTS],
}

impl World {
    async fn run(steps: Vec<Step>) {
        let history = History::default().events(KEPT);
        let mut world = Self {
            broker: Broker::builder()
                .history(history)
                .window(WINDOW)
                .in_memory(),
            log: Log::default(),
            clients: Default::default(),
        };
        for step in steps {
            world.step(step).await;
        }
        // In the end each one gets all that is left; who comes back then gets nothing again.
        for client in 0..CLIENTS {
            let topics = world.clients[client].topics.clone();
            if topics.is_empty() {
                continue;
            }
            if world.clients[client].stream.is_none() {
                world.connect(client, topics.clone(), 0).await;
            }
            world.live(client);
            world.read(client, usize::MAX).await;
            world.clients[client].stream = None;
            world.connect(client, topics.clone(), 0).await;
            world.live(client);
            world.read(client, usize::MAX).await;
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Publish { topic, times } => {
                for _ in 0..times {
                    self.log.0.push(topic);
                    let text = self.log.head().to_string();
                    let event = Event::message(&text);
                    let position = self.broker.publish(TOPICS[topic], event).await.unwrap();
                    assert_eq!(position.offset(), self.log.head());
                    for client in &mut self.clients {
                        let stream = client.stream.as_mut();
                        if let Some(stream) = stream.filter(|_| client.topics.contains(&topic)) {
                            stream.events.push_back(self.log.head());
                        }
                    }
                }
            }
            Step::Connect {
                client,
                topics,
                snapshot,
                is_live,
            } => {
                if self.clients[client].stream.is_none() {
                    self.connect(client, topics, snapshot).await;
                    if is_live {
                        self.live(client);
                    }
                }
            }
            Step::Live(client) => self.live(client),
            Step::Read { client, events } => self.read(client, events).await,
            Step::Cut(client) => self.clients[client].stream = None,
            Step::Subscribe { client, topic } => {
                let client = &mut self.clients[client];
                // Before that its place would count.
                let is_live = |it: &&Stream| it.subscription.is_none();
                if let Some(stream) = client.stream.as_ref().filter(is_live) {
                    let added = self.broker.subscribe(&stream.sse, TOPICS[topic]).await;
                    assert_eq!(added.unwrap().outcome(), Outcome::Fresh);
                    client.topics.insert(topic);
                }
            }
            Step::Unsubscribe { client, topic } => {
                let client = &mut self.clients[client];
                if let Some(stream) = &mut client.stream {
                    self.broker.unsubscribe(&stream.sse, TOPICS[topic]).unwrap();
                    stream
                        .events
                        .retain(|offset| self.log.0[*offset as usize - 1] != topic);
                    client.topics.remove(&topic);
                }
            }
        }
    }

    async fn connect(&mut self, client: usize, topics: BTreeSet<usize>, snapshot: usize) {
        let client = &mut self.clients[client];
        client.topics = topics;
        let mut request = Request::get("/");
        if let Some(id) = &client.last_id {
            request = request.header("last-event-id", id);
        }
        let request = request.body(()).unwrap();
        let (sse, reader) = connection_untouched(&SseLayer::any_path(), request).await;
        let names: Vec<_> = client.topics.iter().map(|topic| TOPICS[*topic]).collect();
        let subscription = self.broker.subscribe(&sse, names).await.unwrap();

        let head = self.log.head();
        let id = client.last_id.as_ref();
        let place = id.map(|id| Position::parse(id.as_bytes()).unwrap().offset());
        let is_kept = |place: u64| {
            client
                .topics
                .iter()
                .all(|topic| self.log.lost(*topic) <= place)
        };
        let outcome = match place {
            None => Outcome::Fresh,
            Some(place) if is_kept(place) => Outcome::Exact,
            Some(_) => Outcome::Gap,
        };
        assert_eq!(subscription.outcome(), outcome);
        let mut first = VecDeque::from([Expected::Welcome]);
        for number in 0..snapshot {
            let event = Event::new("snapshot", number.to_string()).unwrap();
            sse.send(event).await.unwrap();
            first.push_back(Expected::Snapshot(number));
        }
        let (then, given) = match outcome {
            Outcome::Exact => (vec![], place.unwrap()),
            Outcome::Gap => (vec![Expected::Gap, Expected::Position(head)], head),
            _ => (vec![Expected::Position(head)], head),
        };
        client.stream = Some(Stream {
            sse,
            subscription: Some(subscription),
            reader,
            decoder: Decoder::new(),
            taken: VecDeque::new(),
            first,
            then: then.into(),
            events: self.log.after(given, &client.topics),
            given,
        });
    }

    fn live(&mut self, client: usize) {
        if let Some(stream) = &mut self.clients[client].stream {
            stream.go_live();
        }
    }

    /// The client reads some events: what it does not read before it is cut is lost on the way.
    async fn read(&mut self, client: usize, events: usize) {
        // A direct stream that has registered its waker looks again once it is woken, and the
        // broker's task does that.
        timed::settle().await;
        let client = &mut self.clients[client];
        let Some(stream) = &mut client.stream else {
            return;
        };
        stream.take(&self.log, &client.topics, events);
        let count = events.min(stream.taken.len());
        for event in stream.taken.drain(..count) {
            if event.event_type == "message" {
                let offset = event.data.parse().unwrap();
                assert!(client.last_event < offset, "{event:?} came again, or late");
                client.last_event = offset;
            }
            if !event.last_event_id.is_empty() {
                client.last_id = Some(event.last_event_id);
            }
        }
    }
}

proptest! {
    #[test]
    fn readers_get_each_event_once_in_order_or_a_gap(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(World::run(steps));
    }
}
