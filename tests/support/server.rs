//! Servers on ports of their own, which end with the test.

use std::{
    future::{Future, IntoFuture},
    net::SocketAddr,
    pin::Pin,
};

use axum::Router;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::oneshot,
    task::{JoinHandle, JoinSet},
};
use tower::Service;
use tower_sse::BoxError;

use super::within;

/// A server. It is ended when this is dropped.
pub struct Server {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// The crate's own server.
pub type Ours = tower_sse::serve::Serve<tower_sse::serve::TcpListener, Router>;

/// Resolves when the server is asked to shut down.
pub type Stopped = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Which of hyper's servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hyper {
    Http1,
    Http2,
    Auto,
}

/// The server of a suite that runs on several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// `axum::serve`, or hyper's server for both versions.
    Axum,
    /// The crate's own server, with direct streams.
    Direct,
    /// The crate's own server, with streams left to hyper.
    Hyper,
}

/// Serves an application on a listener until the future is dropped.
pub async fn serve_chosen(choice: Choice, listener: TcpListener, app: Router) {
    let served = match choice {
        Choice::Axum => axum::serve(listener, app).await,
        Choice::Direct | Choice::Hyper => {
            let listener = tower_sse::serve::TcpListener::from(listener);
            tower_sse::serve::serve(listener, app)
                .direct(choice == Choice::Direct)
                .await
        }
    };
    served.unwrap();
}

impl Server {
    /// Runs what serves a listener until it is asked to stop.
    pub async fn start<F>(serve: impl FnOnce(TcpListener, Stopped) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), serve)
    }

    pub fn start_on<F>(listener: TcpListener, serve: impl FnOnce(TcpListener, Stopped) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let stopped = Box::pin(async {
            let _ = stopped.await;
        });
        Self {
            address,
            stop: Some(stop),
            task: tokio::spawn(serve(listener, stopped)),
        }
    }

    /// The chosen server, with its graceful shutdown.
    pub async fn chosen(choice: Choice, app: Router) -> Self {
        match choice {
            Choice::Axum => Self::axum(app).await,
            Choice::Direct => Self::ours(app, true).await,
            Choice::Hyper => Self::ours(app, false).await,
        }
    }

    /// `axum::serve`, with its graceful shutdown.
    pub async fn axum(app: Router) -> Self {
        Self::start(|listener, stopped| async {
            let serve = axum::serve(listener, app).with_graceful_shutdown(stopped);
            serve.await.unwrap();
        })
        .await
    }

    /// The crate's own server, with direct streams or without, and its graceful shutdown.
    pub async fn ours(app: Router, is_direct: bool) -> Self {
        Self::ours_with(app, move |serve| serve.direct(is_direct)).await
    }

    /// The crate's own server, set up by this.
    pub async fn ours_with(app: Router, set_up: impl FnOnce(Ours) -> Ours) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::ours_on(listener, app, set_up)
    }

    /// The same, with buffers in the kernel that are as small as they get.
    pub async fn ours_small(app: Router, set_up: impl FnOnce(Ours) -> Ours) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(1).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self::ours_on(socket.listen(128).unwrap(), app, set_up)
    }

    fn ours_on(listener: TcpListener, app: Router, set_up: impl FnOnce(Ours) -> Ours) -> Self {
        Self::start_on(listener, move |listener, stopped| {
            let serve = tower_sse::serve::serve(listener.into(), app);
            let serve = set_up(serve.with_graceful_shutdown(stopped)).into_future();
            async { serve.await.unwrap() }
        })
    }

    /// The chosen server if it may speak both versions, otherwise one of hyper's.
    pub async fn hyper_or<S, B>(choice: Choice, which: Hyper, service: S) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError> + Send,
    {
        if choice == Choice::Axum || which != Hyper::Auto {
            return Self::hyper(which, service).await;
        }
        Self::start(move |listener, stopped| async move {
            let listener = tower_sse::serve::TcpListener::from(listener);
            let serve = tower_sse::serve::serve(listener, service)
                .direct(choice == Choice::Direct)
                .with_graceful_shutdown(stopped);
            serve.await.unwrap();
        })
        .await
    }

    /// One of hyper's servers, with hyper-util's graceful shutdown.
    pub async fn hyper<S, B>(which: Hyper, service: S) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError> + Send,
    {
        let service = TowerToHyperService::new(service);
        Self::start(move |listener, mut stopped| async move {
            let graceful = GracefulShutdown::new();
            let mut tasks = JoinSet::new();
            loop {
                let socket = tokio::select! {
                    accepted = listener.accept() => TokioIo::new(accepted.unwrap().0),
                    () = &mut stopped => break,
                };
                let service = service.clone();
                // How a connection ends is what tests look at from the client's side.
                match which {
                    Hyper::Http1 => {
                        let builder = http1::Builder::new();
                        let served = graceful.watch(builder.serve_connection(socket, service));
                        tasks.spawn(async { drop(served.await) });
                    }
                    Hyper::Http2 => {
                        let builder = http2::Builder::new(TokioExecutor::new());
                        let served = graceful.watch(builder.serve_connection(socket, service));
                        tasks.spawn(async { drop(served.await) });
                    }
                    Hyper::Auto => {
                        let builder = auto::Builder::new(TokioExecutor::new());
                        let served = builder.serve_connection(socket, service).into_owned();
                        let served = graceful.watch(served);
                        tasks.spawn(async { drop(served.await) });
                    }
                }
            }
            drop(listener);
            graceful.shutdown().await;
        })
        .await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks the server to shut down, and does not wait for it.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until a server that was asked to shut down has done so.
    pub async fn finished(mut self) {
        within("the server to finish", &mut self.task)
            .await
            .unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
