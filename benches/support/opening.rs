//! Servers of event streams to open, and a client that opens them. What they answer is alike: a
//! stream of one topic, whose first event comes at once.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    response::sse::{Event as AxumEvent, KeepAlive, Sse},
    routing::get,
};
use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::broadcast,
};
use tower_sse::{Broker, BrokerError, SseConnection, SseLayer, serve};

use crate::process::{self, Serves, cpu_time, joined, open_files, resident};

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The servers that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// The crate's own server, with direct streams.
    Direct,
    /// The crate's own server, with streams that stay in hyper.
    Hyper,
    /// axum's `Sse` on `axum::serve`, on a listener as tokio makes it.
    Axum,
}

impl Contender {
    const ALL: [Self; 3] = [Self::Direct, Self::Hyper, Self::Axum];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Hyper => "hyper",
            Self::Axum => "axum",
        }
    }
}

// ===== the servers =====

/// If this process is to be a server: is it, until the bench has gone.
pub(crate) fn serve_if_asked() -> bool {
    let Some(role) = process::role() else {
        return false;
    };
    let contender = Contender::ALL.into_iter().find(|it| it.name() == role);
    let contender = contender.expect("a contender's name");
    process::serve(|| Server::start(contender));
    true
}

struct Server;

impl Server {
    async fn start(contender: Contender) -> (Self, Vec<u16>) {
        let port = match contender {
            Contender::Axum => {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                let port = listener.local_addr().expect("an address").port();
                tokio::spawn(axum::serve(listener, axums()).into_future());
                port
            }
            Contender::Direct | Contender::Hyper => {
                let listener = serve::TcpListener::bind("127.0.0.1:0").await;
                let listener = listener.expect("a port");
                let port = listener.local_addr().expect("an address").port();
                let server = serve::serve(listener, ours());
                tokio::spawn(server.direct(contender == Contender::Direct).into_future());
                port
            }
        };
        (Self, vec![port])
    }
}

impl Serves for Server {
    async fn answer(&self, question: &str) -> String {
        match question {
            "resident" => resident().to_string(),
            "files" => open_files().to_string(),
            // In nanoseconds.
            "cpu" => joined([cpu_time().as_nanos()]),
            other => panic!("not a question: {other}"),
        }
    }
}

fn ours() -> Router {
    let broker = Broker::in_memory();
    let events = async move |sse: SseConnection| -> Result<(), BrokerError> {
        broker.subscribe(&sse, "ticks").await?.start();
        Ok(())
    };
    let layer = SseLayer::new("/events").keep_alive(KEEP_ALIVE);
    Router::new().route("/events", get(events)).layer(layer)
}

/// What an axum application does without this crate.
fn axums() -> Router {
    let (sender, _) = broadcast::channel::<String>(1024);
    let events = async move || {
        let later = stream::unfold(sender.subscribe(), async |mut events| {
            let text = events.recv().await.expect("no lag");
            Some((AxumEvent::default().event("tick").data(text), events))
        });
        let welcome = AxumEvent::default().event("welcome").data("{}");
        let events = stream::iter([welcome]).chain(later);
        Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
    };
    Router::new().route("/events", get(events))
}

// ===== the client =====

/// Opens a stream, and waits for its first event.
pub(crate) async fn open(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let mut stream = stream.expect("a connection");
    let request = b"GET /events HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
    stream.write_all(request).await.expect("a request");
    let mut answer = [0; 1024];
    let mut length = 0;
    loop {
        let read = stream.read(&mut answer[length..]).await.expect("an answer");
        assert!(read > 0, "no answer, or one that is too long");
        length += read;
        let answer = &answer[..length];
        // The end of an event, and of its chunk. No head has it.
        if answer.ends_with(b"\n\n\r\n") {
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "no stream");
            return stream;
        }
    }
}
