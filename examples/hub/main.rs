//! A pub/sub server: `cargo run --release --example hub`, then open the address that it prints.
//!
//! | request | what it does |
//! | --- | --- |
//! | `GET /` | a page to try it all |
//! | `GET /events?topic=a&topic=b` | streams the events of these topics |
//! | `POST /topics/{topic}?event=NAME` | publishes the body, as text |
//! | `POST /connections/{uuid}/topics/{topic}` | adds a topic to a live connection |
//! | `DELETE /connections/{uuid}/topics/{topic}` | takes a topic away from it |
//! | `DELETE /connections/{uuid}` | cuts a connection: its client comes back |
//! | `GET /stats` | figures, as JSON |
//! | `GET /metrics` | figures, as Prometheus reads them |
//! | `GET /ready` | 200, or 503 when the hub is about to stop: for a load balancer |
//!
//! | option | what it sets | without it |
//! | --- | --- | --- |
//! | `--listen ADDR` | the address | 127.0.0.1:3000 |
//! | `--history N` | how many events of each topic are kept for those who come back | 1000 |
//! | `--redis URL`, `--nats URL` | the server that has the log, for several hubs | memory |
//! | `--max N` | how many streams there may be | 10000 |
//! | `--max-per-address N` | how many streams one address may have | 1000 |
//! | `--lifetime SECONDS` | when a stream ends, for its client to come back | 3600 |
//! | `--unready SECONDS` | for how long only `/ready` says that it stops, before it does | 0 |
//! | `--drain SECONDS` | over which time its streams end then | 5 |
//!
//! On Ctrl-C or SIGTERM the hub ends its streams, and their clients come back to the next hub that
//! listens there. On a second one it ends at once.
//!
//! All hubs that name the same Redis server, or the same NATS server with JetStream, are one: what is
//! published on one reaches the streams of all, and a client may come back to any. The clients of these
//! servers are features of the crate: `--redis` needs `cargo run --features redis`, and `--nats` needs
//! `--features nats`.
//!
//! Whoever reaches the server may do all this. A program with users looks first who asks.

mod operation;
mod options;

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State, rejection::StringRejection},
    http::{StatusCode, header::CONTENT_TYPE, request},
    response::{Html, IntoResponse, Result},
    routing::{delete, get, post},
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use serde::Deserialize;
use serde_json::{Value, json};
#[cfg(feature = "nats")]
use tower_sse::backplane::nats::JetStream;
#[cfg(feature = "redis")]
use tower_sse::backplane::redis::RedisStreams;
use tower_sse::{
    Broker, Connections, Event, SseConnection, SseLayer,
    broker::History,
    layer::Limits,
    serve::{PeerAddr, TcpListener},
};

use self::{
    operation::{Stopped, serve, signal},
    options::{Log, Options},
};

/// The longest body that is published.
const MAX_BODY: usize = 64 * 1024;

#[derive(Clone)]
struct Hub {
    broker: Broker,
    connections: Connections,
    recorder: Arc<PrometheusRecorder>,
    is_ready: Arc<AtomicBool>,
    options: Options,
}

fn app(hub: Hub) -> Router {
    let sse = SseLayer::new("/events")
        .registry(&hub.connections)
        .max_connections(hub.options.max)
        .limits(Limits::new().connections_per(hub.options.max_per_address, address))
        .max_lifetime(hub.options.lifetime)
        .last_event_id_query("lastEventId"); // for a page that went offline, and comes back
    Router::new()
        .route("/", get(async || Html(include_str!("page.html"))))
        .route("/page.js", get(script))
        .route("/events", get(events))
        .route("/topics/{topic}", post(publish))
        .route("/connections/{uuid}", delete(cut))
        .route(
            "/connections/{uuid}/topics/{topic}",
            post(add_topic).delete(remove_topic),
        )
        .route("/stats", get(operation::stats))
        .route("/metrics", get(operation::metrics))
        .route("/ready", get(operation::ready))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(sse)
        .with_state(hub)
}

/// Behind a proxy this is the proxy's: there it has to come from a header that the proxy sets.
fn address(request: &request::Parts) -> Option<IpAddr> {
    let PeerAddr(address) = request.extensions.get::<PeerAddr<SocketAddr>>()?;
    Some(address.ip())
}

async fn script() -> impl IntoResponse {
    let content_type = (CONTENT_TYPE, "text/javascript; charset=utf-8");
    ([content_type], include_str!("page.js"))
}

/// Answers at once. The stream goes on: it has subscriptions.
async fn events(
    State(hub): State<Hub>,
    Query(query): Query<Vec<(String, String)>>,
    sse: SseConnection,
) -> Result<()> {
    let topics = query.into_iter().filter(|(name, _)| name == "topic");
    let topics: Vec<String> = topics.map(|(_, topic)| topic).collect();
    if topics.is_empty() {
        let text = "name at least one topic, as in /events?topic=news";
        return Err((StatusCode::BAD_REQUEST, text).into());
    }
    hub.broker.subscribe(&sse, topics).await?.start();
    Ok(())
}

#[derive(Deserialize)]
struct Publish {
    /// Without a name it is a `message`, as clients have it.
    #[serde(default)]
    event: String,
}

async fn publish(
    State(hub): State<Hub>,
    Path(topic): Path<String>,
    Query(Publish { event }): Query<Publish>,
    body: Result<String, StringRejection>,
) -> Result<Json<Value>> {
    let text = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let text = format!("the body is too long: at most {MAX_BODY} bytes are published");
            (StatusCode::PAYLOAD_TOO_LARGE, text)
        }
        status => (status, error.body_text()),
    })?;
    // What is the server's mistake elsewhere is the client's here: the name is what it asks for.
    let event =
        Event::new(&event, text).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    let position = hub.broker.publish(topic, event).await?;
    Ok(Json(json!({ "id": position.to_string() })))
}

async fn add_topic(
    State(hub): State<Hub>,
    Path((uuid, topic)): Path<(String, String)>,
) -> Result<StatusCode> {
    let sse = hub.connection(&uuid)?;
    hub.broker.subscribe(&sse, topic).await?.start();
    Ok(StatusCode::NO_CONTENT)
}

/// With its last topic the stream ends.
async fn remove_topic(
    State(hub): State<Hub>,
    Path((uuid, topic)): Path<(String, String)>,
) -> Result<StatusCode> {
    let sse = hub.connection(&uuid)?;
    hub.broker.unsubscribe(&sse, topic)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn cut(State(hub): State<Hub>, Path(uuid): Path<String>) -> Result<StatusCode> {
    hub.connection(&uuid)?.close();
    Ok(StatusCode::NO_CONTENT)
}

impl Hub {
    fn new(options: Options, broker: Broker) -> Self {
        Self {
            broker,
            connections: Connections::new(),
            recorder: Arc::new(PrometheusBuilder::new().build_recorder()),
            is_ready: Arc::new(AtomicBool::new(true)),
            options,
        }
    }

    fn connection(&self, uuid: &str) -> Result<SseConnection, (StatusCode, &'static str)> {
        let sse = uuid.parse().ok();
        let sse = sse.and_then(|uuid| self.connections.get(&uuid));
        let text = "no connection has this uuid: it may have ended";
        sse.ok_or((StatusCode::NOT_FOUND, text))
    }
}

async fn broker(options: &Options) -> Result<Broker, Box<dyn Error>> {
    let history = History::default().events(options.history);
    let builder = Broker::builder().history(history);
    Ok(match &options.log {
        Log::Memory => builder.in_memory(),
        #[cfg(feature = "nats")]
        Log::Nats(url) => builder.build(JetStream::connect(url).await?),
        #[cfg(feature = "redis")]
        Log::Redis(url) => builder.build(RedisStreams::connect(url).await?),
    })
}

async fn run() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(std::env::args().skip(1))?;
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    let broker = broker(&options).await?;
    let hub = Hub::new(options, broker);
    println!("Open http://{}", listener.local_addr()?);
    match serve(listener, hub, signal).await? {
        Stopped::Finished => println!("Stopped."),
        Stopped::Unfinished => println!("Stopped, with requests left."),
        Stopped::AtOnce => println!("Stopped at once."),
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(error) = run().await {
        eprintln!("hub: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests;
