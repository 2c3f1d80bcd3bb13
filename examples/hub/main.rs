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
//!
//! `--listen ADDR` sets the address, 127.0.0.1:3000 without it; `--history N` how many events of
//! each topic are kept for those who come back, 1000 without it. With `--redis URL` all hubs that
//! name the same Redis server are one: what is published on one reaches the streams of all, and a
//! client may come back to any. So it is with `--nats URL` and a NATS server with JetStream.
//!
//! Whoever reaches the server may do all this. A program with users looks first who asks.

use std::{error::Error, net::SocketAddr, process::ExitCode};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State, rejection::StringRejection},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{Html, IntoResponse, Result},
    routing::{delete, get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_sse::{
    Broker, Connections, Event, SseConnection, SseLayer,
    backplane::{nats::JetStream, redis::RedisStreams},
    broker::History,
};

/// The longest body that is published.
const MAX_BODY: usize = 64 * 1024;

const USAGE: &str = "usage: hub [--listen ADDR] [--history N] [--redis URL | --nats URL]";

#[derive(Clone)]
struct Hub {
    broker: Broker,
    connections: Connections,
    history: usize,
}

/// Where the log is.
#[derive(Debug, PartialEq)]
enum Log {
    Memory,
    Nats(String),
    Redis(String),
}

impl Log {
    async fn broker(&self, history: usize) -> Result<Broker, Box<dyn Error>> {
        let builder = Broker::builder().history(History::default().events(history));
        Ok(match self {
            Self::Memory => builder.in_memory(),
            Self::Nats(url) => builder.build(JetStream::connect(url).await?),
            Self::Redis(url) => builder.build(RedisStreams::connect(url).await?),
        })
    }
}

fn app(broker: Broker, history: usize) -> Router {
    let connections = Connections::new();
    let sse = SseLayer::new("/events")
        .registry(&connections)
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
        .route("/stats", get(stats))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(sse)
        .with_state(Hub {
            broker,
            connections,
            history,
        })
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
    hub.broker.subscribe(&sse, topics).await?.live();
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
    hub.broker.subscribe(&sse, topic).await?.live();
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

async fn stats(State(hub): State<Hub>) -> Json<Value> {
    Json(json!({
        "connections": hub.connections.len(),
        "topics": hub.broker.topics(),
        "published": hub.broker.encodings(),
        "history": hub.history,
    }))
}

impl Hub {
    fn connection(&self, uuid: &str) -> Result<SseConnection, (StatusCode, &'static str)> {
        let sse = uuid.parse().ok();
        let sse = sse.and_then(|uuid| self.connections.get(&uuid));
        let text = "no connection has this uuid: it may have ended";
        sse.ok_or((StatusCode::NOT_FOUND, text))
    }
}

#[derive(Debug)]
struct Options {
    listen: SocketAddr,
    history: usize,
    log: Log,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            history: 1000,
            log: Log::Memory,
        };
        while let Some(name) = args.next() {
            let value = args.next();
            match (name.as_str(), value.as_deref()) {
                ("--listen", Some(value)) => {
                    let listen = value.parse();
                    options.listen = listen
                        .map_err(|_| format!("{value} is no address, as 127.0.0.1:3000 is"))?;
                }
                ("--history", Some(value)) => {
                    let history = value.parse().ok().filter(|events| *events > 0);
                    options.history =
                        history.ok_or_else(|| format!("{value} is no number from 1 on"))?;
                }
                ("--nats", Some(url)) => options.log = Log::Nats(url.to_owned()),
                ("--redis", Some(url)) => options.log = Log::Redis(url.to_owned()),
                ("--listen" | "--history" | "--nats" | "--redis", None) => {
                    return Err(format!("{name} needs a value; {USAGE}"));
                }
                _ => return Err(format!("{name} is unknown; {USAGE}")),
            }
        }
        Ok(options)
    }
}

async fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    let broker = options.log.broker(options.history).await?;
    println!("Open http://{}", listener.local_addr()?);
    axum::serve(listener, app(broker, options.history)).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => serve(options).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = outcome {
        eprintln!("hub: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests;
