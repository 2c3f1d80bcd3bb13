//! A drain: all clients of one node move to another, while events go on.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, extract::Path, routing::get};
use tokio::{
    sync::watch,
    task::{JoinSet, LocalSet},
    time::{interval, sleep},
};
use tower_sse::{
    Broker, Connections, Error, Event, SseConnection, SseLayer,
    backplane::Memory,
    broker::Position,
    event::{Decoded, MessageEvent},
};

use crate::{
    client::Stream,
    goals::{Wanted, goal},
    process::{Process, Serves, joined, listen, settled},
};

const CLIENTS: usize = 5_000;
const OVER: Duration = Duration::from_secs(5);

/// Every client has the news, and is in one room.
const ROOMS: usize = 50;

/// How often there are news. As many rooms get an event each time as makes one a second of each.
const PACE: Duration = Duration::from_millis(250);

// ===== the server: two nodes on one log =====

pub(crate) struct Server {
    connections: [Connections; 2],
    brokers: [Broker; 2],
    /// When the drain began.
    began: Arc<Mutex<Option<Instant>>>,
    /// When each client came to the other node, after the drain began, in milliseconds.
    arrivals: Arc<Mutex<Vec<u64>>>,
    stop: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn app(
    connections: &Connections,
    broker: &Broker,
    arrived: impl Fn() + Send + Sync + 'static,
) -> Router {
    let layer = SseLayer::new("/rooms/{room}")
        .registry(connections)
        .on_open(move |_| arrived());
    let broker = broker.clone();
    let events = async move |Path(room): Path<usize>, sse: SseConnection| -> Result<(), Error> {
        let topics = ["news".to_owned(), format!("room:{room}")];
        broker.subscribe(&sse, topics).await?.start();
        Ok(())
    };
    Router::new()
        .route("/rooms/{room}", get(events))
        .layer(layer)
}

impl Server {
    pub(crate) async fn start() -> (Self, Vec<u16>) {
        let log = Memory::new();
        let server = Self {
            connections: Default::default(),
            brokers: [Broker::new(log.clone()), Broker::new(log)],
            began: Arc::default(),
            arrivals: Arc::default(),
            stop: watch::channel(false).0,
        };
        let (began, arrivals) = (Arc::clone(&server.began), Arc::clone(&server.arrivals));
        let arrived = move || {
            if let Some(began) = *lock(&began) {
                lock(&arrivals).push(began.elapsed().as_millis() as u64);
            }
        };
        let apps = [
            app(&server.connections[0], &server.brokers[0], || ()),
            app(&server.connections[1], &server.brokers[1], arrived),
        ];
        let ports = apps.map(|app| {
            let (listener, port) = listen(None);
            tokio::spawn(async { axum::serve(listener, app).await });
            port
        });
        (server, ports.to_vec())
    }
}

/// Publishes until it is told to stop, and then the last event of each topic. The data of each event:
/// its number among all, its topic, its number among those of the topic, and whether it is the last.
async fn publish(broker: Broker, mut stop: watch::Receiver<bool>) {
    let mut number = 0;
    let mut numbers = [0; ROOMS + 1];
    let mut publish = async |topic: usize, is_last: bool| {
        let data = format!("{number} {topic} {} {is_last} {:x<60}", numbers[topic], "");
        let name = match topic {
            ROOMS => "news".to_owned(),
            room => format!("room:{room}"),
        };
        let published = broker.publish(name, Event::message(data)).await;
        published.expect("a position");
        number += 1;
        numbers[topic] += 1;
    };
    let mut pace = interval(PACE);
    let mut rooms = (0..ROOMS).cycle();
    let rooms_at_a_time = (ROOMS as f64 * PACE.as_secs_f64()).round() as usize;
    loop {
        tokio::select! {
            _ = pace.tick() => {}
            _ = stop.changed() => break,
        }
        publish(ROOMS, false).await;
        for room in rooms.by_ref().take(rooms_at_a_time) {
            publish(room, false).await;
        }
    }
    for topic in 0..=ROOMS {
        publish(topic, true).await;
    }
}

impl Serves for Server {
    async fn answer(&self, question: &str) -> String {
        match question {
            "publish" => {
                let publish = publish(self.brokers[1].clone(), self.stop.subscribe());
                tokio::spawn(publish);
            }
            "stop" => drop(self.stop.send(true)),
            "drain" => {
                *lock(&self.began) = Some(Instant::now());
                let drained = self.connections[0].drain().over(OVER).await;
                return joined([drained.ended, drained.aborted]);
            }
            "arrivals" => return joined(&*lock(&self.arrivals)),
            _ => {}
        }
        joined(self.connections.each_ref().map(Connections::len))
    }
}

// ===== the clients =====

/// What a client has had.
#[derive(Default)]
struct Client {
    /// The number, among all, of the last event.
    last: Option<u64>,
    place: Option<Position>,
    /// The numbers that have to come next, of the room and of the news: all from the first on.
    next: [u64; 2],
    is_done: [bool; 2],
}

impl Client {
    /// Takes an event, unless something is wrong with it.
    fn take(&mut self, room: usize, event: &MessageEvent) -> Result<(), String> {
        if event.event_type == "gap" {
            return Err(format!("a gap: {}", event.data));
        }
        let place = Position::parse(event.last_event_id.as_bytes());
        let last = self.place.map(|place| place.offset());
        if place.map(|place| place.offset()) < last {
            return Err(format!("a place before {last:?}: {event:?}"));
        }
        self.place = place;
        if event.event_type != "message" {
            return Ok(());
        }
        let parts: Vec<&str> = event.data.split(' ').collect();
        let numbers = [0, 1, 2].map(|at| parts[at].parse::<u64>().expect("a number"));
        let [number, topic, of_topic] = numbers;
        let is_news = topic == ROOMS as u64;
        let next = &mut self.next[usize::from(is_news)];
        let is_due = *next == of_topic && self.last < Some(number);
        if !is_due || !(is_news || topic == room as u64) {
            return Err(format!("event {next} did not come, but {event:?}"));
        }
        *next += 1;
        self.last = Some(number);
        self.is_done[usize::from(is_news)] = parts[3] == "true";
        Ok(())
    }
}

/// When the stream on node A ended for a client, and the reconnection time that it was given.
type Moved = (Instant, Option<Duration>);

/// Reads on node A until that ends the stream, comes back to node B, and reads on until the last
/// events.
async fn move_on(ports: [u16; 2], room: usize, opened: Rc<Cell<usize>>) -> Result<Moved, String> {
    let path = format!("/rooms/{room}");
    let mut client = Client::default();
    let mut stream = Stream::open(ports[0], &path, None).await;
    let (mut retry, mut given) = (None, None);
    while let Some(decoded) = stream.next().await {
        match decoded {
            Decoded::Retry(time) => retry = Some(time),
            Decoded::Event(event) if event.event_type == "reconnect" => {
                assert_eq!(event.data, r#"{"reason":"drained"}"#);
                given = retry.take();
            }
            Decoded::Event(event) => {
                if event.event_type == "welcome" {
                    opened.set(opened.get() + 1);
                    retry = None;
                }
                client.take(room, &event)?;
            }
            _ => {}
        }
    }
    let end = Instant::now();
    let place = stream.last_event_id().to_owned();
    drop(stream);
    sleep(given.unwrap_or_default()).await;
    let mut stream = Stream::open(ports[1], &path, Some(&place)).await;
    while client.is_done != [true; 2] {
        let decoded = stream.next().await.expect("a stream that goes on");
        if let Decoded::Event(event) = decoded {
            client.take(room, &event)?;
        }
    }
    Ok((end, given))
}

/// How many of these times, in milliseconds, are in the fullest second.
fn most_in_a_second(times: &[u64]) -> usize {
    let within = |from: u64| {
        times
            .iter()
            .filter(move |it| (from..from + 1000).contains(it))
    };
    let counts = times.iter().map(|from| within(*from).count());
    counts.max().unwrap_or(0)
}

pub(crate) async fn run() {
    LocalSet::new().run_until(drain()).await;
}

async fn drain() {
    let (mut server, ports) = Process::start("drain").await;
    let ports: [u16; 2] = ports.try_into().expect("two nodes");
    let opened = Rc::new(Cell::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn_local(move_on(ports, number % ROOMS, Rc::clone(&opened)));
        // A few at a time.
        while opened.get() + 100 < number {
            sleep(Duration::from_millis(1)).await;
        }
    }
    let long = Duration::from_secs(30);
    settled(long, async || opened.get(), |it| *it == CLIENTS).await;
    assert_eq!(opened.get(), CLIENTS, "not all are there");

    server.ask::<usize>("publish").await;
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    let drained = server.ask::<usize>("drain").await;
    let all_moved = |open: &Vec<usize>| *open == [0, CLIENTS];
    let open = settled(long, async || server.ask::<usize>("").await, all_moved).await;
    sleep(Duration::from_secs(1)).await;
    server.ask::<usize>("stop").await;
    let (mut ends, mut given, mut failed) = (Vec::new(), Vec::new(), None);
    while let Some(client) = clients.join_next().await {
        match client.expect("a client") {
            Ok((end, retry)) => {
                ends.push((end - began).as_millis() as u64);
                given.extend(retry);
            }
            Err(error) => failed = Some(error),
        }
    }
    if let Some(error) = failed {
        println!("  a client has not had everything: {error}");
    }
    let mut arrivals = server.ask::<u64>("arrivals").await;
    arrivals.sort_unstable();

    let last = arrivals.last().copied().unwrap_or(0) as f64 / 1e3;
    let first = arrivals.first().copied().unwrap_or(0) as f64 / 1e3;
    println!(
        "  {} ended and {} cut over {OVER:?}; {:?} open on the two nodes; arrivals from {first:.1} \
         to {last:.1} s; reconnection times from {:.1?} to {:.1?}",
        drained[0],
        drained[1],
        open,
        given.iter().min().copied().unwrap_or_default(),
        given.iter().max().copied().unwrap_or_default(),
    );
    let even = CLIENTS as f64 / OVER.as_secs_f64();
    for (what, times) in [("ends", &ends), ("arrivals", &arrivals)] {
        let most = most_in_a_second(times) as f64;
        println!("  {what}: at most {most} in a second, {even} would be even");
        let name = format!("drain_{what}_over_even_rate");
        goal(&name, most / even, Wanted::AtMost(2.0));
    }
    let all = Wanted::AtLeast(CLIENTS as f64);
    goal("drain_ended", drained[0] as f64, all);
    goal("drain_given_a_retry", given.len() as f64, all);
    goal("drain_arrivals", arrivals.len() as f64, all);
    goal("drain_clients_with_every_event", ends.len() as f64, all);
}
