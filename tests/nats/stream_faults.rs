//! Streams of JetStream that lose what they held, or turn into others: clients are told, soon, and
//! the node goes on.

use std::time::Duration;
use support::processor;

use async_nats::jetstream::stream;
use processor::is_at_rest;
use support::{
    nats::{NatsServer, STREAM},
    nodes::TOLD,
    topics::{Client, publish},
    within,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower_sse::{
    Broker,
    backplane::nats::JetStreamOptions,
    broker::{Outcome, Position},
};

/// Two nodes, each with a client of topic `a` that has had `1` to `3`.
struct Nodes {
    server: NatsServer,
    nodes: [Broker; 2],
    clients: [Client; 2],
}

impl Nodes {
    async fn start() -> Self {
        Self::with(|options| options).await
    }

    async fn with(set: impl Fn(JetStreamOptions) -> JetStreamOptions) -> Self {
        let server = NatsServer::start().await;
        let nodes = [
            Broker::new(set(server.options()).connect().await.unwrap()),
            Broker::new(set(server.options()).connect().await.unwrap()),
        ];
        let mut clients = [
            Client::subscribe(&nodes[0], "a").await,
            Client::subscribe(&nodes[1], "a").await,
        ];
        for text in ["1", "2", "3"] {
            publish(&nodes[0], "a", text).await;
        }
        for client in &mut clients {
            assert_eq!(client.take(3).await, ["1", "2", "3"]);
        }
        Self {
            server,
            nodes,
            clients,
        }
    }

    /// Both are told of a gap, and get what is published then; and the nodes come to rest.
    async fn are_told_and_go_on(mut self) -> Self {
        let start = Instant::now();
        for client in &mut self.clients {
            let reason = timeout_at(start + TOLD, client.gap()).await.expect("a gap");
            println!("told: {reason}, after {:?}", start.elapsed());
        }
        // A stream may turn into another in more than one step, and with each of them what is
        // published meanwhile belongs to the gap.
        let mut number = 3;
        for node in &self.nodes {
            let mut is_through = false;
            while !is_through {
                number += 1;
                let text = number.to_string();
                publish(node, "a", &text).await;
                is_through = true;
                for client in &mut self.clients {
                    let mut next = client.next().await;
                    while next != text && !next.starts_with("gap") {
                        next = client.next().await;
                    }
                    is_through &= next == text;
                }
                assert!(number < 10, "told again and again");
            }
        }
        is_at_rest().await;
        self
    }
}

async fn outcome_of(broker: &Broker, place: Position) -> Outcome {
    let (mut client, outcome) = Client::resume(broker, "a", place).await;
    if outcome == Outcome::Gap {
        println!("{place}: {}", client.gap().await);
    }
    outcome
}

#[tokio::test]
async fn purged_stream_is_a_gap() {
    let all = Nodes::start().await;
    let before = Position::new(all.clients[0].place().epoch(), 0, 0);
    all.server.stream().await.purge().await.unwrap();
    let all = all.are_told_and_go_on().await;
    assert_eq!(outcome_of(&all.nodes[1], before).await, Outcome::Gap);
    // It is the same log: whoever has seen what came since has lost nothing.
    let place = all.clients[0].place();
    assert_eq!(outcome_of(&all.nodes[1], place).await, Outcome::Exact);
}

#[tokio::test]
async fn deleted_stream_is_recreated_with_a_gap() {
    let all = Nodes::start().await;
    let old = all.clients[0].place();
    all.server
        .admin()
        .await
        .delete_stream(STREAM)
        .await
        .unwrap();
    let all = all.are_told_and_go_on().await;
    assert_ne!(all.clients[0].place().epoch(), old.epoch());
    assert_eq!(all.clients[0].place(), all.clients[1].place());
    assert_eq!(outcome_of(&all.nodes[1], old).await, Outcome::Gap);
}

#[tokio::test]
async fn stream_recreated_by_another_client_is_a_gap() {
    let all = Nodes::start().await;
    let old = all.clients[0].place();
    let admin = all.server.admin().await;
    let config = admin
        .get_stream(STREAM)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    // With the same configuration, and as many messages as before; unless a node is faster.
    let made_anew = async {
        loop {
            let _ = admin.delete_stream(STREAM).await;
            if admin.create_stream(config.clone()).await.is_ok() {
                return;
            }
        }
    };
    within("another stream", made_anew).await;
    for _ in 0..3 {
        let published = admin.publish(STREAM, "x".into()).await.unwrap();
        published.await.unwrap();
    }
    let all = all.are_told_and_go_on().await;
    assert_ne!(all.clients[0].place().epoch(), old.epoch());
}

#[tokio::test]
async fn restart_of_an_in_memory_stream_is_a_gap() {
    let mut all = Nodes::with(JetStreamOptions::in_memory).await;
    let old = all.clients[0].place();
    all.server.restart().await;
    let all = all.are_told_and_go_on().await;
    assert_eq!(outcome_of(&all.nodes[0], old).await, Outcome::Gap);
}

#[tokio::test]
async fn server_restarted_without_its_files_is_a_gap() {
    let mut all = Nodes::start().await;
    all.server.kill();
    all.server.wipe();
    all.server.restart().await;
    all.are_told_and_go_on().await;
}

#[tokio::test]
async fn purge_while_a_node_is_stopped_is_a_gap_on_resume() {
    for is_deleted in [false, true] {
        let Nodes {
            server,
            nodes,
            clients,
        } = Nodes::start().await;
        let place = clients[0].place();
        drop((nodes, clients));
        if is_deleted {
            server.admin().await.delete_stream(STREAM).await.unwrap();
        } else {
            server.stream().await.purge().await.unwrap();
        }
        let node = Broker::new(server.log().await);
        assert_eq!(outcome_of(&node, place).await, Outcome::Gap, "{is_deleted}");
        let mut client = Client::subscribe(&node, "a").await;
        publish(&node, "a", "4").await;
        assert_eq!(client.next().await, "4");
    }
}

/// As a server does whose machine has failed, or a copy of it that was behind and took its place.
#[tokio::test]
async fn forgotten_acknowledged_messages_are_a_gap() {
    let Nodes {
        mut server,
        nodes,
        mut clients,
    } = Nodes::start().await;
    let known = clients[0].place();
    server.kill();
    server.set_aside();
    server.restart().await;
    for text in ["4", "5"] {
        publish_again(&nodes[0], text).await;
    }
    for client in &mut clients {
        assert_eq!(client.take(2).await, ["4", "5"]);
    }
    let forgotten = clients[0].place();

    server.kill();
    server.put_back();
    server.restart().await;
    // Another node writes over the same offsets, and further.
    let other = Broker::new(server.log().await);
    for text in ["other 4", "other 5", "other 6"] {
        publish_again(&other, text).await;
    }
    for client in &mut clients {
        let told = timeout(TOLD, client.gap()).await;
        println!("told: {:?}", told.expect("a gap"));
    }
    for node in nodes.iter().chain([&other]) {
        assert_eq!(outcome_of(node, forgotten).await, Outcome::Gap);
        let (mut client, outcome) = Client::resume(node, "a", known).await;
        assert_eq!(outcome, Outcome::Exact);
        assert_eq!(client.take(3).await, ["other 4", "other 5", "other 6"]);
    }
    publish(&nodes[0], "a", "7").await;
    for client in &mut clients {
        while client.next().await != "7" {}
    }
}

async fn publish_again(node: &Broker, text: &str) {
    let published = async {
        while support::topics::try_publish(node, "a", text).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    within("the server", published).await;
}

#[tokio::test]
async fn deleted_message_is_a_gap_for_clients_before_it() {
    let all = Nodes::start().await;
    let stream = all.server.stream().await;
    let mut places = Vec::new();
    for text in ["4", "5", "6", "7"] {
        places.push(publish(&all.nodes[0], "a", text).await);
    }
    // One in the middle, then the last of all.
    let expected = [Outcome::Gap, Outcome::Gap, Outcome::Exact, Outcome::Exact];
    stream.delete_message(places[1].offset()).await.unwrap();
    let node = Broker::new(all.server.log().await);
    for (place, expected) in places.iter().zip(expected) {
        assert_eq!(outcome_of(&node, *place).await, expected, "{place}");
    }
    stream.delete_message(places[3].offset()).await.unwrap();
    let node = Broker::new(all.server.log().await);
    assert_eq!(outcome_of(&node, places[2]).await, Outcome::Gap);
    let mut client = Client::subscribe(&node, "a").await;
    publish(&node, "a", "next").await;
    assert_eq!(client.next().await, "next");
    // Who has had them all has lost nothing, where they are still known.
    for node in &all.nodes {
        assert_eq!(outcome_of(node, places[3]).await, Outcome::Exact);
    }
}

#[tokio::test]
async fn existing_stream_is_used_with_its_configuration() {
    let server = NatsServer::start().await;
    let config = stream::Config {
        name: "theirs".to_owned(),
        subjects: vec!["theirs.>".to_owned()],
        max_messages: 5,
        ..stream::Config::default()
    };
    let admin = server.admin().await;
    let created = admin.create_stream(config).await.unwrap();
    let config = created.cached_info().config.clone();
    let options = server.options().stream("theirs").subject("theirs.events");
    let nodes = [
        Broker::new(options.clone().connect().await.unwrap()),
        Broker::new(options.connect().await.unwrap()),
    ];
    let mut client = Client::subscribe(&nodes[0], "a").await;
    publish(&nodes[1], "a", "1").await;
    assert_eq!(client.next().await, "1");
    let after = admin.get_stream("theirs").await.unwrap();
    assert_eq!(after.cached_info().config, config);
}
