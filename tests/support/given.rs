//! A server of sockets that are not the system's.

use std::{
    future::{IntoFuture, Ready, pending, ready},
    io,
};

use axum::Router;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tower_sse::serve::{Listener, Serve, serve};

/// Where sockets come from that are not the system's.
pub struct Given<S>(mpsc::Receiver<io::Result<S>>);

impl<S> Listener for Given<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Io = S;
    type Handshake = Ready<io::Result<S>>;
    type Addr = ();

    async fn accept(&mut self) -> io::Result<(Self::Handshake, ())> {
        let Some(socket) = self.0.recv().await else {
            return pending().await;
        };
        Ok((ready(Ok(socket?)), ()))
    }
}

/// A server of these sockets, for as long as the test runs.
pub fn given<S>(router: Router) -> mpsc::Sender<io::Result<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    given_with(router, |serve| serve)
}

/// The same, set up by this.
pub fn given_with<S>(
    router: Router,
    set_up: impl FnOnce(Serve<Given<S>, Router>) -> Serve<Given<S>, Router>,
) -> mpsc::Sender<io::Result<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sockets, accepted) = mpsc::channel(100);
    let served = set_up(serve(Given(accepted), router));
    tokio::spawn(served.into_future());
    sockets
}
