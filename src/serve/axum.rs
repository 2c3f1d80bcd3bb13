//! The listener for `axum::serve`.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{Io, TcpListener, backoff::Backoff};

/// With feature "axum-serve". What is set for the sockets holds there too, and [`Io`] keeps the
/// [`write_deadline`](TcpListener::write_deadline). The peer's address is not axum's `ConnectInfo`,
/// which is for tokio's own listener.
///
/// ```no_run
/// use axum::Router;
/// use tower_sse::serve::TcpListener;
///
/// async fn run(app: Router) -> std::io::Result<()> {
///     let listener = TcpListener::bind("0.0.0.0:3000").await?;
///     axum::serve(listener, app).await
/// }
/// ```
impl axum::serve::Listener for TcpListener {
    type Io = Io<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io<TcpStream>, SocketAddr) {
        let mut pauses = Backoff::default();
        loop {
            match self.accept_stream().await {
                Ok((stream, addr)) => {
                    let io = Io::new(stream, Bytes::new(), self.deadline_of_writes());
                    return (io, addr);
                }
                Err(error) => pauses.failed(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}
