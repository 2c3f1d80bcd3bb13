//! NATS servers that are not there, that crash, that freeze.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use support::{
    LIMIT,
    nats::NatsServer,
    nodes::TOLD,
    topics::{Client, publish, resolved, try_publish},
    until, within,
};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tower_sse::{
    Broker,
    backplane::{AppendErrorKind, nats::JetStream},
    broker::{BrokerErrorKind, History, Outcome, Position},
    event::Decoded,
};

#[tokio::test]
async fn broker_starts_without_its_server() {
    let mut server = NatsServer::stopped();
    let log = server.log().await;
    assert!(!log.is_connected());
    let mut connected = log.connected();
    let broker = Broker::new(log.clone());

    let mut client = Client::connect(None).await;
    let subscription = broker.subscribe(&client.sse, "a").await.unwrap();
    assert_eq!(subscription.outcome(), Outcome::Pending);
    let welcome = client.events.event().await.unwrap();
    assert_eq!(welcome.event_type, "welcome");
    let heartbeat = client.events.decoded().await;
    assert!(
        matches!(heartbeat, Ok(Decoded::Comment(_))),
        "{heartbeat:?}"
    );
    let refused = try_publish(&broker, "a", "early").await.unwrap_err();
    assert_eq!(
        refused.kind(),
        BrokerErrorKind::Append(AppendErrorKind::NotSent)
    );

    server.restart().await;
    within("a connection", connected.wait_for(|it| *it))
        .await
        .unwrap();
    assert_eq!(resolved(&subscription).await, Outcome::Fresh);
    subscription.start();
    publish(&broker, "a", "1").await;
    assert_eq!(client.next().await, "1");
    assert!(log.is_connected());
}

#[tokio::test]
async fn client_resuming_during_an_outage_gets_missed_events() {
    let mut server = NatsServer::start().await;
    let before = Broker::new(server.log().await);
    let place = publish(&before, "a", "0").await;
    for text in ["1", "2"] {
        publish(&before, "a", text).await;
    }
    drop(before);
    server.kill();

    let broker = Broker::new(server.log().await);
    let mut client = Client::connect(Some(place)).await;
    let subscription = broker.subscribe(&client.sse, "a").await.unwrap();
    assert_eq!(subscription.outcome(), Outcome::Pending);
    // A place that the log cannot know is told of as soon as the log can be read.
    let other = Position::new(place.epoch(), 77, 7);
    let mut lost = Client::connect(Some(other)).await;
    let lost_subscription = broker.subscribe(&lost.sse, "a").await.unwrap();
    for client in [&mut client, &mut lost] {
        assert_eq!(client.events.event().await.unwrap().event_type, "welcome");
        for _ in 0..10 {
            let heartbeat = client.events.decoded().await;
            assert!(
                matches!(heartbeat, Ok(Decoded::Comment(_))),
                "{heartbeat:?}"
            );
        }
    }
    assert_eq!(subscription.outcome(), Outcome::Pending);
    server.restart().await;
    assert_eq!(resolved(&lost_subscription).await, Outcome::Gap);
    lost_subscription.start();
    lost.gap().await;
    assert_eq!(resolved(&subscription).await, Outcome::Exact);
    subscription.start();
    assert_eq!(client.take(2).await, ["1", "2"]);
    publish(&broker, "a", "3").await;
    assert_eq!(client.next().await, "3");
}

/// What two nodes have acknowledged, by its offset.
type Acknowledged = Arc<Mutex<BTreeMap<u64, String>>>;

/// Publishes 5,000 events a second, or as many as a busy machine can publish, until it is over. Appends
/// that were not sent are repeated.
async fn load(broker: &Broker, is_over: &AtomicBool, acknowledged: &Acknowledged) {
    let mut publishing = JoinSet::new();
    let mut ticks = interval(Duration::from_millis(2));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let under_way = Arc::new(Semaphore::new(20_000));
    let mut number = 0;
    while !is_over.load(Ordering::SeqCst) {
        ticks.tick().await;
        for _ in 0..10 {
            number += 1;
            let permit = Arc::clone(&under_way).acquire_owned().await.unwrap();
            let (broker, acknowledged) = (broker.clone(), Arc::clone(acknowledged));
            publishing.spawn(async move {
                let _permit = permit;
                let text = number.to_string();
                loop {
                    match try_publish(&broker, "a", &text).await {
                        Ok(position) => {
                            let mut acknowledged = acknowledged.lock().unwrap();
                            let double = acknowledged.insert(position.offset(), text);
                            assert_eq!(double, None, "at {position}");
                            return;
                        }
                        Err(error) => {
                            let kind = BrokerErrorKind::Append(AppendErrorKind::NotSent);
                            assert_eq!(error.kind(), kind, "{error:?}");
                            sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
            });
        }
    }
    while let Some(published) = publishing.join_next().await {
        published.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_server_under_load_causes_no_loss_or_duplicate() {
    let mut server = NatsServer::start().await;
    // Room for what comes while a client of a busy machine is not read.
    let history = History::default().events(100_000).bytes(64 << 20);
    let node = Broker::builder().history(history);
    // A busy machine may take long to start the server.
    let options = server.options().append_timeout(LIMIT);
    let nodes = [
        node.clone().build(options.clone().connect().await.unwrap()),
        node.build(options.connect().await.unwrap()),
    ];
    let acknowledged = Acknowledged::default();
    let mut clients = Vec::new();
    for node in &nodes {
        clients.push(Client::subscribe(node, "a").await);
    }
    let (publisher, noted) = (nodes[0].clone(), Arc::clone(&acknowledged));
    let is_over = Arc::<AtomicBool>::default();
    let over = Arc::clone(&is_over);
    let loading = tokio::spawn(async move {
        load(&publisher, &over, &noted).await;
        publish(&publisher, "a", "end").await;
    });
    let restarted = Arc::new(Mutex::new(None));
    let reading: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let restarted = Arc::clone(&restarted);
            tokio::spawn(async move {
                let mut got = Vec::new();
                let mut first_after = None;
                loop {
                    let (text, place) = client.next_with_place().await;
                    if text == "end" {
                        return (got, first_after);
                    }
                    got.push((place.unwrap().offset(), text));
                    let at: Option<Instant> = *restarted.lock().unwrap();
                    first_after = first_after.or(at.map(|at| at.elapsed()));
                }
            })
        })
        .collect();

    let has_acknowledged = async |more: usize| {
        let count = || acknowledged.lock().unwrap().len();
        let wanted = count() + more;
        until("acknowledgements", || count() >= wanted).await;
    };
    has_acknowledged(4000).await;
    server.kill();
    sleep(Duration::from_millis(1500)).await;
    server.restart().await;
    *restarted.lock().unwrap() = Some(Instant::now());
    has_acknowledged(4000).await;
    is_over.store(true, Ordering::SeqCst);

    within("the publisher", loading).await.unwrap();
    let acknowledged: Vec<_> = acknowledged.lock().unwrap().clone().into_iter().collect();
    for reading in reading {
        let (got, first_after) = within("a client", reading).await.unwrap();
        let only = |these: &[_], those: &[(u64, String)]| -> Vec<(u64, String)> {
            let only = these.iter().filter(|it| !those.contains(it));
            only.take(20).cloned().collect()
        };
        assert!(
            got == acknowledged,
            "got alone: {:?}, acknowledged alone: {:?}",
            only(&got, &acknowledged),
            only(&acknowledged, &got)
        );
        let first_after = first_after.unwrap();
        println!(
            "{} events, went on {first_after:?} after the restart",
            got.len()
        );
        assert!(first_after < TOLD, "{first_after:?}");
    }
}

#[tokio::test]
async fn frozen_server_only_times_out_appends() {
    let server = NatsServer::start().await;
    let limit = Duration::from_secs(1);
    let log = server
        .options()
        .append_timeout(limit)
        .connect()
        .await
        .unwrap();
    let broker = Broker::new(log);
    let mut client = Client::subscribe(&broker, "a").await;
    publish(&broker, "a", "1").await;
    assert_eq!(client.next().await, "1");

    server.freeze();
    let start = Instant::now();
    let error = try_publish(&broker, "a", "2").await.unwrap_err();
    assert_eq!(
        error.kind(),
        BrokerErrorKind::Append(AppendErrorKind::MaybeSent)
    );
    // The default timeout is five seconds.
    let time = start.elapsed();
    println!("timed out after {time:?}");
    assert!((limit..5 * limit).contains(&time), "{time:?}");
    // Long enough for the connection to be given up.
    let until = start + Duration::from_secs(10);
    while Instant::now() < until {
        let heartbeat = client.events.decoded().await;
        assert!(
            matches!(heartbeat, Ok(Decoded::Comment(_))),
            "{heartbeat:?}"
        );
    }
    server.thaw();
    let published = async {
        while try_publish(&broker, "a", "3").await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    within("an append", published).await;
    publish(&broker, "a", "4").await;
    // What was maybe sent may be delivered, once. The third event may have been stored by several tries
    // if the answers came too late.
    let mut next = client.next().await;
    if next == "2" {
        next = client.next().await;
    }
    assert_eq!(next, "3");
    while next == "3" {
        next = client.next().await;
    }
    assert_eq!(next, "4");
}

#[tokio::test]
async fn node_uses_one_connection_and_one_consumer() {
    let server = NatsServer::start().await;
    let nodes = [
        Broker::new(server.log().await),
        Broker::new(server.log().await),
    ];
    let mut clients = Vec::new();
    for number in 0..200 {
        let topic = format!("topic {}", number % 50);
        clients.push(Client::subscribe(&nodes[number % 2], &topic).await);
    }
    server.has_clients_and_consumers((2, 2)).await;
    publish(&nodes[0], "topic 7", "1").await;
    for client in clients.iter_mut().skip(7).step_by(50) {
        assert_eq!(client.next().await, "1");
    }
    drop(nodes);
    drop(clients);
    let gone = async {
        while server.clients_and_consumers().await.0 > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    within("the connections to end", gone).await;
}

#[tokio::test]
async fn dropped_handle_stops_reconnecting() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let log = JetStream::connect(&format!("nats://{address}"))
        .await
        .unwrap();
    drop(log);
    let listener = TcpListener::bind(address).await.unwrap();
    // A try that is under way may still arrive. Then there are none, where there was one each half
    // second.
    let silence = Duration::from_secs(3);
    let silent = async { while timeout(silence, listener.accept()).await.is_ok() {} };
    within("the last try", silent).await;
}
