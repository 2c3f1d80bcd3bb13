//! An application whose streams the test holds: their connections come out of a channel.

use crate::Held;
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    routing::{any, get},
};
use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tower_sse::{
    Connections, Event, SseConnection, SseLayer, layer::Welcome, test_util::DirectProbe,
};

use super::{raw::Raw, until, within};

/// `/events` for streams that begin with "hello", and `/plain` for a short answer.
pub struct Streams {
    pub router: Router,
    pub connections: Connections,
    opened: mpsc::Receiver<SseConnection>,
    bodies: Arc<Bodies>,
}

/// What a layer outside sees of the response bodies.
#[derive(Default)]
struct Bodies {
    polls: AtomicUsize,
    probes: Mutex<Vec<DirectProbe>>,
    alive: AtomicUsize,
}

struct Watched {
    inner: Body,
    bodies: Arc<Bodies>,
    change: Change,
}

/// What a layer outside does to a response.
#[derive(Clone, Copy, PartialEq)]
pub enum Change {
    Nothing,
    /// Copies each frame to another place.
    Frames,
    /// Says that it is compressed.
    Encoding,
    Status,
    Length,
}

pub const GET: &str = "GET /events HTTP/1.1\r\nhost: a\r\n";

impl Streams {
    pub fn new(layer: SseLayer) -> Self {
        Self::changed(layer, Change::Nothing)
    }

    /// With a layer outside that does this.
    pub fn changed(layer: SseLayer, change: Change) -> Self {
        let layer = layer
            .welcome(Welcome::new(|_| Event::message("hello")))
            .retry(None);
        Self::with(layer, change, false)
    }

    /// With a handler that may go on until its stream is closed, and a layer that has its own
    /// beginning.
    pub fn with(layer: SseLayer, change: Change, runs_on: bool) -> Self {
        let connections = layer.registered().clone();
        let (sender, opened) = mpsc::channel(1000);
        let bodies = Arc::new(Bodies::default());
        let handler = move |sse: SseConnection| {
            sender.try_send(sse.clone()).unwrap();
            async move {
                if runs_on {
                    sse.start();
                    sse.closed().await;
                }
            }
        };
        let watch = {
            let bodies = Arc::clone(&bodies);
            move |request: Request, next: Next| {
                let bodies = Arc::clone(&bodies);
                bodies
                    .probes()
                    .extend(DirectProbe::of(request.extensions()));
                async move {
                    let mut response: Response = next.run(request).await;
                    change.of_head(&mut response);
                    bodies.alive.fetch_add(1, SeqCst);
                    response.map(|inner| {
                        Body::new(Watched {
                            inner,
                            bodies,
                            change,
                        })
                    })
                }
            }
        };
        let router = Router::new()
            .route("/events", any(handler))
            .layer(layer)
            .route("/plain", get(|| async { "plain" }))
            .layer(from_fn(watch));
        Self {
            router,
            connections,
            opened,
            bodies,
        }
    }

    /// The next stream's connection.
    pub async fn next(&mut self) -> SseConnection {
        within("a request", self.opened.recv()).await.unwrap()
    }

    /// Asks for a stream, and reads its beginning.
    pub async fn open<S>(&mut self, client: &mut Raw<S>) -> SseConnection
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        client.send(GET).await;
        let sse = self.next().await;
        client.stream_head().await;
        assert_eq!(client.event().await.unwrap().data, "hello");
        sse
    }

    /// How many responses are direct streams, or were.
    pub fn direct(&self) -> usize {
        let probes = self.bodies.probes();
        probes.iter().filter(|probe| probe.is_direct()).count()
    }

    /// How often response bodies were polled.
    pub fn polls(&self) -> usize {
        self.bodies.polls.load(SeqCst)
    }

    /// How many response bodies there are.
    pub fn alive(&self) -> usize {
        self.bodies.alive.load(SeqCst)
    }

    /// Waits until nothing is left of any stream.
    pub async fn gone(&self) {
        until("the bodies to be dropped", || {
            self.bodies.alive.load(SeqCst) == 0
        })
        .await;
        until("no connection to be left", || self.connections.held() == 0).await;
    }
}

impl Bodies {
    fn probes(&self) -> MutexGuard<'_, Vec<DirectProbe>> {
        self.probes.lock().unwrap()
    }
}

impl Change {
    fn of_head(self, response: &mut Response) {
        let headers = response.headers_mut();
        match self {
            Self::Nothing | Self::Frames => {}
            Self::Encoding => {
                headers.insert("content-encoding", "identity".parse().unwrap());
            }
            Self::Length => {
                headers.insert("content-length", "1000000".parse().unwrap());
            }
            Self::Status => *response.status_mut() = StatusCode::NON_AUTHORITATIVE_INFORMATION,
        }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.bodies.polls.fetch_add(1, SeqCst);
        let copies = self.change == Change::Frames;
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        frame.map_ok(|frame| match frame.into_data() {
            Ok(data) if copies => Frame::data(Bytes::copy_from_slice(&data)),
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.bodies.alive.fetch_sub(1, SeqCst);
    }
}
