//! Events that go on being published while something happens to the log's server, and clients of two
//! nodes that note what they get.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tower_sse::{Broker, backplane::Backplane, broker::History};

use super::{
    nodes::{self, Client, try_publish, within},
    redis::RedisServer,
};

pub const LOG: &str = "{tower-sse}:log";

/// How many appends may be under way.
const UNDER_WAY: usize = 10_000;

/// A node with a long history, so that a client that is not read for a while on a busy machine gets no
/// gap for that.
pub fn node(log: impl Backplane) -> Broker {
    let history = History::default().events(100_000).bytes(64 << 20);
    Broker::builder().history(history).build(log)
}

pub struct Traffic {
    nodes: [Broker; 2],
    is_over: Arc<AtomicBool>,
    /// The number of the event that is published last.
    last: Arc<AtomicU64>,
    publishing: JoinHandle<()>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<Vec<String>>>,
    /// The highest number that each client has got.
    latest: [Arc<AtomicU64>; 2],
}

impl Traffic {
    /// Of a thousand events a second, or as many as a busy machine can publish, on an empty log.
    pub async fn start(nodes: [Broker; 2]) -> Self {
        let latest: [Arc<AtomicU64>; 2] = Default::default();
        let mut clients = Vec::new();
        for (node, latest) in nodes.iter().zip(&latest) {
            let client = Client::join_now(node, "a").await;
            clients.push(tokio::spawn(note(client, Arc::clone(latest))));
        }
        let (is_over, last) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let acknowledged = Arc::<Mutex<Vec<String>>>::default();
        let publishing = tokio::spawn(publish(
            nodes[0].clone(),
            Arc::clone(&is_over),
            Arc::clone(&last),
            Arc::clone(&acknowledged),
        ));
        let traffic = Self {
            nodes,
            is_over,
            last,
            publishing,
            acknowledged,
            clients,
            latest,
        };
        traffic.goes_on().await;
        traffic
    }

    /// Waits until both clients have got something that was published after this call, and tells how
    /// long that took.
    pub async fn goes_on(&self) -> Duration {
        let (start, next) = (Instant::now(), self.last.load(Ordering::SeqCst) + 1);
        within("events", async {
            for latest in &self.latest {
                while latest.load(Ordering::SeqCst) < next {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        })
        .await;
        start.elapsed()
    }

    /// Ends, and checks what the clients have got against the log of this server: each event that it
    /// has, once and in its order; or they were told of a gap. Gives how many gaps there were.
    pub async fn end(self, server: &RedisServer) -> usize {
        self.is_over.store(true, Ordering::SeqCst);
        within("the publisher", self.publishing).await.unwrap();
        // One alone could be a part of what a client that is still to be told has missed.
        let mut clients = self.clients;
        let mut ends = 0;
        within("the clients", async {
            while !clients.iter().all(JoinHandle::is_finished) {
                ends += 1;
                nodes::publish_at_last(&self.nodes[0], &format!("end {ends}")).await;
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        let log = texts(server).await;
        let places: HashMap<_, _> = log.iter().zip(0..).collect();
        let acknowledged = std::mem::take(&mut *self.acknowledged.lock().unwrap());
        let mut gaps = 0;
        for client in &mut clients {
            let seen = client.await.unwrap();
            let log = &log[..=places[seen.last().unwrap()]];
            let found: Vec<usize> = seen
                .iter()
                .filter_map(|it| places.get(it).copied())
                .collect();
            assert!(found.is_sorted_by(|a, b| a < b), "twice, or out of order");
            let Some(last) = seen.iter().rposition(|it| it.starts_with("gap")) else {
                let other = seen.iter().zip(log).find(|(seen, log)| seen != log);
                assert!(seen == log, "nobody was told: {other:?}");
                let missing = acknowledged.iter().find(|it| !places.contains_key(it));
                assert_eq!(missing, None, "acknowledged, and nobody was told");
                continue;
            };
            assert!(log.ends_with(&seen[last + 1..]), "something is missing");
            gaps += 1;
        }
        println!("{} acknowledged, {gaps} gaps", acknowledged.len());
        gaps
    }
}

async fn note(mut client: Client, latest: Arc<AtomicU64>) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let text = client.next().await;
        if let Ok(number) = text.parse() {
            latest.fetch_max(number, Ordering::SeqCst);
        }
        let is_last = text.starts_with("end");
        if !text.starts_with("position") {
            seen.push(text);
        }
        if is_last {
            return seen;
        }
    }
}

async fn publish(
    node: Broker,
    is_over: Arc<AtomicBool>,
    last: Arc<AtomicU64>,
    acknowledged: Arc<Mutex<Vec<String>>>,
) {
    let mut ticks = interval(Duration::from_millis(5));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let under_way = Arc::new(Semaphore::new(UNDER_WAY));
    let mut publishing = JoinSet::new();
    while !is_over.load(Ordering::SeqCst) {
        ticks.tick().await;
        for _ in 0..5 {
            let permit = Arc::clone(&under_way).acquire_owned().await.unwrap();
            let number = last.fetch_add(1, Ordering::SeqCst) + 1;
            let (node, acknowledged) = (node.clone(), Arc::clone(&acknowledged));
            publishing.spawn(async move {
                let _permit = permit;
                let text = number.to_string();
                if try_publish(&node, &text).await.is_ok() {
                    acknowledged.lock().unwrap().push(text);
                }
            });
        }
        while publishing.try_join_next().is_some() {}
    }
    publishing.join_all().await;
}

/// The texts of all events in the log, in order.
async fn texts(server: &RedisServer) -> Vec<String> {
    let mut range = redis::cmd("XRANGE");
    range.arg(LOG).arg("-").arg("+");
    let mut connection = server.connection().await.unwrap();
    let entries: Vec<(String, HashMap<String, Vec<u8>>)> =
        range.query_async(&mut connection).await.unwrap();
    let text = |fields: &HashMap<String, Vec<u8>>| {
        let record = String::from_utf8_lossy(&fields["r"]);
        let text = record.rsplit_once("data: ").unwrap().1;
        text.trim_end().to_owned()
    };
    entries.iter().map(|(_, fields)| text(fields)).collect()
}

/// Waits until this server has this number of connections of nodes. Those that only served discovery
/// end soon, but not at once.
pub async fn has_connections(server: &RedisServer, count: usize) {
    within(&format!("{count} connections"), async {
        loop {
            let list: String = server.query(&["CLIENT", "LIST"]).await;
            if list.matches("name=tower-sse").count() == count {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Waits until the nodes have left this server.
pub async fn is_left_alone(server: &RedisServer) {
    has_connections(server, 0).await;
}

/// Waits until a command of this server is answered so.
pub async fn says(server: &RedisServer, command: &[&str], wanted: &str) {
    within(wanted, async {
        loop {
            let answer = server.try_query::<redis::Value>(command).await;
            if format!("{answer:?}").contains(wanted) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
