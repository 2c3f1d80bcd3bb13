//! What others write into the stream, and what later versions will: it is counted and passed over,
//! clients get nothing of it, and those who may have missed an event are told.

use std::time::Duration;
use support::nodes;
use support::redis as redis_server;

use tokio::time::{Instant, sleep};
use tower_sse::{
    Broker, Event,
    backplane::{
        AppendErrorKind,
        redis::{RedisOptions, RedisStreams},
    },
    broker::{BrokerErrorKind, Outcome},
};

use nodes::{Client, LIMIT, publish};
use redis_server::RedisServer;

const LOG: &str = "{tower-sse}:log";
const STATE: &str = "{tower-sse}:state";

async fn node(server: &RedisServer) -> (Broker, RedisStreams) {
    let log = RedisStreams::connect(server.url()).await.unwrap();
    (Broker::new(log.clone()), log)
}

/// An event as it is stored.
fn envelope(version: u8, topic: &str, lines: &[u8]) -> Vec<u8> {
    let mut bytes = vec![version];
    bytes.extend_from_slice(b"sse");
    bytes.extend_from_slice(&77_u32.to_be_bytes());
    bytes.extend_from_slice(&(topic.len() as u16).to_be_bytes());
    bytes.extend_from_slice(topic.as_bytes());
    bytes.extend_from_slice(lines);
    bytes
}

/// Writes an entry, as somebody else would.
async fn add(server: &RedisServer, id: &str, fields: &[(&str, &[u8])]) {
    let mut command = redis::cmd("XADD");
    command.arg(LOG).arg(id);
    for (name, value) in fields {
        command.arg(*name).arg(*value);
    }
    let mut connection = server.connection().await.unwrap();
    let () = command.query_async(&mut connection).await.unwrap();
}

/// Appends a record as the script does, whatever it is.
async fn append(server: &RedisServer, envelope: &[u8]) {
    let mut connection = server.connection().await.unwrap();
    let mut state = redis::cmd("HMGET");
    state.arg(STATE).arg("epoch").arg("last").arg("tag");
    let (epoch, last, tag): (Vec<u8>, u64, Vec<u8>) =
        state.query_async(&mut connection).await.unwrap();
    let next = last + 1;
    let offsets = format!("{last}-{next}");
    let link = [&epoch[..], &tag, offsets.as_bytes()].concat();
    let id = format!("{next}-0");
    add(server, &id, &[("r", envelope), ("p", &link)]).await;
    let mut state = redis::cmd("HSET");
    state.arg(STATE).arg("last").arg(next);
    state.arg("tag").arg(&envelope[4..8]);
    let () = state.query_async(&mut connection).await.unwrap();
}

/// An id after those that are there, with room for more before it.
async fn id_ahead(server: &RedisServer) -> String {
    let last: u64 = server.query(&["HGET", STATE, "last"]).await;
    format!("{}-0", last + 10)
}

async fn skipped(log: &RedisStreams, count: u64) {
    let until = Instant::now() + LIMIT;
    while log.skipped() != count {
        assert!(Instant::now() < until, "{} of {count}", log.skipped());
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn foreign_entries_are_counted_without_a_gap() {
    let server = RedisServer::start().await;
    let (broker, log) = node(&server).await;
    let mut client = Client::join_now(&broker, "a").await;
    publish(&broker, "1").await;
    let big = vec![b'x'; 10 << 20];
    let foreign: [&[(&str, &[u8])]; 6] = [
        &[("junk", b"1"), ("more", b"2")],
        &[("r", b"data: injected\n\n"), ("p", b"")],
        &[("r", b""), ("p", b"\xff\xff")],
        &[("", b"")],
        &[("data", b"\r\n\r\ndata: injected\n\n")],
        &[("r", &big)],
    ];
    for (count, fields) in foreign.iter().enumerate() {
        add(&server, "*", fields).await;
        publish(&broker, &format!("after {count}")).await;
    }
    assert_eq!(client.next().await, "1");
    for count in 0..foreign.len() {
        assert_eq!(client.next().await, format!("after {count}"));
    }
    skipped(&log, 6).await;
    // Nor those who come back, nor a node that starts.
    let known = publish(&broker, "end").await.to_string();
    assert_eq!(client.next().await, "end");
    let (starting, _) = node(&server).await;
    publish(&starting, "more").await;
    for broker in [&broker, &starting] {
        let mut back = Client::join(broker, "a", Some(&known)).await;
        assert_eq!(back.next().await, "more");
    }
}

#[tokio::test]
async fn forged_entry_is_a_gap_for_its_topic() {
    let server = RedisServer::start().await;
    let (broker, log) = node(&server).await;
    let mut client = Client::join_now(&broker, "a").await;
    let mut other = Client::join_now(&broker, "b").await;
    let first = publish(&broker, "1").await;
    assert_eq!(client.next().await, "1");
    // A copy of a record, with all that it has.
    let mut range = redis::cmd("XRANGE");
    let id = format!("{}-0", first.offset());
    range.arg(LOG).arg(&id).arg(&id);
    let mut connection = server.connection().await.unwrap();
    let entries: Vec<(String, Vec<Vec<u8>>)> = range.query_async(&mut connection).await.unwrap();
    let fields = &entries[0].1;
    let id = id_ahead(&server).await;
    add(&server, &id, &[("r", &fields[1]), ("p", &fields[3])]).await;
    client.is_told().await;
    publish(&broker, "copied").await;
    assert_eq!(client.next().await, "copied");
    let bad: [&[u8]; 4] = [
        b"data: x\n\ndata: injected\n",
        b"data: \xff\n",
        b"event: welcome\ndata: {}\n",
        b"",
    ];
    for (count, lines) in bad.iter().enumerate() {
        // By somebody else, and as a node would write it.
        let id = id_ahead(&server).await;
        add(&server, &id, &[("r", &envelope(1, "a", lines))]).await;
        client.is_told().await;
        publish(&broker, &format!("between {count}")).await;
        assert_eq!(client.next().await, format!("between {count}"));
        append(&server, &envelope(1, "a", lines)).await;
        client.is_told().await;
        publish(&broker, &format!("after {count}")).await;
        assert_eq!(client.next().await, format!("after {count}"));
    }
    skipped(&log, 5).await;
    // The other topic's clients have heard nothing of all this.
    let event = Event::message("b");
    broker.publish("b", event).await.unwrap();
    assert_eq!(other.next().await, "b");
    // One for which there is no place of its own is told to all.
    let last: u64 = server.query(&["HGET", STATE, "last"]).await;
    let id = format!("{last}-1");
    add(&server, &id, &[("r", &envelope(1, "a", b""))]).await;
    other.is_told().await;
    client.is_told().await;
}

#[tokio::test]
async fn record_of_a_later_version_is_counted_and_a_gap() {
    let server = RedisServer::start().await;
    let (broker, log) = node(&server).await;
    let mut client = Client::join_now(&broker, "a").await;
    let mut other = Client::join_now(&broker, "b").await;
    let before = publish(&broker, "1").await.to_string();
    assert_eq!(client.next().await, "1");
    append(&server, &envelope(2, "a", b"whatever that will be")).await;
    let (reason, time) = client.gap().await;
    assert_eq!(reason, "unreadable");
    assert!(time < nodes::TOLD, "{time:?}");
    skipped(&log, 1).await;
    publish(&broker, "2").await;
    assert_eq!(client.next().await, "2");
    broker.publish("b", Event::message("b")).await.unwrap();
    assert_eq!(other.next().await, "b");
    let (starting, _) = node(&server).await;
    for broker in [&broker, &starting] {
        let mut back = Client::join(broker, "a", Some(&before)).await;
        back.is_told().await;
        let mut back = Client::join(broker, "b", Some(&before)).await;
        assert_eq!(back.next().await, "b");
    }
}

#[tokio::test]
async fn log_recovers_from_an_entry_with_the_maximum_id() {
    let server = RedisServer::start().await;
    let (broker, _log) = node(&server).await;
    for id in [
        "9007199254740991-0",
        "18446744073709551615-18446744073709551615",
    ] {
        let mut client = Client::join_now(&broker, "a").await;
        publish(&broker, "before").await;
        assert_eq!(client.next().await, "before");
        add(&server, id, &[("junk", b"")]).await;
        publish(&broker, "after").await;
        client.is_told().await;
        publish(&broker, "end").await;
        client.reaches("end").await;
    }
}

#[tokio::test]
async fn log_begins_after_existing_foreign_entries() {
    let server = RedisServer::start().await;
    for _ in 0..3 {
        add(&server, "*", &[("other", b"x")]).await;
    }
    let (broker, log) = node(&server).await;
    let mut client = Client::join_now(&broker, "a").await;
    let first = publish(&broker, "1").await.to_string();
    publish(&broker, "2").await;
    assert_eq!(client.messages(2).await, ["1", "2"]);
    assert_eq!(log.skipped(), 0);
    let (starting, _) = node(&server).await;
    let mut back = Client::join(&starting, "a", Some(&first)).await;
    assert_eq!(back.next().await, "2");
    let length: u64 = server.query(&["XLEN", LOG]).await;
    assert_eq!(length, 5);
}

#[tokio::test]
async fn oversized_record_is_rejected_or_skipped_with_a_gap() {
    let server = RedisServer::start().await;
    let (large, _) = node(&server).await;
    let log = RedisOptions::new(server.url()).max_record(1000);
    let log = log.connect().await.unwrap();
    let small = Broker::new(log.clone());
    let mut client = Client::join_now(&small, "a").await;
    let text = "x".repeat(2000);
    let error = small
        .publish("a", Event::message(&*text))
        .await
        .unwrap_err();
    let rejected = BrokerErrorKind::Append(AppendErrorKind::Rejected);
    assert_eq!(error.kind(), rejected);
    publish(&large, &text).await;
    let (reason, _) = client.gap().await;
    assert_eq!(reason, "unreadable");
    skipped(&log, 1).await;
    publish(&small, "after").await;
    assert_eq!(client.next().await, "after");
    let error = RedisOptions::new(server.url()).name("a{b").connect().await;
    assert!(error.is_err());
    let error = RedisStreams::connect("http://127.0.0.1/")
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "not the URL of a Redis server");
    let back = Client::join(&small, "a", None).await;
    assert_eq!(back.outcome, Outcome::Fresh);
}
