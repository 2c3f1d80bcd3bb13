//! What feature "tracing" tells. One test alone: whether a place in the code is told of is noted for
//! the whole process.

use super::paths;
use paths::connection_of;
use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Request;
use tower::{Layer, service_fn};
use tower_sse::{
    Broker, Event, SseConnection, SseLayer,
    backplane::{Backplane, Memory, Record},
    broker::History,
};
use tracing_subscriber::fmt::MakeWriter;

/// Collects what is written.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn connections_are_traced_without_client_input() {
    if !support::own_process::is_own(
        module_path!(),
        "connections_are_traced_without_client_input",
    )
    .await
    {
        return;
    }
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(lines.clone())
        .without_time()
        .with_ansi(false)
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let layer = SseLayer::new("/{room}").max_connections(1);
    let broker = Broker::builder()
        .history(History::default().events(1))
        .in_memory();
    let to = broker.clone();
    let service = || {
        let broker = to.clone();
        layer.layer(service_fn(move |request: Request<()>| {
            let broker = broker.clone();
            async move {
                let sse = request.extensions().get::<SseConnection>().unwrap().clone();
                broker.subscribe(&sse, "a").await.unwrap().start();
                sse.send(Event::message("1")).await.unwrap();
                tracing::info!("in the handler");
                sse.close();
                std::future::pending::<()>().await;
                Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
            }
        }))
    };
    let place = broker.publish("a", Event::message("0")).await.unwrap();
    for _ in 0..2 {
        broker.publish("a", Event::message("0")).await.unwrap();
    }
    let request = || {
        Request::get("/secret%0aroom?token=secret")
            .header("last-event-id", place.to_string())
            .header("user-agent", "secret")
            .body(())
            .unwrap()
    };
    let held = paths::open(service(), request()).await.unwrap();
    let refused = paths::open(service(), request()).await.unwrap();
    drop(refused);
    let mut events = held.into_body();
    while events.event().await.is_ok() {}

    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let told = |text: &str, of: &[&str]| {
        let is_told = text
            .lines()
            .any(|line| of.iter().all(|it| line.contains(it)));
        assert!(is_told, "{of:?} is not in\n{text}");
    };
    told(&text, &["sse_connection{uuid=", "event stream opened"]);
    told(&text, &["sse_connection{uuid=", "in the handler"]);
    told(&text, &["event stream refused", "reason=\"full\""]);
    told(
        &text,
        &[
            "sse_connection{uuid=",
            "event stream closed",
            "reason=\"closed\"",
            "events=2",
        ],
    );
    assert!(!text.contains("secret"), "{text}");

    // Where a gap is told, it is told here too.
    let (sse, mut events) = connection_of(&SseLayer::any_path(), request()).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    while events.event().await.unwrap().event_type != "gap" {}
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let gap = [
        "sse_connection{uuid=",
        "gap announced",
        "reason=\"evicted\"",
    ];
    told(&text, &gap);

    // What anybody may have written into the log is not told as often as they write it.
    let log = Memory::new();
    let broker = Broker::new(log.clone());
    let junk = async || {
        for _ in 0..100 {
            let lines = "data: secret\n\ndata: injected\n";
            let record = Record::new("a".try_into().unwrap(), lines);
            log.append(record).await.unwrap();
        }
        broker.publish("a", Event::message("1")).await.unwrap();
    };
    junk().await;
    tokio::time::advance(Duration::from_millis(999)).await;
    junk().await;
    tokio::time::advance(Duration::from_millis(1)).await;
    junk().await;
    assert_eq!(broker.stats().unreadable, 300);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let all = |line: &str| {
        line.split_once("records unreadable all=")
            .map(|it| it.1.to_owned())
    };
    let unreadable: Vec<_> = text.lines().filter_map(all).collect();
    assert_eq!(unreadable, ["1", "201"]);
    assert!(!text.contains("secret"), "{text}");
}
