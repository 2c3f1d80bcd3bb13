//! Clients that we did not write come back, over real sockets, after their server was restarted:
//! in the same process, with the same broker, and as a new process.

use super::SERVER;
use std::{
    env,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use support::own_process::test_name;

use axum::{
    Router,
    extract::{Path, State},
    routing::{get, post},
};
use eventsource_client::{Client as _, ClientBuilder, ReconnectOptions, SSE};
use futures_util::{StreamExt, stream, stream::BoxStream};
use http::StatusCode;
use launchdarkly_sdk_transport::HyperTransport;
use reqwest_eventsource::{EventSource, retry::Constant};
use support::{server::serve_chosen, until, within};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin},
    net::TcpListener,
    process::{Child, Command},
    runtime::Runtime,
    time::sleep,
};
use tower_sse::{Broker, Error, Event, SseConnection, SseLayer};

const RETRY: Duration = Duration::from_millis(20);

// ===== the server =====

/// What clients have named as their place.
type Places = Arc<Mutex<Vec<Option<String>>>>;

fn app(broker: &Broker, places: &Places) -> Router {
    let layer = SseLayer::new("/events/{topic}").retry(RETRY);
    let places = Arc::clone(places);
    let subscribe =
        async move |State(broker): State<Broker>, Path(topic): Path<String>, sse: SseConnection| {
            let place = sse.last_event_id().map(str::to_owned);
            places.lock().unwrap().push(place);
            broker.subscribe(&sse, topic).await?.start();
            Ok::<_, Error>(())
        };
    let publish = async |State(broker): State<Broker>, Path(topic): Path<String>, text: String| {
        let published = broker.publish(topic, Event::message(&text)).await;
        published.map(|_| StatusCode::NO_CONTENT)
    };
    Router::new()
        .route("/events/{topic}", get(subscribe).layer(layer))
        .route("/topics/{topic}", post(publish))
        .with_state(broker.clone())
}

/// The port may be that of a server that is still on its way out.
async fn bind(address: SocketAddr) -> TcpListener {
    let bound = async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    };
    within("the port", bound).await
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A server on a runtime of its own: when that ends, its listener and its sockets end with it.
struct Server {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    async fn start(address: SocketAddr, broker: &Broker, places: &Places) -> Self {
        let app = app(broker, places);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.spawn(bind(address)).await.unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(serve_chosen(SERVER, listener, app));
        Self {
            address,
            runtime: Some(runtime),
        }
    }

    /// Ends it, and waits until it has let go of its clients.
    async fn end(self, broker: &Broker, topic: &str) {
        drop(self);
        until("its streams to end", || {
            broker.subscriber_count(topic).unwrap() == 0
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Where the process that has it in its environment is to serve.
const ADDRESS: &str = "TOWER_SSE_TEST_ADDRESS";

/// The test that such a process is started with: it serves in its place.
const NEW_PROCESS: &str = "clients_get_a_gap_from_a_new_process";

/// What a process of its own does in place of the test: it serves until its input ends.
async fn serve_until_input_ends(address: &str) {
    let listener = bind(address.parse().unwrap()).await;
    println!("\nserving at {}", listener.local_addr().unwrap());
    let app = app(&Broker::in_memory(), &Places::default());
    let mut input = stdin();
    tokio::select! {
        () = serve_chosen(SERVER, listener, app) => {}
        _ = input.read_u8() => {}
    }
    // Its runtime would wait for what reads the input.
    std::process::exit(0);
}

/// This file's server, as a new process. It is killed when this is dropped.
async fn start_process(address: SocketAddr) -> (Child, SocketAddr) {
    let mut command = Command::new(env::current_exe().unwrap());
    let mut child = command
        .args([
            &test_name(module_path!(), NEW_PROCESS),
            "--exact",
            "--nocapture",
        ])
        .env(ADDRESS, address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = within("the process to serve", async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it serves");
            if let Some(address) = line.strip_prefix("serving at ") {
                return address.parse().unwrap();
            }
        }
    });
    (child, address.await)
}

// ===== the clients =====

/// Types and data of events, without errors and places.
type Events = BoxStream<'static, (String, String)>;

fn reqwest_eventsource(url: &str) -> Events {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut source = EventSource::new(client.get(url)).unwrap();
    source.set_retry_policy(Box::new(Constant::new(RETRY, None)));
    let events = source.filter_map(async |item| match item {
        Ok(reqwest_eventsource::Event::Message(message)) => Some((message.event, message.data)),
        _ => None,
    });
    events.boxed()
}

fn eventsource_client(url: &str) -> Events {
    let transport = HyperTransport::builder().disable_proxy().build_http();
    let again = ReconnectOptions::reconnect(true)
        .delay(RETRY)
        .delay_max(RETRY);
    let client = ClientBuilder::for_url(url)
        .unwrap()
        .reconnect(again.build())
        .build_with_transport(transport.unwrap());
    let events = client.stream().filter_map(async |item| match item {
        Ok(SSE::Event(event)) => Some((event.event_type, event.data)),
        _ => None,
    });
    events.boxed()
}

const CLIENTS: [fn(&str) -> Events; 2] = [reqwest_eventsource, eventsource_client];

/// The next event that is no welcome and no position.
async fn next(events: &mut Events) -> String {
    let next = async {
        loop {
            let (event_type, data) = events.next().await.expect("it comes back for ever");
            match event_type.as_str() {
                "message" => return data,
                "gap" => return format!("gap: {data}"),
                _ => {}
            }
        }
    };
    within("an event", next).await
}

async fn next_of(events: &mut Events, count: usize) -> Vec<String> {
    let texts = stream::unfold(events, async |events| Some((next(events).await, events)));
    texts.take(count).collect().await
}

/// Waits for an event of this type, which gives the client its place.
async fn placed_by(events: &mut Events, event_type: &str) {
    let next = async { while events.next().await.unwrap().0 != event_type {} };
    within(event_type, next).await;
}

async fn publish(broker: &Broker, topic: &str, text: &str) {
    broker.publish(topic, Event::message(text)).await.unwrap();
}

// ===== the tests =====

#[tokio::test]
async fn clients_resume_exactly_across_server_restarts() {
    for client in CLIENTS {
        let (broker, places) = (Broker::in_memory(), Places::default());
        let mut server = Server::start(any_port(), &broker, &places).await;
        let address = server.address;
        publish(&broker, "a", "before").await;
        let mut events = client(&format!("http://{address}/events/a"));
        placed_by(&mut events, "welcome").await;

        let mut number = 0;
        for restart in 1..=3 {
            let mut expected = Vec::new();
            for _ in 0..5 {
                number += 1;
                expected.push(number.to_string());
                publish(&broker, "a", &number.to_string()).await;
            }
            assert_eq!(next_of(&mut events, 5).await, expected);

            server.end(&broker, "a").await;
            expected.clear();
            for _ in 0..5 {
                number += 1;
                expected.push(number.to_string());
                publish(&broker, "a", &number.to_string()).await;
            }
            server = Server::start(address, &broker, &places).await;
            assert_eq!(next_of(&mut events, 5).await, expected, "restart {restart}");
        }
        let places = places.lock().unwrap();
        assert_eq!(places.len(), 4);
        assert!(places[1..].iter().all(Option::is_some));
        drop(server);
    }
}

#[tokio::test]
async fn quiet_topic_clients_resume_exactly_beside_a_busy_topic() {
    for client in CLIENTS {
        let (broker, places) = (Broker::builder().window(64).in_memory(), Places::default());
        let server = Server::start(any_port(), &broker, &places).await;
        let address = server.address;
        let mut events = client(&format!("http://{address}/events/quiet"));
        placed_by(&mut events, "welcome").await;
        publish(&broker, "quiet", "1").await;
        assert_eq!(next(&mut events).await, "1");
        for number in 0..500 {
            publish(&broker, "busy", &number.to_string()).await;
        }
        // It is told how far the log is.
        placed_by(&mut events, "position").await;

        server.end(&broker, "quiet").await;
        publish(&broker, "quiet", "2").await;
        for number in 0..500 {
            publish(&broker, "busy", &number.to_string()).await;
        }
        let server = Server::start(address, &broker, &places).await;
        assert_eq!(next(&mut events).await, "2");
        publish(&broker, "quiet", "3").await;
        assert_eq!(next(&mut events).await, "3");
        drop(server);
    }
}

/// A memory broker's log is gone with its process.
#[tokio::test]
async fn clients_get_a_gap_from_a_new_process() {
    if let Ok(address) = env::var(ADDRESS) {
        return serve_until_input_ends(&address).await;
    }
    let publisher = reqwest::Client::builder().no_proxy().build().unwrap();
    for client in CLIENTS {
        let (mut process, address) = start_process(any_port()).await;
        let publish = async |text: &'static str| {
            let request = publisher
                .post(format!("http://{address}/topics/a"))
                .body(text);
            let answer = within("an answer", request.send()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        };
        let mut events = client(&format!("http://{address}/events/a"));
        placed_by(&mut events, "welcome").await;
        publish("1").await;
        assert_eq!(next(&mut events).await, "1");

        process.kill().await.unwrap();
        let (mut process, _) = start_process(address).await;
        let gap = r#"gap: {"reason":"other_log","missed":null}"#;
        assert_eq!(next(&mut events).await, gap);
        publish("2").await;
        assert_eq!(next(&mut events).await, "2");
        process.kill().await.unwrap();
    }
}
