//! One world: its nodes, the log that they share, and everything that happens to them.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use tokio::{
    runtime,
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tower_sse::{
    Broker, Connections, SseLayer,
    broker::{History, SlowConsumer},
};

use crate::{
    accidents,
    actors::{Actor, Actors},
    client,
    link::{NodeLog, SharedLog},
    log::{Log, Replica},
    oracle::Oracle,
    plan::Plan,
    publisher,
    trace::Trace,
    violation::Violation,
};

/// The time that a world has to settle once nothing fails any more. It is shorter than the interval
/// of heartbeats, which would hide a lost wake-up.
const SETTLING: Duration = Duration::from_secs(12);

/// The interval at which the brokers are checked.
const WATCHED: Duration = Duration::from_millis(500);

/// The longest time in which a broker reads its log again: its longest pause, and the slowest link.
const CATCHING_UP: Duration = Duration::from_secs(4);

/// The time that the last events of a world have.
const LAST: Duration = Duration::from_secs(2);

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) log: SharedLog,
    /// Locked before the log, and never while the library is called.
    pub(crate) oracle: Mutex<Oracle>,
    pub(crate) trace: Arc<Trace>,
    nodes: Vec<Mutex<Node>>,
    /// When the accidents are over.
    pub(crate) calms_at: Instant,
    pub(crate) ends_at: Instant,
    uids: AtomicUsize,
}

/// A server. A restart replaces it by another one.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) broker: Broker,
    pub(crate) layer: SseLayer,
    pub(crate) connections: Connections,
    /// The broker's number among the log's readers.
    pub(crate) reader: usize,
    /// Set when the node is killed.
    pub(crate) killed: watch::Sender<bool>,
}

/// The result of a world.
pub(crate) struct Report {
    pub(crate) found: Vec<(Violation, String)>,
    pub(crate) trace: Vec<String>,
}

/// Runs the world of a seed.
pub(crate) fn run(seed: u64, keeps_trace: bool) -> Report {
    // The library draws from the generator of the thread.
    fastrand::seed(seed);
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O can be built");
    runtime.block_on(async {
        let world = Arc::new(World::new(seed, Plan::new(seed), keeps_trace));
        world.trace.note(format!("seed {seed}: {:?}", world.plan));
        Actors::new(world.actors(seed)).await;
        Report {
            found: std::mem::take(&mut world.oracle.lock().unwrap().found),
            trace: world.trace.lines(),
        }
    })
}

impl World {
    fn new(seed: u64, plan: Plan, keeps_trace: bool) -> Self {
        let trace = Arc::new(Trace::new(keeps_trace));
        let log = Log::new(seed, plan.delays.clone(), plan.retained);
        let log = Arc::new(Mutex::new(log));
        let nodes = (0..plan.nodes).map(|node| Mutex::new(Node::start(&plan, &log, &trace, node)));
        let calms_at = Instant::now() + plan.active;
        Self {
            nodes: nodes.collect(),
            oracle: Mutex::new(Oracle::new(&plan, &log, &trace)),
            log,
            trace,
            calms_at,
            ends_at: calms_at + SETTLING + 2 * LAST,
            uids: AtomicUsize::new(0),
            plan,
        }
    }

    fn actors(self: &Arc<Self>, seed: u64) -> Vec<Actor> {
        let mut rng = Rng::with_seed(seed ^ 0x776f_726c_6421);
        let mut actors: Vec<Actor> = vec![
            Box::pin(Arc::clone(self).end()),
            Box::pin(Arc::clone(self).watch()),
            Box::pin(accidents::happen(Arc::clone(self), rng.fork())),
        ];
        for _ in 0..self.plan.publishers {
            actors.push(Box::pin(publisher::publish(Arc::clone(self), rng.fork())));
        }
        for number in 0..self.plan.clients {
            actors.push(Box::pin(client::live(Arc::clone(self), number, rng.fork())));
        }
        actors
    }

    /// Checks all clients once the world has settled, and after one more event for each topic.
    async fn end(self: Arc<Self>) {
        sleep_until(self.calms_at + SETTLING).await;
        self.trace.note("--- settled");
        self.oracle.lock().unwrap().settled();
        for topic in 0..self.plan.topics {
            publisher::publish_one(&self, topic % self.plan.nodes, topic, "").await;
        }
        sleep(LAST).await;
        self.trace.note("--- end");
        self.oracle.lock().unwrap().settled();
    }

    /// Checks that no broker stops reading.
    async fn watch(self: Arc<Self>) {
        let mut reported = BTreeSet::new();
        while Instant::now() < self.ends_at {
            sleep(WATCHED).await;
            for node in 0..self.plan.nodes {
                let reader = self.node(node).reader;
                let behind = self
                    .log
                    .lock()
                    .unwrap()
                    .is_behind(node, reader, CATCHING_UP);
                if let Some(entry) = behind.filter(|_| reported.insert(reader)) {
                    let mut oracle = self.oracle.lock().unwrap();
                    let what = format!("node {node} (reader {reader}): {}", oracle.names(&[entry]));
                    oracle.violate(Violation::Unread, what);
                }
            }
        }
    }

    pub(crate) fn node(&self, node: usize) -> Node {
        self.nodes[node].lock().unwrap().clone()
    }

    /// Replaces a node by a new one on the same log.
    pub(crate) fn restart(&self, node: usize) {
        let new = Node::start(&self.plan, &self.log, &self.trace, node);
        let old = std::mem::replace(&mut *self.nodes[node].lock().unwrap(), new);
        old.killed.send_replace(true);
    }

    pub(crate) fn is_calm(&self) -> bool {
        Instant::now() >= self.calms_at
    }

    pub(crate) fn next_uid(&self) -> usize {
        self.uids.fetch_add(1, SeqCst)
    }
}

impl Node {
    fn start(plan: &Plan, log: &SharedLog, trace: &Arc<Trace>, node: usize) -> Self {
        let reader = {
            let mut log = log.lock().unwrap();
            log.readers.push(Replica::default());
            log.readers.len() - 1
        };
        let slow_consumer = if plan.disconnects {
            SlowConsumer::Disconnect
        } else {
            SlowConsumer::Announce
        };
        let mut history = History::default().events(plan.history);
        if let Some(age) = plan.age {
            history = history.age(age);
        }
        let mut builder = Broker::builder()
            .history(history)
            .window(plan.window)
            .slow_consumer(slow_consumer);
        if let Some(bytes) = plan.max_bytes {
            builder = builder.max_bytes(bytes);
        }
        let broker = builder.build(NodeLog {
            log: Arc::clone(log),
            node,
            reader,
            may_be_rewritten: plan.may_be_rewritten,
            trace: Arc::clone(trace),
        });
        let connections = Connections::new();
        let mut layer = SseLayer::any_path().registry(&connections);
        if let Some(time) = plan.stall_timeout {
            layer = layer.stall_timeout(time);
        }
        Self {
            broker,
            layer,
            connections,
            reader,
            killed: watch::Sender::new(false),
        }
    }
}
