//! A primary that sentinels watch: when they make another one, the nodes go there.

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
    broker::BrokerErrorKind,
};

use nodes::{Client, LIMIT, publish, publish_at_last, try_publish, within};
use redis_server::RedisServer;
use traffic::{Traffic, is_left_alone, says};

const NAME: &str = "My_primary.1";

/// Two servers, of which one follows the other, and three sentinels.
struct Watched {
    primary: RedisServer,
    replica: RedisServer,
    sentinels: Vec<RedisServer>,
}

impl Watched {
    /// Sentinels that replace no primary by themselves. On a busy machine it may be silent for seconds.
    async fn start() -> Self {
        Self::with_time(60_000).await
    }

    /// Sentinels that replace a failed primary after some seconds.
    async fn failing_over() -> Self {
        Self::with_time(3_000).await
    }

    async fn with_time(down_after: u32) -> Self {
        let [primary, replica] = [
            RedisServer::start_persistent().await,
            RedisServer::start_persistent().await,
        ];
        let port = primary.port().to_string();
        for server in [&primary, &replica] {
            let delay = ["CONFIG", "SET", "repl-diskless-sync-delay", "0"];
            let () = server.query(&delay).await;
        }
        let () = replica.query(&["REPLICAOF", "127.0.0.1", &port]).await;
        says(&replica, &["INFO", "replication"], "master_link_status:up").await;
        let config = format!(
            "sentinel monitor {NAME} 127.0.0.1 {port} 2\n\
             sentinel down-after-milliseconds {NAME} {down_after}\n\
             sentinel failover-timeout {NAME} 10000\n"
        );
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(RedisServer::start_sentinel(config.clone()).await);
        }
        let watched = Self {
            primary,
            replica,
            sentinels,
        };
        for sentinel in &watched.sentinels {
            let quorum = ["SENTINEL", "CKQUORUM", NAME];
            says(sentinel, &quorum, "OK 3 usable").await;
            says(sentinel, &["SENTINEL", "REPLICAS", NAME], "\"slave\"").await;
        }
        watched
    }

    fn options(&self) -> RedisOptions {
        RedisOptions::new(format!("redis://{NAME}/")).sentinels(self.urls())
    }

    fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(RedisServer::url).collect()
    }

    async fn log(&self) -> RedisStreams {
        self.options().connect().await.unwrap()
    }

    async fn nodes(&self) -> [Broker; 2] {
        [
            traffic::node(self.log().await),
            traffic::node(self.log().await),
        ]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_primary_is_not_used_after_its_restart() {
    let mut watched = Watched::failing_over().await;
    let traffic = Traffic::start(watched.nodes().await).await;
    watched.primary.kill();
    let time = traffic.goes_on().await;
    println!("went on {time:?} after the kill");

    watched.primary.restart().await;
    says(&watched.primary, &["ROLE"], "slave").await;
    traffic.goes_on().await;
    is_left_alone(&watched.primary).await;
    traffic.end(&watched.replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_primary_is_no_longer_used() {
    let watched = Watched::start().await;
    let traffic = Traffic::start(watched.nodes().await).await;
    let () = watched.sentinels[0]
        .query(&["SENTINEL", "FAILOVER", NAME])
        .await;
    says(&watched.replica, &["ROLE"], "master").await;
    let time = traffic.goes_on().await;
    println!("went on {time:?} after the change");
    // Redis itself forgets what the old one has taken meanwhile.
    is_left_alone(&watched.primary).await;
    traffic.end(&watched.replica).await;
}

#[tokio::test]
async fn old_primary_is_dropped_when_sentinels_name_another() {
    // Nobody cuts its connections.
    let watched = Watched::start().await;
    let [here, there] = watched.nodes().await;
    let mut client = Client::join_now(&there, "a").await;
    publish(&here, "1").await;
    assert_eq!(client.next().await, "1");
    let (port, replica) = (watched.replica.port().to_string(), &watched.replica);
    says(replica, &["XLEN", traffic::LOG], "1").await;
    let () = replica.query(&["REPLICAOF", "NO", "ONE"]).await;
    for sentinel in &watched.sentinels {
        let () = sentinel.query(&["SENTINEL", "REMOVE", NAME]).await;
        let monitor = ["SENTINEL", "MONITOR", NAME, "127.0.0.1", &port, "2"];
        let () = sentinel.query(&monitor).await;
    }
    // An old primary that goes on as if nothing were: both nodes leave it unasked.
    is_left_alone(&watched.primary).await;
    publish_at_last(&here, "2").await;
    client.reaches("2").await;
    let length: u64 = watched.replica.query(&["XLEN", traffic::LOG]).await;
    assert_eq!(length, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_primary_is_replaced() {
    let watched = Watched::failing_over().await;
    // Longer than the failover takes: what is under way is repeated elsewhere.
    let options = watched.options().append_timeout(LIMIT);
    let nodes = [
        Broker::new(options.clone().connect().await.unwrap()),
        Broker::new(options.connect().await.unwrap()),
    ];
    let mut client = Client::join_now(&nodes[1], "a").await;
    publish(&nodes[0], "1").await;
    assert_eq!(client.next().await, "1");
    says(&watched.replica, &["XLEN", traffic::LOG], "1").await;
    watched.primary.freeze();
    publish(&nodes[0], "2").await;
    assert_eq!(client.next().await, "2");

    watched.primary.thaw();
    says(&watched.primary, &["ROLE"], "slave").await;
    publish(&nodes[0], "3").await;
    assert_eq!(client.next().await, "3");
    is_left_alone(&watched.primary).await;
    let length: u64 = watched.replica.query(&["XLEN", traffic::LOG]).await;
    assert_eq!(length, 3);
}

#[tokio::test]
async fn one_sentinel_suffices_and_errors_name_their_cause() {
    let mut watched = Watched::start().await;
    watched.sentinels[0].freeze();
    watched.sentinels[2].kill();
    // The frozen sentinel is not waited for: that would take the connect timeout.
    let time = 2 * LIMIT;
    let options = watched.options().connect_timeout(time).append_timeout(time);
    let broker = Broker::new(options.connect().await.unwrap());
    within("an append", publish(&broker, "1")).await;
    let mut client = Client::join_now(&broker, "a").await;
    publish(&broker, "2").await;
    client.reaches("2").await;

    let why = async |options: RedisOptions| {
        let options = options.connect_timeout(LIMIT).append_timeout(LIMIT);
        let broker = Broker::new(options.connect().await.unwrap());
        let error = try_publish(&broker, "never").await.unwrap_err();
        let kind = BrokerErrorKind::Append(AppendErrorKind::NotSent);
        assert_eq!(error.kind(), kind);
        error.source().unwrap().to_string()
    };
    let unknown = RedisOptions::new("redis://other/").sentinels([watched.sentinels[1].url()]);
    let unknown = why(unknown).await;
    assert!(unknown.contains("No such master"), "{unknown}");
    let away = why(watched.options().sentinels([watched.sentinels[2].url()])).await;
    assert!(away.to_lowercase().contains("refused"), "{away}");

    // One that is a replica by its own word is not taken for the primary.
    let port = watched.replica.port().to_string();
    let monitor = ["SENTINEL", "MONITOR", "wrong", "127.0.0.1", &port, "2"];
    let () = watched.sentinels[1].query(&monitor).await;
    let wrong = RedisOptions::new("redis://wrong/").sentinels([watched.sentinels[1].url()]);
    let wrong = why(wrong).await;
    assert!(wrong.contains("no primary"), "{wrong}");

    // Those who are there already need no sentinel.
    watched.sentinels[1].kill();
    for _ in 0..3 {
        client
            .hears_nothing_but_heartbeats(Duration::from_secs(1))
            .await;
        publish(&broker, "more").await;
        assert_eq!(client.next().await, "more");
    }

    let none: [&str; 0] = [];
    for (options, why) in [
        (
            RedisOptions::new("redis://a/").sentinels(none),
            "no sentinel",
        ),
        (
            RedisOptions::new("redis://a/").sentinels(["http://a"]),
            "URL",
        ),
        (
            RedisOptions::new("unix:/a").sentinels(["redis://a"]),
            "host",
        ),
    ] {
        let error = options.connect().await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
