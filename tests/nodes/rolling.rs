//! Many clients, and nodes that come and go.

use std::{
    sync::{Arc, RwLock},
    time::Duration,
};
use support::nats as nats_server;
use support::redis as redis_server;

use http::Request;
use tokio::time::{Instant, interval, sleep, timeout};
use tower_sse::{
    Broker, Connections, Event, SseLayer, backplane::redis::RedisStreams, broker::Outcome,
    test_util::connection_of,
};

use nats_server::NatsServer;
use redis_server::RedisServer;

/// How long each step may take: generous, because there are many clients, and machines are busy.
const LIMIT: Duration = Duration::from_secs(120);

const TOPICS: usize = 5;

/// A server with its streams, as a load balancer sees it.
#[derive(Clone)]
struct Node {
    broker: Broker,
    connections: Connections,
    layer: SseLayer,
    number: usize,
}

impl Node {
    fn new(broker: Broker, number: usize) -> Self {
        let connections = Connections::new();
        Self {
            broker,
            layer: SseLayer::any_path().registry(&connections),
            connections,
            number,
        }
    }
}

/// The nodes that are up, of which there is always one.
#[derive(Clone, Default)]
struct Balancer(Arc<RwLock<Vec<Node>>>);

impl Balancer {
    fn any(&self) -> Node {
        let nodes = self.0.read().unwrap();
        nodes[fastrand::usize(..nodes.len())].clone()
    }

    fn add(&self, node: Node) {
        self.0.write().unwrap().push(node);
    }

    /// Takes a node away, and ends its streams.
    fn remove(&self, number: usize) {
        let mut nodes = self.0.write().unwrap();
        let at = nodes.iter().position(|node| node.number == number);
        let node = nodes.remove(at.unwrap());
        drop(nodes);
        node.connections.close_where(|_| true);
    }

    fn has(&self, number: usize) -> bool {
        let nodes = self.0.read().unwrap();
        nodes.iter().any(|node| node.number == number)
    }
}

/// Reads its topic to the end, from whichever node there is. Gives what it got, and how often it
/// came back.
async fn client(
    balancer: Balancer,
    topic: String,
    joined: Arc<tokio::sync::Semaphore>,
) -> (Vec<u64>, usize) {
    let mut got = Vec::new();
    let mut id = String::new();
    let mut moves = 0;
    loop {
        let node = balancer.any();
        let mut request = Request::get("/");
        if !id.is_empty() {
            request = request.header("last-event-id", &id);
        }
        let request = request.body(()).unwrap();
        let (sse, events) = connection_of(&node.layer, request).await;
        let mut events = events.time_limit(LIMIT);
        let Ok(subscription) = node.broker.subscribe(&sse, &topic).await else {
            continue; // closed meanwhile
        };
        let outcome = subscription.resolved().await;
        assert_ne!(outcome, Outcome::Gap, "from {id} on node {}", node.number);
        subscription.start();
        drop(sse);
        if !balancer.has(node.number) {
            continue;
        }
        drop(node);
        while let Ok(event) = events.event().await {
            if !event.last_event_id.is_empty() {
                if id.is_empty() {
                    joined.add_permits(1);
                }
                id.clone_from(&event.last_event_id);
            }
            match (&*event.event_type, &*event.data) {
                ("welcome" | "position", _) => {}
                ("message", "end") => return (got, moves),
                ("message", number) => got.push(number.parse().unwrap()),
                other => panic!("{other:?}"),
            }
        }
        moves += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restart_on_redis_is_lossless_for_500_clients() {
    let server = RedisServer::start().await;
    rolling_restart(async || on_redis(&server).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restart_on_jetstream_is_lossless_for_500_clients() {
    let server = NatsServer::start().await;
    let broker = async || {
        // A node refuses appends until it is connected.
        let log = server.log().await;
        let mut connected = log.connected();
        let connected = timeout(LIMIT, connected.wait_for(|it| *it)).await;
        connected.expect("a connection").unwrap();
        Broker::new(log)
    };
    rolling_restart(broker).await;
}

async fn on_redis(server: &RedisServer) -> Broker {
    Broker::new(RedisStreams::connect(server.url()).await.unwrap())
}

async fn rolling_restart(broker: impl AsyncFn() -> Broker) {
    let balancer = Balancer::default();
    for number in 0..2 {
        balancer.add(Node::new(broker().await, number));
    }
    let joined = Arc::new(tokio::sync::Semaphore::new(0));
    let mut clients = Vec::new();
    for number in 0..500 {
        let topic = format!("topic {}", number % TOPICS);
        clients.push(tokio::spawn(client(
            balancer.clone(),
            topic,
            Arc::clone(&joined),
        )));
    }
    let all = timeout(LIMIT, joined.acquire_many(500)).await;
    all.expect("all clients have their places")
        .unwrap()
        .forget();

    let publisher = balancer.clone();
    let publishing = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(10));
        let end = Instant::now() + Duration::from_secs(4);
        let mut number = 0_u64;
        while Instant::now() < end {
            ticks.tick().await;
            let topic = format!("topic {}", number % TOPICS as u64);
            let event = Event::message(number.to_string());
            publisher.any().broker.publish(topic, event).await.unwrap();
            number += 1;
        }
        number
    });
    for number in 0..4 {
        sleep(Duration::from_millis(500)).await;
        balancer.remove(number);
        sleep(Duration::from_millis(300)).await;
        balancer.add(Node::new(broker().await, number + 2));
    }
    let published = timeout(LIMIT, publishing).await.expect("in time").unwrap();
    for topic in 0..TOPICS {
        let broker = balancer.any().broker;
        let topic = format!("topic {topic}");
        broker.publish(topic, Event::message("end")).await.unwrap();
    }

    let mut moves = 0;
    for (number, client) in clients.into_iter().enumerate() {
        let (got, times) = timeout(LIMIT, client).await.expect("in time").unwrap();
        let topic = (number % TOPICS) as u64;
        let expected: Vec<_> = (topic..published).step_by(TOPICS).collect();
        assert_eq!(got, expected, "client {number}");
        moves += times;
    }
    assert!(moves >= 500, "{moves} moves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_subscribers_share_one_lasting_redis_connection() {
    let server = RedisServer::start().await;
    let node = Node::new(on_redis(&server).await, 0);
    let joined = Arc::new(tokio::sync::Semaphore::new(0));
    let balancer = Balancer::default();
    balancer.add(node.clone());
    let mut clients = Vec::new();
    for _ in 0..5000 {
        let client = client(balancer.clone(), "a".to_owned(), Arc::clone(&joined));
        clients.push(tokio::spawn(client));
    }
    let all = timeout(LIMIT, joined.acquire_many(5000)).await;
    all.expect("all clients have their places")
        .unwrap()
        .forget();
    let until = Instant::now() + LIMIT;
    loop {
        let list: String = server.query(&["CLIENT", "LIST"]).await;
        let count = |name| list.lines().filter(|line| line.contains(name)).count();
        if [
            count("name=tower-sse-read "),
            count("name=tower-sse-append "),
        ] == [1, 1]
        {
            break;
        }
        assert!(Instant::now() < until, "{list}");
        sleep(Duration::from_millis(20)).await;
    }

    let made = async || {
        let stats: String = server.query(&["INFO", "stats"]).await;
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().parse::<u64>().unwrap()
    };
    // One may break on a busy machine, but not again and again.
    let mut lasts = false;
    for _ in 0..5 {
        let before = made().await;
        sleep(Duration::from_secs(4)).await;
        lasts = made().await == before + 1; // but the one that asks
        if lasts {
            break;
        }
    }
    assert!(lasts, "a connection is made every few seconds");

    node.broker
        .publish("a", Event::message("end"))
        .await
        .unwrap();
    for client in clients {
        timeout(LIMIT, client).await.expect("in time").unwrap();
    }
    // With the last handle the node's connections are gone.
    balancer.remove(0);
    drop(node);
    let until = Instant::now() + LIMIT;
    loop {
        let list: String = server.query(&["CLIENT", "LIST"]).await;
        if !list.contains("name=tower-sse") {
            break;
        }
        assert!(Instant::now() < until, "{list}");
        sleep(Duration::from_millis(20)).await;
    }
}
