//! What else may stand in a stream of JetStream: messages of other programs, records of later
//! versions, records that no client is to get. None of it reaches the wire.

use async_nats::jetstream::{Context, stream::Stream};
use bytes::Bytes;
use support::{
    nats::{NatsServer, STREAM},
    nodes::TOLD,
    topics::{Client, publish, try_publish},
    within,
};
use tokio::time::timeout;
use tower_sse::{
    Broker, Event,
    backplane::AppendErrorKind,
    broker::{BrokerErrorKind, Outcome},
};

/// Stores a message as any program might.
async fn store(admin: &Context, payload: impl Into<Bytes>) {
    let published = admin.publish(STREAM, payload.into()).await.unwrap();
    within("the server", published.into_future()).await.unwrap();
}

/// What stands in the stream at this offset.
async fn stored(stream: &Stream, offset: u64) -> Vec<u8> {
    stream
        .get_raw_message(offset)
        .await
        .unwrap()
        .payload
        .to_vec()
}

/// A record that a broker has stored, with other lines.
fn with_lines(record: &[u8], lines: &[u8]) -> Vec<u8> {
    let at = record.windows(6).position(|it| it == b"data: ").unwrap();
    [&record[..at], lines].concat()
}

#[tokio::test]
async fn foreign_messages_are_skipped_and_counted_without_a_gap() {
    let server = NatsServer::with_max_payload(16 << 20).await;
    let log = server.log().await;
    let broker = Broker::new(log.clone());
    let admin = server.admin().await;
    let mut client = Client::subscribe(&broker, "a").await;
    let place = publish(&broker, "a", "1").await;
    for payload in [&b""[..], b"data: forged\n\n", b"\0\xff", b"{}"] {
        store(&admin, payload).await;
    }
    store(&admin, vec![b'x'; 10 << 20]).await;
    publish(&broker, "a", "2").await;
    assert_eq!(client.take(2).await, ["1", "2"]);
    assert_eq!(log.skipped(), 5);
    let (mut client, outcome) = Client::resume(&broker, "a", place).await;
    assert_eq!(outcome, Outcome::Exact);
    assert_eq!(client.next().await, "2");

    // The last message is not ours when a node starts.
    store(&admin, "x").await;
    let node = Broker::new(server.log().await);
    let (mut client, outcome) = Client::resume(&node, "a", place).await;
    assert_eq!(outcome, Outcome::Exact);
    assert_eq!(client.next().await, "2");
    publish(&node, "a", "3").await;
    assert_eq!(client.next().await, "3");
}

#[tokio::test]
async fn record_of_a_later_version_is_a_gap_for_its_topic_only() {
    let server = NatsServer::start().await;
    let log = server.log().await;
    let broker = Broker::new(log.clone());
    let mut client = Client::subscribe(&broker, "a").await;
    let mut other = Client::subscribe(&broker, "b").await;
    let place = publish(&broker, "a", "1").await;
    let mut record = stored(&server.stream().await, place.offset()).await;
    record[0] += 1;
    store(&server.admin().await, record).await;
    publish(&broker, "a", "2").await;
    publish(&broker, "b", "2").await;
    assert_eq!(client.next().await, "1");
    assert_eq!(
        client.next().await,
        r#"gap {"reason":"unreadable","missed":1}"#
    );
    assert_eq!(client.next().await, "2");
    assert_eq!(other.next().await, "2");
    assert_eq!(log.skipped(), 1);

    // And for those who come back, also to another node.
    for node in [&broker, &Broker::new(server.log().await)] {
        let outcome = Client::resume(node, "a", place).await.1;
        assert_eq!(outcome, Outcome::Gap);
        let outcome = Client::resume(node, "b", place).await.1;
        assert_eq!(outcome, Outcome::Exact);
    }
}

#[tokio::test]
async fn damaged_record_without_topic_is_a_gap_for_all() {
    let server = NatsServer::start().await;
    let broker = Broker::new(server.log().await);
    let mut clients = [
        Client::subscribe(&broker, "a").await,
        Client::subscribe(&broker, "b").await,
    ];
    let place = publish(&broker, "a", "1").await;
    let record = stored(&server.stream().await, place.offset()).await;
    store(&server.admin().await, record[..10].to_vec()).await;
    for client in &mut clients {
        timeout(TOLD, client.gap()).await.expect("a gap");
    }
    publish(&broker, "b", "2").await;
    assert_eq!(clients[1].next().await, "2");
}

#[tokio::test]
async fn invalid_lines_are_not_sent_to_clients() {
    let server = NatsServer::start().await;
    let broker = Broker::new(server.log().await);
    let mut client = Client::subscribe(&broker, "a").await;
    let place = publish(&broker, "a", "1").await;
    assert_eq!(client.next().await, "1");
    let admin = server.admin().await;
    let record = stored(&server.stream().await, place.offset()).await;
    let bad: [&[u8]; 7] = [
        b"data: x\n\ndata: forged\n",
        b"data: x\rdata: forged\n",
        b"data: x",
        b"id: forged\ndata: x\n",
        b"event: welcome\ndata: x\n",
        b"data: \xff\n",
        b"",
    ];
    for lines in bad {
        store(&admin, with_lines(&record, lines)).await;
        let gap = client.next().await;
        assert_eq!(
            gap, r#"gap {"reason":"unreadable","missed":1}"#,
            "{lines:?}"
        );
    }
    store(&admin, with_lines(&record, b"data: good\n")).await;
    assert_eq!(client.next().await, "good");
    publish(&broker, "a", "end").await;
    assert_eq!(client.next().await, "end");
}

#[tokio::test]
async fn oversized_record_is_rejected_or_replaced_by_a_gap() {
    let server = NatsServer::start().await;
    let strict = server.options().max_record(100).connect().await.unwrap();
    let (strict, lax) = (Broker::new(strict), Broker::new(server.log().await));
    let mut client = Client::subscribe(&strict, "a").await;
    let long = "x".repeat(101);
    let error = try_publish(&strict, "a", &long).await.unwrap_err();
    assert_eq!(
        error.kind(),
        BrokerErrorKind::Append(AppendErrorKind::Rejected)
    );
    // More than the server takes.
    let longer = Event::message("x".repeat(1 << 20));
    let error = lax.publish("a", longer).await.unwrap_err();
    assert_eq!(
        error.kind(),
        BrokerErrorKind::Append(AppendErrorKind::Rejected)
    );

    publish(&lax, "a", &long).await;
    assert_eq!(
        client.next().await,
        r#"gap {"reason":"unreadable","missed":1}"#
    );
    publish(&lax, "a", "short").await;
    assert_eq!(client.next().await, "short");
}
