//! A cluster of Redis servers: the nodes find the one that has the slot of the log, and follow it.

use std::{error::Error, time::Duration};
use support::nodes;
use support::redis as redis_server;
use support::traffic;

use tower_sse::{
    Broker,
    backplane::{
        AppendErrorKind,
        redis::{RedisOptions, RedisStreams},
    },
    broker::{BrokerErrorKind, Outcome},
};

use nodes::{Client, LIMIT, publish, publish_at_last, try_publish, within};
use redis_server::{RedisServer, free_port};
use tokio::time::sleep;
use traffic::{LOG, Traffic, has_connections, is_left_alone, says};

const STATE: &str = "{tower-sse}:state";

/// How soon nodes have to follow a moved slot or a demoted primary. An idle machine needs less than
/// three seconds; a busy one has five times as long.
const FOLLOWED: Duration = Duration::from_secs(15);

/// Three primaries, each with a third of the slots, and a replica of the one that has the log's.
struct Cluster {
    servers: Vec<RedisServer>,
    /// Which of them has the slot.
    owner: usize,
}

impl Cluster {
    /// A cluster that replaces no server by itself. On a busy machine each may be silent for seconds.
    async fn start() -> Self {
        Self::with_node_timeout("20000").await
    }

    /// A cluster that replaces a failed server after some seconds.
    async fn failing_over() -> Self {
        Self::with_node_timeout("4000").await
    }

    async fn with_node_timeout(milliseconds: &str) -> Self {
        let mut servers = Vec::new();
        let mut buses = Vec::new();
        for _ in 0..4 {
            let bus = free_port().to_string();
            #[rustfmt::skip]
            let options = [
                "--cluster-enabled", "yes", "--cluster-port", &bus,
                "--cluster-node-timeout", milliseconds,
                "--save", "", "--appendonly", "yes", "--appendfsync", "no",
                "--repl-diskless-sync-delay", "0",
            ];
            servers.push(RedisServer::start_with(&options).await);
            buses.push(bus);
        }
        let slot: u64 = servers[0].query(&["CLUSTER", "KEYSLOT", LOG]).await;
        let owner = (slot / 5462) as usize;
        for (number, server) in servers.iter().enumerate() {
            let epoch = (number + 1).to_string();
            let () = server.query(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await;
            let (first, last) = (number * 5462, (number * 5462 + 5461).min(16383));
            if number < 3 {
                let (first, last) = (first.to_string(), last.to_string());
                let () = server
                    .query(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])
                    .await;
            }
            let port = servers[0].port().to_string();
            let () = server
                .query(&["CLUSTER", "MEET", "127.0.0.1", &port, &buses[0]])
                .await;
        }
        for server in &servers {
            says(server, &["CLUSTER", "INFO"], "cluster_known_nodes:4").await;
            says(server, &["CLUSTER", "INFO"], "cluster_state:ok").await;
        }
        let cluster = Self { servers, owner };
        let id = cluster.id(owner).await;
        let () = cluster
            .replica()
            .query(&["CLUSTER", "REPLICATE", &id])
            .await;
        says(
            cluster.replica(),
            &["INFO", "replication"],
            "master_link_status:up",
        )
        .await;
        for server in &cluster.servers {
            says(server, &["CLUSTER", "NODES"], &format!("slave {id}")).await;
        }
        cluster
    }

    fn owner(&self) -> &RedisServer {
        &self.servers[self.owner]
    }

    fn replica(&self) -> &RedisServer {
        &self.servers[3]
    }

    /// A primary that has not the slot.
    fn other(&self) -> &RedisServer {
        &self.servers[(self.owner + 1) % 3]
    }

    async fn id(&self, server: usize) -> String {
        self.servers[server].query(&["CLUSTER", "MYID"]).await
    }

    /// By one that has not the slot, and another one.
    fn options(&self) -> RedisOptions {
        let third = &self.servers[(self.owner + 2) % 3];
        RedisOptions::new(self.other().url()).cluster([third.url()])
    }

    async fn node(&self) -> Broker {
        traffic::node(self.options().connect().await.unwrap())
    }

    async fn nodes(&self) -> [Broker; 2] {
        [self.node().await, self.node().await]
    }

    /// Promotes the replica. It gives up after five seconds if the machine is too busy, so the command
    /// is repeated.
    async fn fail_over(&self) {
        within("the replica to take over", async {
            loop {
                let _ = self
                    .replica()
                    .try_query::<()>(&["CLUSTER", "FAILOVER"])
                    .await;
                for _ in 0..100 {
                    let role = self.replica().query::<redis::Value>(&["ROLE"]).await;
                    if format!("{role:?}").contains("master") {
                        return;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
        })
        .await;
    }

    /// Moves the slot, with its keys, to another primary; the keys first, as far as asked.
    async fn move_slot(&self, pause: impl AsyncFnOnce()) {
        let slot: u64 = self.owner().query(&["CLUSTER", "KEYSLOT", LOG]).await;
        let slot = slot.to_string();
        let from = self.id(self.owner).await;
        let to = self.id((self.owner + 1) % 3).await;
        let port = self.other().port().to_string();
        let importing = ["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from];
        let () = self.other().query(&importing).await;
        let migrating = ["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to];
        let () = self.owner().query(&migrating).await;
        for key in [STATE, LOG] {
            let migrate = ["MIGRATE", "127.0.0.1", &port, key, "0", "10000"];
            let () = self.owner().query(&migrate).await;
        }
        pause().await;
        for server in [self.other(), self.owner()] {
            let () = server
                .query(&["CLUSTER", "SETSLOT", &slot, "NODE", &to])
                .await;
        }
    }
}

#[tokio::test]
async fn slot_owner_is_found_through_any_server() {
    let cluster = Cluster::start().await;
    let [here, there] = cluster.nodes().await;
    let mut client = Client::join_now(&there, "a").await;
    let mut last = String::new();
    for text in ["1", "2", "3"] {
        last = publish(&here, text).await.to_string();
        assert_eq!(client.next().await, text);
    }
    assert_eq!(last, client.id());
    assert_eq!(cluster.owner().query::<u64>(&["XLEN", LOG]).await, 3);
    // An append and a read for each, and nothing is left of asking.
    has_connections(cluster.owner(), 4).await;
    for other in [cluster.other(), cluster.replica()] {
        is_left_alone(other).await;
    }
    // Also by the replica alone, and by one that is not there and one that is.
    let away = format!("redis://127.0.0.1:{}", free_port());
    for options in [
        RedisOptions::new(cluster.replica().url()).cluster([away.clone()]),
        RedisOptions::new(away).cluster([cluster.other().url()]),
    ] {
        let node = Broker::new(options.connect().await.unwrap());
        let back = Client::join(&node, "a", Some(&client.id())).await;
        assert_eq!(back.outcome, Outcome::Pending);
        publish(&node, "more").await;
        assert_eq!(client.next().await, "more");
    }

    // One that is not asked for others goes nowhere, and says why.
    let alone = Broker::new(RedisStreams::connect(cluster.other().url()).await.unwrap());
    let error = try_publish(&alone, "never").await.unwrap_err();
    let kind = BrokerErrorKind::Append(AppendErrorKind::NotSent);
    assert_eq!(error.kind(), kind);
    let mut cause = error.source();
    let mut why = String::new();
    while let Some(error) = cause {
        why += &error.to_string();
        cause = error.source();
    }
    assert!(why.contains("Moved"), "{why}");
}

#[tokio::test]
async fn server_without_cluster_support_is_reported() {
    let server = RedisServer::start().await;
    let none: [&str; 0] = [];
    let options = RedisOptions::new(server.url()).cluster(none);
    let broker = Broker::new(options.connect().await.unwrap());
    let error = try_publish(&broker, "never").await.unwrap_err();
    let kind = BrokerErrorKind::Append(AppendErrorKind::NotSent);
    assert_eq!(error.kind(), kind);
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("cluster support disabled"), "{cause}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_moved_under_load_is_followed_without_a_gap() {
    let cluster = Cluster::start().await;
    let traffic = Traffic::start(cluster.nodes().await).await;
    cluster.move_slot(async || {}).await;
    let time = traffic.goes_on().await;
    println!("went on {time:?} after the move");
    assert!(time < FOLLOWED, "{time:?}");
    is_left_alone(cluster.owner()).await;
    let gaps = traffic.end(cluster.other()).await;
    assert_eq!(gaps, 0);
}

#[tokio::test]
async fn migrating_slot_delays_appends_without_a_new_log() {
    let cluster = Cluster::start().await;
    let [here, there] = cluster.nodes().await;
    let mut client = Client::join_now(&there, "a").await;
    publish(&here, "1").await;
    assert_eq!(client.next().await, "1");
    let short = cluster.options().append_timeout(Duration::from_secs(1));
    let hasty = Broker::new(short.connect().await.unwrap());
    publish_at_last(&hasty, "hasty").await;
    publish(&here, "before").await;
    client.reaches("before").await;
    let patient = cluster.options().append_timeout(LIMIT);
    let patient = Broker::new(patient.connect().await.unwrap());
    publish(&patient, "patient").await;
    client.reaches("patient").await;
    let mut waiting = None;
    cluster
        .move_slot(async || {
            waiting = Some(tokio::spawn(async move { publish(&patient, "2").await }));
            let time = Duration::from_secs(2);
            client.hears_nothing_but_heartbeats(time).await;
            // The servers have answered all along that they have not stored it. If the time limit ends
            // before the last of these answers, the outcome is not known.
            let not_sent = BrokerErrorKind::Append(AppendErrorKind::NotSent);
            let maybe_sent = BrokerErrorKind::Append(AppendErrorKind::MaybeSent);
            within("a try that was answered", async {
                loop {
                    let error = try_publish(&hasty, "never").await.unwrap_err();
                    if error.kind() == not_sent {
                        return;
                    }
                    assert_eq!(error.kind(), maybe_sent, "{error:?}");
                }
            })
            .await;
        })
        .await;
    waiting.unwrap().await.unwrap();
    assert_eq!(client.next().await, "2");
    publish(&here, "3").await;
    assert_eq!(client.next().await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_failover_is_followed_without_a_gap() {
    let cluster = Cluster::start().await;
    let traffic = Traffic::start(cluster.nodes().await).await;
    cluster.fail_over().await;
    let time = traffic.goes_on().await;
    println!("went on {time:?} after the change");
    assert!(time < FOLLOWED, "{time:?}");
    is_left_alone(cluster.owner()).await;
    let gaps = traffic.end(cluster.replica()).await;
    assert_eq!(gaps, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_primary_is_replaced_by_its_replica() {
    let mut cluster = Cluster::failing_over().await;
    let traffic = Traffic::start(cluster.nodes().await).await;
    let owner = cluster.owner;
    cluster.servers[owner].kill();
    let time = traffic.goes_on().await;
    println!("went on {time:?} after the kill");
    cluster.servers[owner].restart().await;
    says(cluster.owner(), &["ROLE"], "slave").await;
    traffic.goes_on().await;
    is_left_alone(cluster.owner()).await;
    traffic.end(cluster.replica()).await;
}

#[tokio::test]
async fn frozen_primary_is_replaced() {
    let cluster = Cluster::failing_over().await;
    let options = cluster.options().append_timeout(LIMIT);
    let [here, there] = [
        Broker::new(options.clone().connect().await.unwrap()),
        Broker::new(options.connect().await.unwrap()),
    ];
    let mut client = Client::join_now(&there, "a").await;
    publish(&here, "1").await;
    assert_eq!(client.next().await, "1");
    says(cluster.replica(), &["INFO", "keyspace"], "keys=2").await;
    cluster.owner().freeze();
    publish(&here, "2").await;
    assert_eq!(client.next().await, "2");
    cluster.owner().thaw();
    publish_at_last(&here, "3").await;
    assert_eq!(client.next().await, "3");
    is_left_alone(cluster.owner()).await;
}
