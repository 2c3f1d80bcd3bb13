//! The listener for `axum::serve`.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use tokio::{net::TcpStream, time::sleep};

use super::{FIRST_PAUSE, Io, LONGEST_PAUSE, TcpListener};

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
        let mut pause = Duration::ZERO;
        loop {
            if let Ok((stream, addr)) = self.accept_stream().await {
                return (
                    Io::new(stream, Bytes::new(), self.deadline_of_writes()),
                    addr,
                );
            }
            // Too many open files, most likely: what ends meanwhile gives some back.
            pause = (2 * pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            sleep(pause).await;
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}
