//! An application whose streams the test holds: their connections come out of a channel.

use std::{
    pin::Pin,
    sync::{
        Arc,
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
use http_body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tower_sse::{Connections, Event, SseConnection, SseLayer};

use super::{raw::Raw, until, within};

/// `/events` for streams that begin with "hello", and `/plain` for a short answer.
pub(crate) struct Streams {
    pub(crate) router: Router,
    pub(crate) connections: Connections,
    opened: mpsc::Receiver<SseConnection>,
    bodies: Arc<Bodies>,
}

/// What a layer outside sees of the response bodies.
#[derive(Default)]
struct Bodies {
    polls: AtomicUsize,
    alive: AtomicUsize,
}

struct Watched {
    inner: Body,
    bodies: Arc<Bodies>,
}

pub(crate) const GET: &str = "GET /events HTTP/1.1\r\nhost: a\r\n";

impl Streams {
    pub(crate) fn new(layer: SseLayer) -> Self {
        let layer = layer.welcome(|_| Event::message("hello")).without_retry();
        let connections = layer.connections().clone();
        let (sender, opened) = mpsc::channel(1000);
        let bodies = Arc::new(Bodies::default());
        let handler = move |sse: SseConnection| {
            sender.try_send(sse).unwrap();
            async {}
        };
        let watch = {
            let bodies = Arc::clone(&bodies);
            move |request: Request, next: Next| {
                let bodies = Arc::clone(&bodies);
                async move {
                    let response: Response = next.run(request).await;
                    bodies.alive.fetch_add(1, SeqCst);
                    response.map(|inner| Body::new(Watched { inner, bodies }))
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
    pub(crate) async fn next(&mut self) -> SseConnection {
        within("a request", self.opened.recv()).await.unwrap()
    }

    /// Asks for a stream, and reads its beginning.
    pub(crate) async fn open<S>(&mut self, client: &mut Raw<S>) -> SseConnection
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        client.send(GET).await;
        let sse = self.next().await;
        client.stream_head().await;
        assert_eq!(client.event().await.unwrap().data, "hello");
        sse
    }

    /// How often response bodies were polled: once for each stream that is direct.
    pub(crate) fn polls(&self) -> usize {
        self.bodies.polls.load(SeqCst)
    }

    /// How many response bodies there are.
    pub(crate) fn alive(&self) -> usize {
        self.bodies.alive.load(SeqCst)
    }

    /// Waits until nothing is left of any stream.
    pub(crate) async fn gone(&self) {
        until("the bodies to be dropped", || {
            self.bodies.alive.load(SeqCst) == 0
        })
        .await;
        until("no connection to be left", || self.connections.is_empty()).await;
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
        Pin::new(&mut self.inner).poll_frame(cx)
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
