//! A Redis server that has lost, dropped or forgotten what it had: clients are told, soon, and the
//! nodes go on.

use std::time::Duration;
use support::nodes;
use support::processor;
use support::proxy;
use support::redis as redis_server;

use tokio::time::{Instant, sleep};
use tower_sse::{
    Broker,
    backplane::redis::RedisStreams,
    broker::{BrokerErrorKind, Outcome},
};

use nodes::{Client, LIMIT, publish, publish_at_last, try_publish};
use processor::is_at_rest;
use proxy::{Proxy, Way};
use redis_server::RedisServer;

const LOG: &str = "{tower-sse}:log";
const STATE: &str = "{tower-sse}:state";

async fn node(port: u16) -> Broker {
    let url = format!("redis://127.0.0.1:{port}/");
    Broker::new(RedisStreams::connect(url).await.unwrap())
}

/// Two nodes, each with a client that has had two events.
struct Scene {
    nodes: [Broker; 2],
    clients: [Client; 2],
}

impl Scene {
    async fn on(server: &RedisServer) -> Self {
        let nodes = [node(server.port()).await, node(server.port()).await];
        let mut clients = [
            Client::join_now(&nodes[0], "a").await,
            Client::join_now(&nodes[1], "a").await,
        ];
        for text in ["1", "2"] {
            publish(&nodes[0], text).await;
        }
        for client in &mut clients {
            assert_eq!(client.messages(2).await, ["1", "2"]);
        }
        Self { nodes, clients }
    }

    /// All clients are told in time; so is one that comes back; and then everything goes on.
    async fn goes_on_after_a_gap(mut self) {
        let known = self.clients[0].id();
        let start = Instant::now();
        for client in &mut self.clients {
            client.is_told().await;
        }
        assert!(start.elapsed() < nodes::TOLD, "{:?}", start.elapsed());
        for (number, node) in self.nodes.iter().enumerate() {
            publish_at_last(node, &format!("from {number}")).await;
        }
        for client in &mut self.clients {
            client.reaches("from 0").await;
            assert_eq!(client.next().await, "from 1");
        }
        is_at_rest().await;
        for node in &self.nodes {
            let mut back = Client::join(node, "a", Some(&known)).await;
            assert_eq!(back.outcome, Outcome::Gap);
            back.is_told().await;
        }
        // What is new is resumed from.
        let mut back = Client::join(&self.nodes[1], "a", Some(&self.clients[0].id())).await;
        assert_eq!(back.outcome, Outcome::Exact);
        publish(&self.nodes[0], "end").await;
        assert_eq!(back.next().await, "end");
    }
}

#[tokio::test]
async fn restart_without_persistence_is_a_gap() {
    let mut server = RedisServer::start().await;
    let scene = Scene::on(&server).await;
    server.kill();
    sleep(Duration::from_millis(500)).await;
    server.restart().await;
    scene.goes_on_after_a_gap().await;
}

#[tokio::test]
async fn flushed_server_is_a_gap() {
    let server = RedisServer::start().await;
    let scene = Scene::on(&server).await;
    let () = server.query(&["FLUSHALL"]).await;
    scene.goes_on_after_a_gap().await;
}

#[tokio::test]
async fn flush_followed_by_more_records_is_a_gap() {
    let server = RedisServer::start().await;
    let scene = Scene::on(&server).await;
    let () = server.query(&["FLUSHALL"]).await;
    for number in 0..10 {
        publish(&scene.nodes[0], &number.to_string()).await;
    }
    scene.goes_on_after_a_gap().await;
}

#[tokio::test]
async fn deleted_stream_key_is_a_gap() {
    let server = RedisServer::start().await;
    let scene = Scene::on(&server).await;
    let () = server.query(&["DEL", LOG]).await;
    scene.goes_on_after_a_gap().await;
}

#[tokio::test]
async fn deleted_state_key_is_a_gap() {
    let server = RedisServer::start().await;
    let scene = Scene::on(&server).await;
    let () = server.query(&["DEL", STATE]).await;
    scene.goes_on_after_a_gap().await;
}

#[tokio::test]
async fn key_replaced_by_a_string_is_a_gap_until_deleted() {
    for key in [LOG, STATE] {
        let server = RedisServer::start().await;
        let mut scene = Scene::on(&server).await;
        let () = server.query(&["SET", key, "something else"]).await;
        for client in &mut scene.clients {
            client.is_told().await;
        }
        let error = try_publish(&scene.nodes[0], "never").await.unwrap_err();
        assert!(matches!(error.kind(), BrokerErrorKind::Append(_)));
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let cause = cause.unwrap_or_default();
        assert!(cause.contains("WRONGTYPE"), "{cause}");
        // The nodes try again, and not too often; nobody is told twice.
        let (before, start) = (total(&server).await, Instant::now());
        let client = &mut scene.clients[0];
        client
            .hears_nothing_but_heartbeats(Duration::from_secs(3))
            .await;
        let commands = total(&server).await - before;
        let time = start.elapsed();
        assert!(commands < 33 * time.as_secs(), "{commands} in {time:?}");
        is_at_rest().await;
        let () = server.query(&["DEL", key]).await;
        scene.goes_on_after_a_gap().await;
    }
}

async fn total(server: &RedisServer) -> u64 {
    server.calls().await.iter().map(|(_, calls)| calls).sum()
}

#[tokio::test]
async fn log_trimmed_past_a_disconnected_node_is_a_gap() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(Way::To(server.port())).await;
    let (here, cut_off) = (node(server.port()).await, node(proxy.port()).await);
    let mut near = Client::join_now(&here, "a").await;
    let mut client = Client::join_now(&cut_off, "a").await;
    publish(&here, "1").await;
    assert_eq!(client.next().await, "1");
    let known = client.id();
    proxy.set(Way::Cut);
    for number in 2..300 {
        publish(&here, &number.to_string()).await;
    }
    near.reaches("299").await;
    let () = server.query(&["XTRIM", LOG, "MAXLEN", "0"]).await;
    proxy.set(Way::To(server.port()));
    // Nothing more need come for the loss to be noticed.
    client.is_told().await;
    publish(&here, "end").await;
    assert_eq!(client.next().await, "end");
    // One that was not cut off misses nothing, as it has had everything.
    let back = Client::join(&here, "a", Some(&known)).await;
    assert_eq!(back.outcome, Outcome::Exact);
    let back = Client::join(&cut_off, "a", Some(&known)).await;
    assert_eq!(back.outcome, Outcome::Gap);
    // A node that starts knows what it cannot know.
    let starting = node(server.port()).await;
    let mut back = Client::join(&starting, "a", Some(&known)).await;
    back.is_told().await;
}

#[tokio::test]
async fn log_trimmed_after_reading_causes_no_gap() {
    let server = RedisServer::start().await;
    let mut scene = Scene::on(&server).await;
    let () = server.query(&["XTRIM", LOG, "MAXLEN", "0"]).await;
    let [one, other] = &mut scene.clients;
    let time = Duration::from_secs(3);
    tokio::join!(
        one.hears_nothing_but_heartbeats(time),
        other.hears_nothing_but_heartbeats(time)
    );
    publish(&scene.nodes[1], "3").await;
    assert_eq!(one.next().await, "3");
    assert_eq!(other.next().await, "3");
}

/// What clients of two nodes get when a replica without the last records is promoted, and others are
/// written at their places: as many as were forgotten, fewer, or more.
async fn failover(forgotten: usize, written: usize) {
    let primary = RedisServer::start().await;
    let replica = RedisServer::start().await;
    let proxy = Proxy::start(Way::To(primary.port())).await;
    let nodes = [node(proxy.port()).await, node(proxy.port()).await];
    let mut clients = Vec::new();
    for node in &nodes {
        clients.push(Client::join_now(node, "a").await);
    }
    publish(&nodes[0], "kept").await;
    let port = primary.port().to_string();
    let () = replica.query(&["REPLICAOF", "127.0.0.1", &port]).await;
    let until = Instant::now() + LIMIT;
    while replica.query::<u64>(&["XLEN", LOG]).await == 0 {
        assert!(Instant::now() < until, "the replica does not follow");
        sleep(Duration::from_millis(20)).await;
    }
    let () = replica.query(&["REPLICAOF", "NO", "ONE"]).await;
    let mut ids = Vec::new();
    for number in 0..forgotten {
        publish(&nodes[0], &format!("forgotten {number}")).await;
    }
    for client in &mut clients {
        assert_eq!(client.next().await, "kept");
        ids.push(client.id());
        for number in 0..forgotten {
            assert_eq!(client.next().await, format!("forgotten {number}"));
        }
        ids.push(client.id());
    }
    proxy.set(Way::To(replica.port()));
    // By a node that has seen nothing of it, so that it is there before the others look.
    let other = node(replica.port()).await;
    for number in 0..written {
        publish(&other, &format!("other {number}")).await;
    }
    for client in &mut clients {
        client.is_told().await;
    }
    publish_at_last(&nodes[0], "end").await;
    for client in &mut clients {
        // Nothing comes a second time, and what came while nobody was told may be missed.
        loop {
            let text = client.next().await;
            assert!(text.starts_with("other") || text == "end", "{text}");
            if text == "end" {
                break;
            }
        }
    }
    for node in nodes.iter().chain([&other]) {
        for pair in ids.chunks(2) {
            let mut back = Client::join(node, "a", Some(&pair[1])).await;
            back.is_told().await;
            // Who has seen nothing that was forgotten misses nothing.
            let mut back = Client::join(node, "a", Some(&pair[0])).await;
            let expected = (0..written).map(|number| format!("other {number}"));
            let expected: Vec<_> = expected.chain(["end".to_owned()]).collect();
            assert_eq!(back.messages(expected.len()).await, expected);
        }
    }
}

#[tokio::test]
async fn failover_replacing_records_one_for_one_is_a_gap() {
    failover(3, 3).await;
}

#[tokio::test]
async fn failover_replacing_records_with_fewer_is_a_gap() {
    failover(3, 1).await;
    failover(3, 0).await;
}

#[tokio::test]
async fn failover_replacing_records_with_more_is_a_gap() {
    failover(3, 10).await;
}
