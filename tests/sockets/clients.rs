//! Clients that we did not write, over real sockets: they see the welcome and the events, and come
//! back with their place.

use super::SERVER;
use std::{
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use support::Held;

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use eventsource_client::{Client as _, ClientBuilder, SSE};
use futures_util::{StreamExt, stream::BoxStream};
use http::{StatusCode, Version};
use launchdarkly_sdk_transport::HyperTransport;
use reqwest_eventsource::{Error, EventSource, ReadyState};
use support::{
    NOTICED,
    client::Client,
    server::{Hyper, Server},
    until, within,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};
use tower_sse::{Connections, Event, SseConnection, SseLayer};

/// The `Last-Event-ID` of each request.
type Places = Arc<Mutex<Vec<Option<String>>>>;

/// Three events with ids 1 to 3 and a clean end; two more for a client that has those; then 204,
/// which tells a client to stay away.
async fn resume(State(places): State<Places>, sse: SseConnection) -> Response {
    let place = sse.last_event_id().map(str::to_owned);
    places.lock().unwrap().push(place.clone());
    let numbers = match place.as_deref() {
        None => 1..=3,
        Some("3") => 4..=5,
        Some(_) => return StatusCode::NO_CONTENT.into_response(),
    };
    for number in numbers {
        let event = Event::new("count", format!("event {number}")).unwrap();
        let event = event.id(number.to_string()).unwrap();
        if let Err(error) = sse.send(event).await {
            return error.into_response();
        }
    }
    StatusCode::OK.into_response()
}

/// Breaks off after one event.
async fn broken(sse: SseConnection) -> StatusCode {
    let event = Event::new("count", "event 1").unwrap().id("1").unwrap();
    let _ = sse.send(event).await;
    StatusCode::INTERNAL_SERVER_ERROR
}

async fn hold(sse: SseConnection) {
    sse.start();
    sse.closed().await;
}

async fn serve(connections: &Connections) -> (Server, Places) {
    let places = Places::default();
    let layer = SseLayer::new("/{*rest}")
        .registry(connections)
        // What clients wait before they come back.
        .retry(Duration::from_millis(20))
        .keep_alive(None);
    let app = Router::new()
        .route("/resume", get(resume))
        .route("/broken", get(broken))
        .route("/hold", get(hold))
        .with_state(Arc::clone(&places))
        .layer(layer);
    (Server::hyper_or(SERVER, Hyper::Auto, app).await, places)
}

fn places(places: &Places) -> Vec<Option<String>> {
    places.lock().unwrap().clone()
}

fn counted(numbers: std::ops::RangeInclusive<u32>) -> Vec<(String, String)> {
    let welcome = ("welcome".to_owned(), String::new());
    let events = numbers.map(|number| ("count".to_owned(), format!("event {number}")));
    std::iter::once(welcome).chain(events).collect()
}

/// An event's type and data; of the welcome, whose data is random, it is checked and left out.
fn seen(event_type: String, data: String) -> (String, String) {
    if event_type == "welcome" {
        let value: serde_json::Value = serde_json::from_str(&data).unwrap();
        let uuid = value["uuid"].as_str().unwrap();
        assert!(uuid.parse::<uuid::Uuid>().is_ok(), "{uuid}");
        return (event_type, String::new());
    }
    (event_type, data)
}

// ===== reqwest-eventsource =====

fn event_source(server: &Server, path: &str) -> EventSource {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    EventSource::new(client.get(server.url(path))).unwrap()
}

/// What it sees until its stream ends, or breaks off.
async fn until_error(source: &mut EventSource) -> (Vec<(String, String)>, Error) {
    let mut events = Vec::new();
    loop {
        let item = within("reqwest-eventsource", source.next()).await;
        match item.unwrap() {
            Ok(reqwest_eventsource::Event::Open) => {}
            Ok(reqwest_eventsource::Event::Message(message)) => {
                events.push(seen(message.event, message.data));
            }
            Err(error) => return (events, error),
        }
    }
}

#[tokio::test]
async fn reqwest_eventsource_resumes_and_stops_at_204() {
    let connections = Connections::new();
    let (server, asked) = serve(&connections).await;
    let mut source = event_source(&server, "/resume");

    let (events, end) = until_error(&mut source).await;
    assert_eq!(events, counted(1..=3));
    assert!(matches!(end, Error::StreamEnded), "{end}");
    assert_eq!(source.last_event_id(), "3");

    let (events, end) = until_error(&mut source).await;
    assert_eq!(events, counted(4..=5));
    assert!(matches!(end, Error::StreamEnded), "{end}");

    let (events, end) = until_error(&mut source).await;
    assert_eq!(events, []);
    let is_204 = matches!(&end, Error::InvalidStatusCode(status, _) if status.as_u16() == 204);
    assert!(is_204, "{end}");
    assert_eq!(source.ready_state(), ReadyState::Closed);
    assert!(source.next().await.is_none());
    let expected = [None, Some("3"), Some("5")].map(|place| place.map(str::to_owned));
    assert_eq!(places(&asked), expected);
    until("nothing to be registered", || connections.held() == 0).await;
}

#[tokio::test]
async fn reqwest_eventsource_detects_an_aborted_stream() {
    let connections = Connections::new();
    let (server, _) = serve(&connections).await;
    let mut source = event_source(&server, "/broken");
    let (events, end) = until_error(&mut source).await;
    assert_eq!(events, counted(1..=1));
    assert!(matches!(end, Error::Transport(_)), "{end}");
}

#[tokio::test]
async fn reqwest_eventsource_disconnect_is_detected() {
    let connections = Connections::new();
    let (server, _) = serve(&connections).await;
    let mut source = event_source(&server, "/hold");
    within("the head and the welcome", async {
        source.next().await.unwrap().unwrap();
        source.next().await.unwrap().unwrap();
    })
    .await;
    assert_eq!(connections.len(), 1);
    drop(source);
    let gone = until("it to be noticed", || connections.held() == 0);
    timeout(NOTICED, gone).await.expect("noticed in time");
}

// ===== eventsource-client =====

type EventSourceClient = BoxStream<'static, Result<SSE, eventsource_client::Error>>;

fn eventsource_client(server: &Server, path: &str) -> EventSourceClient {
    let transport = HyperTransport::builder().disable_proxy().build_http();
    let builder = ClientBuilder::for_url(&server.url(path)).unwrap();
    let client = builder.build_with_transport(transport.unwrap());
    client.stream().boxed()
}

async fn until_client_error(
    client: &mut EventSourceClient,
) -> (Vec<(String, String)>, eventsource_client::Error) {
    let mut events = Vec::new();
    loop {
        let item = within("eventsource-client", client.next()).await;
        match item.unwrap() {
            Ok(SSE::Connected(_)) => {}
            Ok(SSE::Event(event)) => events.push(seen(event.event_type, event.data)),
            Ok(SSE::Comment(comment)) => panic!("a comment that nobody sent: {comment}"),
            Err(error) => return (events, error),
        }
    }
}

#[tokio::test]
async fn eventsource_client_resumes() {
    let connections = Connections::new();
    let (server, asked) = serve(&connections).await;
    let mut client = eventsource_client(&server, "/resume");

    let (events, end) = until_client_error(&mut client).await;
    assert_eq!(events, counted(1..=3));
    assert!(matches!(end, eventsource_client::Error::Eof), "{end}");

    let (events, end) = until_client_error(&mut client).await;
    assert_eq!(events, counted(4..=5));
    assert!(matches!(end, eventsource_client::Error::Eof), "{end}");

    // It takes a 204 for a stream without events, and would come back for ever.
    let (events, end) = until_client_error(&mut client).await;
    assert_eq!(events, []);
    assert!(matches!(end, eventsource_client::Error::Eof), "{end}");
    let expected = [None, Some("3"), Some("5")].map(|place| place.map(str::to_owned));
    assert_eq!(places(&asked), expected);
}

#[tokio::test]
async fn eventsource_client_detects_an_aborted_stream() {
    let connections = Connections::new();
    let (server, _) = serve(&connections).await;
    let mut client = eventsource_client(&server, "/broken");
    let (events, end) = until_client_error(&mut client).await;
    assert_eq!(events, counted(1..=1));
    assert!(
        matches!(end, eventsource_client::Error::Transport(_)),
        "{end}"
    );
}

#[tokio::test]
async fn eventsource_client_disconnect_is_detected() {
    let connections = Connections::new();
    let (server, _) = serve(&connections).await;
    let mut client = eventsource_client(&server, "/hold");
    within("the head and the welcome", async {
        client.next().await.unwrap().unwrap();
        client.next().await.unwrap().unwrap();
    })
    .await;
    assert_eq!(connections.len(), 1);
    drop(client);
    let gone = until("it to be noticed", || connections.held() == 0);
    timeout(NOTICED, gone).await.expect("noticed in time");
}

// ===== curl =====

/// `curl -N`, with more arguments. It prints the status after the body.
fn curl(server: &Server, path: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command
        .args(["-q", "-N", "--silent", "--noproxy", "*"])
        .args(["--write-out", "status: %{http_code}\n"])
        .args(arguments)
        .arg(server.url(path))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn start<T>(started: std::io::Result<T>) -> T {
    started.unwrap_or_else(|error| {
        panic!(
            "curl could not be run ({error}): install it, with `apt-get install curl`, \
             `dnf install curl` or `brew install curl`, or run tests/run.sh, which does that"
        )
    })
}

async fn run(mut command: Command) -> Output {
    start(within("curl", command.output()).await)
}

/// The events that curl has printed, then the status.
fn printed(output: &Output) -> (Vec<(String, String)>, String) {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    let (stream, status) = text.rsplit_once("status: ").unwrap();
    let mut decoder = tower_sse::event::Decoder::new();
    decoder.feed(stream.as_bytes()).unwrap();
    let events = decoder.filter_map(|decoded| match decoded {
        tower_sse::event::Decoded::Event(event) => Some(seen(event.event_type, event.data)),
        _ => None,
    });
    (events.collect(), status.trim().to_owned())
}

const CURL_VERSIONS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];

#[tokio::test]
async fn curl_prints_events_and_resumes_from_a_header() {
    let connections = Connections::new();
    let (server, asked) = serve(&connections).await;
    for version in CURL_VERSIONS {
        asked.lock().unwrap().clear();
        let output = run(curl(&server, "/resume", &[version])).await;
        assert_eq!(printed(&output), (counted(1..=3), "200".to_owned()));
        assert_eq!(output.status.code(), Some(0), "a clean end");

        let header = ["--header", "Last-Event-ID: 3", version];
        let output = run(curl(&server, "/resume", &header)).await;
        assert_eq!(printed(&output), (counted(4..=5), "200".to_owned()));

        let header = ["--header", "Last-Event-ID: 5", version];
        let output = run(curl(&server, "/resume", &header)).await;
        assert_eq!(printed(&output), (Vec::new(), "204".to_owned()));
        let expected = [None, Some("3"), Some("5")].map(|place| place.map(str::to_owned));
        assert_eq!(places(&asked), expected);
    }
    until("nothing to be registered", || connections.held() == 0).await;
}

#[tokio::test]
async fn curl_detects_an_aborted_stream() {
    let connections = Connections::new();
    let (server, _) = serve(&connections).await;
    // 18: a partial file; 92: an error of the HTTP/2 stream.
    for (version, code) in CURL_VERSIONS.into_iter().zip([18, 92]) {
        // Over HTTP/2 it drops what it reads together with the reset: the stream waits a little
        // before that, for clients of this kind. On a busy machine curl may read later still.
        let tries = if code == 18 { 1 } else { 20 };
        let mut events = Vec::new();
        for _ in 0..tries {
            let output = run(curl(&server, "/broken", &[version])).await;
            assert_eq!(output.status.code(), Some(code), "{version}");
            events = printed(&output).0;
            if !events.is_empty() {
                break;
            }
        }
        assert_eq!(events, counted(1..=1), "{version}");
    }
}

#[tokio::test]
async fn curl_prints_events_at_once_and_its_kill_is_detected() {
    let connections = Connections::new();
    let (server, _) = serve(&connections).await;
    for version in CURL_VERSIONS {
        let mut child = start(curl(&server, "/hold", &[version]).spawn());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = within("the welcome", lines.next_line()).await;
        assert_eq!(first.unwrap().as_deref(), Some("event: welcome"));
        for connection in connections.iter() {
            connection.try_send(Event::message("now")).unwrap();
        }
        within("the event", async {
            while lines.next_line().await.unwrap().as_deref() != Some("data: now") {}
        })
        .await;

        assert_eq!(connections.len(), 1);
        child.kill().await.unwrap();
        let gone = until("it to be noticed", || connections.held() == 0);
        timeout(NOTICED, gone).await.expect("noticed in time");
    }
}

/// Two that come back at the same time must not disturb each other, nor one that stays.
#[tokio::test]
async fn different_clients_share_a_server() {
    let connections = Connections::new();
    let (server, _) = serve(&connections).await;
    let mut staying = Client::connect(server.address, Version::HTTP_2).await;
    let mut held = staying.open("/hold").await;
    let mut source = event_source(&server, "/resume");
    let mut client = eventsource_client(&server, "/resume");

    let (a, b) = tokio::join!(until_error(&mut source), until_client_error(&mut client));
    assert_eq!((a.0, b.0), (counted(1..=3), counted(1..=3)));
    let (a, b) = tokio::join!(until_error(&mut source), until_client_error(&mut client));
    assert_eq!((a.0, b.0), (counted(4..=5), counted(4..=5)));
    drop((source, client));

    until("one to be left", || connections.len() == 1).await;
    assert_eq!(connections.close_where(|_| true), 1);
    held.end().await.unwrap();
}
