//! A Redis server that is away, that is killed, that stands still: nothing is lost, and nobody is
//! left without an answer.

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use support::nodes;
use support::proxy;
use support::redis as redis_server;
use support::traffic;
use support::until;

use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tower_sse::{
    Broker,
    backplane::{
        AppendErrorKind,
        redis::{RedisOptions, RedisStreams},
    },
    broker::{BrokerErrorKind, History, Outcome},
};

use nodes::{Client, LIMIT, TOLD, publish, try_publish, within};
use proxy::{Proxy, Way};
use redis_server::RedisServer;

/// How long a server stands still.
const FROZEN: Duration = Duration::from_secs(10);

async fn node(server: &RedisServer) -> (Broker, RedisStreams) {
    let log = RedisStreams::connect(server.url()).await.unwrap();
    (Broker::new(log.clone()), log)
}

async fn is_connected(log: &RedisStreams, wanted: bool) {
    let mut connected = log.connected();
    let changed = connected.wait_for(|it| *it == wanted);
    within("the log's health", changed).await.unwrap();
    assert_eq!(log.is_connected(), wanted);
}

fn kind(result: Result<tower_sse::broker::Position, tower_sse::BrokerError>) -> AppendErrorKind {
    let error = result.expect_err("published");
    match error.kind() {
        BrokerErrorKind::Append(kind) => kind,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn broker_starts_before_its_server() {
    let mut server = RedisServer::prepare(&[]);
    let options = RedisOptions::new(server.url()).append_timeout(2 * LIMIT);
    let log = options.connect().await.unwrap();
    let broker = Broker::new(log.clone());
    let mut client = Client::join(&broker, "a", None).await;
    assert_eq!(client.outcome, Outcome::Pending);
    // It fails at once, long before the append timeout.
    let error = within("the error", try_publish(&broker, "never")).await;
    let error = error.unwrap_err();
    assert_eq!(
        error.kind(),
        BrokerErrorKind::Append(AppendErrorKind::NotSent)
    );
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    assert!(cause.to_lowercase().contains("refused"), "{cause:?}");
    client
        .hears_nothing_but_heartbeats(Duration::from_secs(2))
        .await;
    assert!(!log.is_connected());

    server.restart().await;
    let start = Instant::now();
    assert_eq!(client.next().await, "position:{}");
    let time = start.elapsed();
    println!("connected after {time:?}");
    assert!(time < TOLD, "{time:?}");
    is_connected(&log, true).await;
    publish(&broker, "1").await;
    assert_eq!(client.next().await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_under_load_causes_no_loss_or_duplicate() {
    let mut server = RedisServer::start_persistent().await;
    let log = async || RedisStreams::connect(server.url()).await.unwrap();
    let (here, there) = (traffic::node(log().await), traffic::node(log().await));
    let mut clients = Vec::new();
    for broker in [&here, &there] {
        let mut client = Client::join_now(broker, "a").await;
        clients.push(tokio::spawn(async move {
            let mut seen = Vec::new();
            loop {
                let event = client.event().await;
                assert_eq!(event.event_type, "message", "{}", event.data);
                let is_last = event.data == "end";
                seen.push((Instant::now(), client.id(), event.data));
                if is_last {
                    return seen;
                }
            }
        }));
    }

    let acknowledged: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let is_over = Arc::<AtomicBool>::default();
    let (publisher, noted, over) = (
        here.clone(),
        Arc::clone(&acknowledged),
        Arc::clone(&is_over),
    );
    // 5,000 events a second, or as many as a busy machine can publish.
    let publishing = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let under_way = Arc::new(Semaphore::new(20_000));
        let mut publishing = JoinSet::new();
        let mut number = 0;
        while !over.load(Ordering::SeqCst) {
            ticks.tick().await;
            for _ in 0..5 {
                number += 1;
                let permit = Arc::clone(&under_way).acquire_owned().await.unwrap();
                let (publisher, noted) = (publisher.clone(), Arc::clone(&noted));
                publishing.spawn(async move {
                    let _permit = permit;
                    let text = number.to_string();
                    if try_publish(&publisher, &text).await.is_ok() {
                        noted.lock().unwrap().insert(text);
                    }
                });
            }
            while publishing.try_join_next().is_some() {}
        }
        publishing.join_all().await;
    });
    let has_acknowledged = async |more: usize| {
        let count = || acknowledged.lock().unwrap().len();
        let wanted = count() + more;
        until("acknowledgements", || count() >= wanted).await;
    };
    has_acknowledged(4000).await;
    server.kill();
    sleep(Duration::from_millis(1500)).await;
    server.restart().await;
    let restarted = Instant::now();
    has_acknowledged(6000).await;
    is_over.store(true, Ordering::SeqCst);
    within("the publisher", publishing).await.unwrap();
    nodes::publish_at_last(&here, "end").await;

    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    for client in clients {
        let seen = within("the client", client).await.unwrap();
        let ids: Vec<_> = seen.iter().map(|(_, id, _)| id).collect();
        let offsets: Vec<u64> = ids
            .iter()
            .map(|id| id.split('-').nth(1).unwrap().parse().unwrap())
            .collect();
        for pair in offsets.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
        }
        let texts: BTreeSet<_> = seen.iter().map(|(_, _, text)| text.clone()).collect();
        assert_eq!(texts.len(), seen.len(), "something came twice");
        let missing: Vec<_> = acknowledged.difference(&texts).collect();
        assert!(missing.is_empty(), "{} are missing", missing.len());
        let first_after = seen.iter().find(|(time, ..)| *time > restarted);
        let pause = first_after.unwrap().0 - restarted;
        println!("went on {pause:?} after the restart");
        assert!(pause < TOLD, "{pause:?}");
    }
}

#[tokio::test]
async fn frozen_server_times_out_publishing_then_recovers() {
    let server = RedisServer::start().await;
    let log = RedisOptions::new(server.url())
        .append_timeout(Duration::from_secs(1))
        .connect()
        .await
        .unwrap();
    let broker = Broker::new(log.clone());
    let mut client = Client::join_now(&broker, "a").await;
    publish(&broker, "before").await;
    assert_eq!(client.next().await, "before");

    server.freeze();
    let start = Instant::now();
    assert_eq!(
        kind(try_publish(&broker, "maybe").await),
        AppendErrorKind::MaybeSent
    );
    // The default timeout is five seconds.
    let first = start.elapsed();
    println!("timed out after {first:?}");
    let limits = Duration::from_secs(1)..Duration::from_secs(5);
    assert!(limits.contains(&first), "{first:?}");
    // This one comes to the connection that is being made anew, or waits for it.
    let second = within("the error", try_publish(&broker, "maybe too")).await;
    let _ = kind(second);
    // Those who come meanwhile get what is known here.
    let mut back = Client::join(&broker, "a", Some(&client.id())).await;
    assert_eq!(back.outcome, Outcome::Exact);
    let rest = FROZEN.saturating_sub(start.elapsed());
    tokio::join!(
        client.hears_nothing_but_heartbeats(rest),
        back.hears_nothing_but_heartbeats(rest)
    );
    assert!(!log.is_connected());
    server.thaw();

    is_connected(&log, true).await;
    nodes::publish_at_last(&broker, "after").await;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "after") {
        seen.push(client.next().await);
    }
    // What was maybe sent has come, or has not, each once.
    let rest: BTreeSet<_> = seen[..seen.len() - 1].iter().map(|text| &**text).collect();
    assert!(
        rest.is_subset(&BTreeSet::from(["maybe", "maybe too"])),
        "{seen:?}"
    );
    assert_eq!(rest.len(), seen.len() - 1, "{seen:?}");
    assert_eq!(back.messages(seen.len()).await, seen);
}

#[tokio::test]
async fn reading_node_soon_reports_a_frozen_server() {
    let server = RedisServer::start().await;
    let (broker, log) = node(&server).await;
    let _client = Client::join_now(&broker, "a").await;
    is_connected(&log, true).await;
    server.freeze();
    let start = Instant::now();
    is_connected(&log, false).await;
    // A wait of a second, and two more for its answer.
    let time = start.elapsed();
    println!("found after {time:?}");
    assert!(time < TOLD, "{time:?}");
    // And it does not take it back.
    let mut connected = log.connected();
    let taken_back = tokio::time::timeout(Duration::from_secs(4), connected.wait_for(|it| *it));
    assert!(taken_back.await.is_err());
    server.thaw();
    is_connected(&log, true).await;
}

#[tokio::test]
async fn append_with_a_lost_reply_is_stored_once() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(Way::To(server.port())).await;
    let url = format!("redis://127.0.0.1:{}/", proxy.port());
    let options = RedisOptions::new(url).append_timeout(LIMIT);
    let broker = Broker::new(options.connect().await.unwrap());
    let (other, _) = node(&server).await;
    let mut client = Client::join_now(&other, "a").await;
    publish(&broker, "1").await;
    for number in 2..6 {
        proxy.set(Way::Unheard(server.port()));
        let publisher = broker.clone();
        let publishing =
            tokio::spawn(async move { publish(&publisher, &number.to_string()).await });
        // It is in the log, and nobody has told the publisher.
        client.reaches(&number.to_string()).await;
        assert!(!publishing.is_finished());
        proxy.set(Way::Cut);
        proxy.set(Way::To(server.port()));
        let position = within("the publisher", publishing).await.unwrap();
        assert_eq!(position.to_string(), client.id());
    }
    publish(&broker, "end").await;
    assert_eq!(client.next().await, "end");
    let length: u64 = server.query(&["XLEN", "{tower-sse}:log"]).await;
    assert_eq!(length, 6);
}

#[tokio::test]
async fn large_backlog_is_read_over_a_slow_connection() {
    let server = RedisServer::start().await;
    let (here, _) = node(&server).await;
    let large = "x".repeat(1_000_000);
    let first = publish(&here, "first").await.to_string();
    for _ in 0..24 {
        publish(&here, &large).await;
    }
    publish(&here, "last").await;
    // All at once would take longer than any answer is waited for.
    let proxy = Proxy::start(Way::Slowly(server.port())).await;
    let url = format!("redis://127.0.0.1:{}/", proxy.port());
    let broker = Broker::builder().history(History::default().bytes(64 << 20));
    let broker = broker.build(RedisStreams::connect(url).await.unwrap());
    let mut client = Client::join(&broker, "a", Some(&first)).await;
    assert_eq!(client.outcome, Outcome::Pending);
    for _ in 0..24 {
        assert!(client.next().await == large);
    }
    assert_eq!(client.next().await, "last");
}

#[tokio::test]
async fn resume_during_an_outage_is_pending_then_resolved() {
    let mut server = RedisServer::start_persistent().await;
    let (broker, _) = node(&server).await;
    let mut client = Client::join_now(&broker, "a").await;
    publish(&broker, "1").await;
    assert_eq!(client.next().await, "1");
    let known = client.id();
    publish(&broker, "2").await;
    assert_eq!(client.next().await, "2");
    server.kill();
    // A node that has read the log goes on with what it has; one that starts waits.
    let here = Client::join(&broker, "a", Some(&known)).await;
    assert_eq!(here.outcome, Outcome::Exact);
    let (starting, _) = node(&server).await;
    let unknown = known.replace("-1-", "-77-");
    let mut pending = Vec::new();
    for id in [&known, &unknown] {
        let client = Client::join(&starting, "a", Some(id)).await;
        assert_eq!(client.outcome, Outcome::Pending);
        pending.push(client);
    }
    for client in &mut pending {
        client
            .hears_nothing_but_heartbeats(Duration::from_secs(1))
            .await;
    }
    server.restart().await;
    let [exact, told] = &mut pending[..] else {
        panic!("two clients");
    };
    assert_eq!(exact.next().await, "2");
    assert!(told.next().await.starts_with("gap:"));
    publish(&starting, "3").await;
    assert_eq!(exact.next().await, "3");
    told.reaches("3").await;
    for mut client in [here, client] {
        client.reaches("3").await;
    }
}
