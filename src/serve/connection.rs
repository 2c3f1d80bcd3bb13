//! One connection, from its first bytes to its end.
//!
//! 1. The first bytes tell HTTP/2 (its preface) from HTTP/1.1. hyper then serves it; what was read
//!    ahead comes first.
//! 2. Over HTTP/1.1 a response whose body is a stream may leave hyper: see `leaving`. hyper writes
//!    the head and the first frame together, and then its body stays pending. Once that is flushed,
//!    the socket is taken back, and hyper's buffers are freed.
//! 3. After a clean end the socket begins anew with 1.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tower_service::Service;

use super::{
    direct::{Direct, Left},
    groups::Groups,
    io::Io,
    leaving::{Door, ServedBody},
    settings::Settings,
    shutdown::{Phase, Watcher},
};
use crate::BoxError;

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The address of a request's peer, in the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr<A>(pub A);

/// What a connection needs, besides its socket.
pub(super) struct Site<S, A> {
    pub(super) service: S,
    pub(super) settings: Arc<Settings>,
    pub(super) groups: Arc<Groups>,
    pub(super) addr: A,
    pub(super) watcher: Watcher,
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<S, A, B> Site<S, A>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    A: Clone + Send + Sync + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    /// Serves a socket until it is closed, or until a stream takes it.
    pub(super) fn serve<Sock, H>(mut self, handshake: H) -> Task
    where
        H: Future<Output = io::Result<Sock>> + Send + 'static,
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Box::pin(async move {
            let time = self.settings.header_read_timeout;
            let handshake = timeout(time, handshake);
            let Some(Ok(Ok(socket))) = self.watcher.unless(Phase::Finishing, handshake).await
            else {
                return;
            };
            let io = Io::new(socket, Bytes::new(), self.settings.write_deadline);
            self.serve_io(io).await;
        })
    }

    /// Serves a socket, also one that was used before. In a box, since it is much larger than the
    /// task that waits for the next request.
    fn serve_io<Sock>(mut self, mut io: Io<Sock>) -> Task
    where
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Box::pin(async move {
            let time = self.settings.header_read_timeout;
            let first = timeout(time, read_ahead(&mut io));
            let Some(Ok(Ok(is_http2))) = self.watcher.unless(Phase::Finishing, first).await else {
                return;
            };
            if is_http2 {
                Box::pin(self.http2(io)).await;
            } else if let Some((direct, closes)) = Box::pin(self.http1(io)).await {
                let groups = Arc::clone(&self.groups);
                let watcher = self.watcher.clone();
                groups.drive(Box::pin(self.stream(direct, closes)), &watcher);
            }
        })
    }

    /// Serves HTTP/1.1 until the socket is closed, or leaves with a stream; tells then whether the
    /// socket is to be closed behind it.
    async fn http1<Sock>(&mut self, io: Io<Sock>) -> Option<(Direct<Sock, B>, bool)>
    where
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let door = Door::new(io.flushed(), self.settings.direct);
        let service = self.answerer(door.clone());
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.settings.header_read_timeout)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let mut next = Phase::Finishing;
        loop {
            let mut reached = pin!(self.watcher.reached(next));
            let turn = poll_fn(|cx| {
                if Pin::new(&mut connection).poll(cx).is_ready() {
                    return Poll::Ready(Turn::Done);
                }
                if door.is_open() {
                    return Poll::Ready(Turn::Leave);
                }
                reached.as_mut().poll(cx).map(|()| Turn::Reached)
            });
            match turn.await {
                Turn::Done => return None,
                Turn::Leave => break,
                Turn::Reached if next == Phase::Finishing => {
                    Pin::new(&mut connection).graceful_shutdown();
                    next = Phase::Over;
                }
                Turn::Reached => return None,
            }
        }
        let leaver = door.leave()?;
        let parts = connection.into_parts()?;
        let mut io = parts.io.into_inner();
        // Copied, since it would keep all of hyper's buffer for as long as the stream is open.
        io.put_back(Bytes::copy_from_slice(&parts.read_buf));
        Some((Direct::new(io, leaver.reader, leaver.body), leaver.closes))
    }

    async fn http2<Sock>(&mut self, io: Io<Sock>)
    where
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = self.answerer(Door::closed());
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.settings.max_concurrent_streams)
            .keep_alive_interval(self.settings.http2_keep_alive)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        for next in [Phase::Finishing, Phase::Over] {
            let served = self.watcher.unless(next, connection.as_mut()).await;
            if served.is_some() {
                return;
            }
            connection.as_mut().graceful_shutdown();
        }
    }

    fn answerer(&self, door: Door<B>) -> Answerer<S, A, B> {
        Answerer {
            service: Box::new(self.service.clone()),
            addr: Arc::new(self.addr.clone()),
            door,
        }
    }

    /// Drives a stream on its socket, and then uses the socket again, or closes it.
    async fn stream<Sock>(self, direct: Direct<Sock, B>, closes: bool)
    where
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Its group sees to the last phase.
        let Left::Clean(mut io) = direct.await else {
            return;
        };
        if closes || self.watcher.phase() != Phase::Running {
            // Whatever comes of it, the socket is closed.
            let _ = io.shutdown().await;
        } else {
            tokio::spawn(self.serve_io(*io));
        }
    }
}

enum Turn {
    Done,
    Leave,
    Reached,
}

/// The service as hyper calls it. What may not be moved about is in boxes.
struct Answerer<S, A, B> {
    service: Box<S>,
    addr: Arc<A>,
    door: Door<B>,
}

impl<S, A, B> hyper::service::Service<Request<Incoming>> for Answerer<S, A, B>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    A: Clone + Send + Sync + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    type Response = Response<ServedBody<B>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let pass = self.door.pass(&request);
        let mut service = S::clone(&self.service);
        let addr = PeerAddr(A::clone(&self.addr));
        request.extensions_mut().insert(addr);
        Box::pin(async move {
            let ready = poll_fn(|cx| service.poll_ready(cx)).await;
            ready.map_err(Into::into)?;
            let answered = service.call(request).await;
            let response = answered.map_err(Into::into)?;
            Ok(pass.response(response).await)
        })
    }
}

/// Reads as much as tells HTTP/2 from HTTP/1.1, and puts it back.
async fn read_ahead<S>(io: &mut Io<S>) -> io::Result<bool>
where
    S: AsyncRead + Unpin,
{
    let mut ahead = BytesMut::with_capacity(1024);
    let is_http2 = loop {
        let length = ahead.len().min(PREFACE.len());
        if ahead[..length] != PREFACE[..length] {
            break false;
        }
        if length == PREFACE.len() {
            break true;
        }
        if io.read_buf(&mut ahead).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    io.put_back(ahead.freeze());
    Ok(is_http2)
}
