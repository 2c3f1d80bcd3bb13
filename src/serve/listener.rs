//! Where connections come from.

use std::{
    fmt,
    future::{Future, Ready, ready},
    io,
    net::SocketAddr,
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream, ToSocketAddrs, lookup_host},
};

use super::Io;

/// Where a server's connections come from: sockets of any kind, with any handshake.
///
/// [`TcpListener`] is one, and so is tokio's own.
pub trait Listener: Send + 'static {
    /// A connection, ready to be read and written.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What makes one of an accepted socket: it runs in the connection's own task, so that a slow
    /// client does not hold up others.
    type Handshake: Future<Output = io::Result<Self::Io>> + Send + 'static;
    /// The address of a peer.
    type Addr: Clone + Send + Sync + 'static;

    /// Waits for the next connection.
    ///
    /// An error concerns one connection, or is one that passes (too many open files): the server
    /// calls again, after a pause that grows.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Handshake, Self::Addr)>> + Send;
}

/// A TCP listener whose sockets are set up for event streams.
///
/// Each connection has `TCP_NODELAY`, since an event is to go out at once, and on Linux
/// `TCP_USER_TIMEOUT`: a peer that acknowledges nothing of what is sent for 30 seconds is given up;
/// and `TCP_NOTSENT_LOWAT`: the system holds about 16 KiB that a slow peer has no room for, where
/// it would hold megabytes, so the server sees soon that a client has stopped reading, and also that
/// a slow one still reads.
/// The backlog is 4,096, so that many clients may come back at once (with tokio's 128, 10,000 of
/// them waited for up to 9.5 seconds).
///
/// It serves for [`serve`](super::serve()) and, with feature "axum-serve", for `axum::serve` as it
/// is; [`into_tokio`](Self::into_tokio) gives a listener for any other server, with the same sockets
/// on Linux, where they inherit what is set on their listener.
pub struct TcpListener {
    inner: tokio::net::TcpListener,
    settings: SocketSettings,
}

#[derive(Clone, Copy, Debug)]
struct SocketSettings {
    user_timeout: Option<Duration>,
    keep_alive: Option<Duration>,
    #[cfg(feature = "axum-serve")]
    write_deadline: Option<Duration>,
}

/// How much the system holds that it could not send yet. It takes more when half of this is left, so
/// that is what a slow peer has to take within the write deadline. By default it would be a third of
/// some megabytes.
#[cfg(target_os = "linux")]
const MOST_UNSENT: u32 = 16 * 1024;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 4096;

impl TcpListener {
    /// Listens on the first of these addresses that can be bound.
    ///
    /// # Errors
    ///
    /// If an address cannot be resolved, or none can be bound.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        let mut last = None;
        for addr in lookup_host(addr).await? {
            match Self::bind_to(addr, BACKLOG) {
                Ok(listener) => return Ok(listener),
                Err(error) => last = Some(error),
            }
        }
        let none = || io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on");
        Err(last.unwrap_or_else(none))
    }

    /// Listens on this address, with so many connections that may wait to be accepted. The system
    /// may have a lower bound of its own (`net.core.somaxconn`).
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn bind_to(addr: SocketAddr, backlog: u32) -> io::Result<Self> {
        let socket = if addr.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // Without it a restart has to wait for the old connections' sockets. Elsewhere than on Unix
        // it would let two servers share a port.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        let settings = SocketSettings::default();
        // Before anybody can connect: what waits to be accepted has inherited it already.
        settings.set(&SockRef::from(&socket));
        let inner = socket.listen(backlog)?;
        Ok(Self { inner, settings })
    }

    /// Sets for how long a peer may leave unacknowledged what was sent: 30 seconds by default, none
    /// for the system's own (a quarter of an hour). It acts on Linux alone.
    pub fn user_timeout(mut self, time: Option<Duration>) -> Self {
        self.settings.user_timeout = time;
        self.set_listener();
        self
    }

    /// Has the system ask a silent peer, from this time of silence on, whether it is still there
    /// (`SO_KEEPALIVE`). Off by default: heartbeats find a peer that has vanished as well.
    pub fn keep_alive(mut self, time: Option<Duration>) -> Self {
        self.settings.keep_alive = time;
        self.set_listener();
        self
    }

    /// Under `axum::serve`, closes a connection whose peer has taken nothing for this long, though
    /// something is to be written: 30 seconds by default, none for no bound. ([`Serve`] has a setting
    /// of its own.)
    ///
    /// [`Serve`]: super::Serve::write_deadline
    #[cfg(feature = "axum-serve")]
    #[cfg_attr(docsrs, doc(cfg(feature = "axum-serve")))]
    pub fn write_deadline(mut self, time: Option<Duration>) -> Self {
        self.settings.write_deadline = time;
        self
    }

    #[cfg(feature = "axum-serve")]
    pub(super) fn deadline_of_writes(&self) -> Option<Duration> {
        self.settings.write_deadline
    }

    pub(super) async fn accept_stream(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, addr) = self.inner.accept().await?;
        // On Linux it has all of that from its listener: four calls saved for each connection.
        if !cfg!(target_os = "linux") {
            self.settings.set(&SockRef::from(&stream));
        }
        Ok((stream, addr))
    }

    /// The address that this listens on.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// The listener alone, for another server.
    pub fn into_tokio(self) -> tokio::net::TcpListener {
        self.inner
    }

    /// Sockets inherit it, on Linux. Elsewhere each is set up by itself when it is accepted.
    fn set_listener(&self) {
        self.settings.set(&SockRef::from(&self.inner));
    }
}

/// A listener that was made elsewhere. On Linux, connections that wait in it already are not set up:
/// sockets have what their listener had when they came.
impl From<tokio::net::TcpListener> for TcpListener {
    fn from(inner: tokio::net::TcpListener) -> Self {
        let settings = SocketSettings::default();
        let listener = Self { inner, settings };
        listener.set_listener();
        listener
    }
}

impl Default for SocketSettings {
    fn default() -> Self {
        Self {
            user_timeout: Some(Duration::from_secs(30)),
            keep_alive: None,
            #[cfg(feature = "axum-serve")]
            write_deadline: Some(Duration::from_secs(30)),
        }
    }
}

impl SocketSettings {
    /// Sets what can be set. A socket without it serves as well, if not as fast; and one that fails
    /// here because its peer is gone already fails again when it is read.
    fn set(self, socket: &SockRef<'_>) {
        let _ = socket.set_tcp_nodelay(true);
        #[cfg(target_os = "linux")]
        {
            let _ = socket.set_tcp_user_timeout(self.user_timeout);
            let _ = socket.set_tcp_notsent_lowat(MOST_UNSENT);
        }
        let _ = match self.keep_alive {
            Some(time) => socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time)),
            None => socket.set_keepalive(false),
        };
    }
}

impl Listener for TcpListener {
    type Io = TcpStream;
    type Handshake = Ready<io::Result<TcpStream>>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> io::Result<(Self::Handshake, SocketAddr)> {
        let (stream, addr) = self.accept_stream().await?;
        Ok((ready(Ok(stream)), addr))
    }
}

impl Listener for tokio::net::TcpListener {
    type Io = TcpStream;
    type Handshake = Ready<io::Result<TcpStream>>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> io::Result<(Self::Handshake, SocketAddr)> {
        let (stream, addr) = Self::accept(self).await?;
        Ok((ready(Ok(stream)), addr))
    }
}

#[cfg(unix)]
impl Listener for tokio::net::UnixListener {
    type Io = tokio::net::UnixStream;
    type Handshake = Ready<io::Result<tokio::net::UnixStream>>;
    type Addr = std::sync::Arc<tokio::net::unix::SocketAddr>;

    async fn accept(&mut self) -> io::Result<(Self::Handshake, Self::Addr)> {
        let (stream, addr) = Self::accept(self).await?;
        Ok((ready(Ok(stream)), std::sync::Arc::new(addr)))
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener")
            .field("inner", &self.inner)
            .field("settings", &self.settings)
            .finish()
    }
}

/// A listener with a handshake, as that of TLS: see [`with_handshake`].
pub struct Handshaking<L, F> {
    listener: L,
    handshake: F,
}

/// A listener whose sockets go through a handshake, each in its connection's own task.
///
/// The handshake is given each socket as an [`Io`], by which the server's [write deadline] sees what
/// the peer takes beneath TLS. (A [`Listener`] of another kind, whose `Io` holds back what it was
/// given to write, may look as if its peer took nothing.)
///
/// [write deadline]: super::Serve::write_deadline
///
/// # Example
///
/// ```
/// use std::sync::Arc;
/// use tower_sse::serve::{Listener, TcpListener, with_handshake};
/// use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
///
/// fn tls(listener: TcpListener, config: Arc<ServerConfig>) -> impl Listener {
///     // `config.alpn_protocols` says whether clients may have HTTP/2.
///     let acceptor = TlsAcceptor::from(config);
///     with_handshake(listener, move |socket| acceptor.accept(socket))
/// }
/// ```
pub fn with_handshake<L, F, Fut, Sock>(listener: L, handshake: F) -> Handshaking<L, F>
where
    L: Listener,
    F: Fn(Io<L::Io>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = io::Result<Sock>> + Send + 'static,
    Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Handshaking {
        listener,
        handshake,
    }
}

impl<L, F, Fut, Sock> Listener for Handshaking<L, F>
where
    L: Listener,
    F: Fn(Io<L::Io>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = io::Result<Sock>> + Send + 'static,
    Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Io = Sock;
    type Handshake = std::pin::Pin<Box<dyn Future<Output = io::Result<Sock>> + Send>>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> io::Result<(Self::Handshake, L::Addr)> {
        let (socket, addr) = self.listener.accept().await?;
        let handshake = self.handshake.clone();
        let both = async move {
            let socket = socket.await?;
            let shaken = handshake(Io::beneath(socket));
            drop(handshake);
            shaken.await
        };
        Ok((Box::pin(both), addr))
    }
}

impl<L: fmt::Debug, F> fmt::Debug for Handshaking<L, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshaking")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}
