//! One connection, from its first bytes to its end.
//!
//! 1. The first bytes tell HTTP/2 (its preface) from HTTP/1.1. hyper then serves it; what was read
//!    ahead comes first.
//! 2. Over HTTP/1.1 a response whose body is a stream may leave hyper: see `handoff`. The socket is
//!    taken back, and hyper's buffers are freed. A stream in which no application code runs joins a
//!    driver; any other is driven here, until that is so.
//! 3. After a clean end the socket goes to another connection of hyper's, for HTTP/1.1.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::Poll,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tower_service::Service;

use super::{
    direct::{Direct, Left},
    drivers::Drivers,
    handoff::{Handoff, HandoffBody},
    in_flight::{Counted, Requests},
    io::Io,
    settings::ServerSettings,
    shutdown::{Phase, Watcher},
};
use crate::BoxError;

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much of a request's head is taken, and of a response's body ahead of a client that does not
/// read.
const MOST_BUFFERED: usize = 64 * 1024;

/// The address of a request's peer, in the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr<A>(pub A);

/// What a connection needs, besides its socket.
pub(super) struct Site<S, A> {
    pub(super) service: S,
    pub(super) settings: Arc<ServerSettings>,
    /// Not what keeps them: a stream in one of them has this.
    pub(super) drivers: Weak<Drivers>,
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
            let deadline = self.settings.write_deadline;
            let opening = timeout(self.settings.header_read_timeout, async {
                let mut io = Io::new(handshake.await?, Bytes::new(), deadline);
                let is_http2 = read_ahead(&mut io, is_preface).await?;
                io::Result::Ok((io, is_http2))
            });
            let opened = self.watcher.unless(Phase::Finishing, opening).await;
            let Some(Ok(Ok((io, is_http2)))) = opened else {
                return;
            };
            if is_http2 {
                Box::pin(self.http2(io)).await;
            } else {
                Box::pin(self.serve_http1(io)).await;
            }
        })
    }

    /// Serves a socket that was used before. In a box, since it is much larger than the task that
    /// waits for the next request.
    fn serve_again<Sock>(mut self, mut io: Io<Sock>) -> Task
    where
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Box::pin(async move {
            let time = self.settings.header_read_timeout;
            let next = timeout(time, read_ahead(&mut io, |_| Some(())));
            let next = self.watcher.unless(Phase::Finishing, next).await;
            if let Some(Ok(Ok(()))) = next {
                Box::pin(self.serve_http1(io)).await;
            }
        })
    }

    async fn serve_http1<Sock>(mut self, io: Io<Sock>)
    where
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // None: the server takes no new streams, and this connection had not begun by then.
        let drivers = self.drivers.upgrade();
        let left = Box::pin(self.http1(io, drivers.is_some())).await;
        if let (Some((direct, closes)), Some(drivers)) = (left, drivers) {
            // In boxes, as the stream is: the task of a connection that never leaves hyper has no
            // room for it.
            Box::pin(self.serve_stream(direct, closes, drivers)).await;
        }
    }

    /// Drives a stream that has left hyper: in this task for as long as application code runs in its
    /// body, together with others from then on.
    async fn serve_stream<Sock>(
        mut self,
        direct: Box<Direct<Sock, B>>,
        closes: bool,
        drivers: Arc<Drivers>,
    ) where
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let watcher = self.watcher.clone();
        match self.watcher.unless(Phase::Over, drive_alone(direct)).await {
            Some(Alone::Quiet(direct)) => {
                let stream = async move { self.stream_left(direct.await, closes).await };
                drivers.drive(Box::pin(stream), &watcher);
            }
            Some(Alone::Left(left)) => self.stream_left(left, closes).await,
            None => {}
        }
    }

    /// Serves HTTP/1.1 until the socket is closed, or leaves with a stream; tells then whether the
    /// socket is to be closed behind it.
    async fn http1<Sock>(
        &mut self,
        io: Io<Sock>,
        may_leave: bool,
    ) -> Option<(Box<Direct<Sock, B>>, bool)>
    where
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handoff = Handoff::new(io.flushed(), self.settings.direct && may_leave);
        let service = self.answerer(handoff.clone());
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.settings.header_read_timeout)
            .max_buf_size(MOST_BUFFERED)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let mut next = Phase::Finishing;
        loop {
            let mut reached = pin!(self.watcher.reached(next));
            let turn = poll_fn(|cx| {
                if Pin::new(&mut connection).poll(cx).is_ready() {
                    return Poll::Ready(Turn::Done);
                }
                if handoff.is_ready() {
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
        let leaver = handoff.leave()?;
        let parts = connection.into_parts()?;
        let mut io = parts.io.into_inner();
        // Copied, since it would keep all of hyper's buffer for as long as the stream is open.
        io.put_back(Bytes::copy_from_slice(&parts.read_buf));
        let direct = Box::new(Direct::new(io, leaver.body, leaver.link));
        Some((direct, leaver.closes))
    }

    async fn http2<Sock>(&mut self, io: Io<Sock>)
    where
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let requests = Requests::none();
        let time = self.settings.header_read_timeout;
        let (idle, idle_again) = (requests.rest(time), requests.rest(time));
        let service = CountingAnswerer {
            answerer: self.answerer(Handoff::none()),
            requests,
        };
        let connection = http2::Builder::new(Owned(self.watcher.clone()))
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.settings.max_concurrent_streams)
            .keep_alive_interval(self.settings.http2_keep_alive)
            .serve_connection(TokioIo::new(io), service);
        let (mut connection, mut idle) = (pin!(connection), pin!(idle));
        let mut watcher = self.watcher.clone();
        tokio::select! {
            _ = connection.as_mut() => return,
            () = watcher.reached(Phase::Finishing) => {}
            () = idle.as_mut() => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            // What has begun meanwhile is finished.
            _ = self.watcher.unless(Phase::Over, connection) => {}
            // The peer does not say that it has understood.
            () = idle_again => {}
        }
    }

    fn answerer(&self, handoff: Handoff<B>) -> Answerer<S, A, B> {
        Answerer {
            service: Box::new(self.service.clone()),
            addr: Arc::new(self.addr.clone()),
            handoff,
        }
    }

    /// Uses the socket of a stream again, or closes it.
    async fn stream_left<Sock>(self, left: Left<Sock>, closes: bool)
    where
        Sock: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Left::Clean(mut io) = left else {
            return;
        };
        if closes || self.watcher.phase() != Phase::Running {
            // Whatever comes of it, the socket is closed.
            let _ = io.shutdown().await;
        } else {
            tokio::spawn(self.serve_again(*io));
        }
    }
}

/// What has become of a stream that was driven alone.
enum Alone<S, B> {
    Left(Left<S>),
    /// No application code runs in it any more.
    Quiet(Box<Direct<S, B>>),
}

/// Drives a stream in the task of its connection, for as long as application code runs in its body:
/// that code must not hold up other streams.
async fn drive_alone<S, B>(mut direct: Box<Direct<S, B>>) -> Alone<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    if !direct.is_quiet() {
        let left = poll_fn(|cx| match Pin::new(&mut *direct).poll(cx) {
            Poll::Ready(left) => Poll::Ready(Some(left)),
            Poll::Pending if direct.is_quiet() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        if let Some(left) = left.await {
            return Alone::Left(left);
        }
        direct.leave_task();
    }
    Alone::Quiet(direct)
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
    handoff: Handoff<B>,
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
    type Response = Response<HandoffBody<B>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let pass = self.handoff.pass(&mut request);
        let mut service = S::clone(&self.service);
        let addr = PeerAddr(A::clone(&self.addr));
        request.extensions_mut().insert(addr);
        Box::pin(async move {
            let ready = poll_fn(|cx| service.poll_ready(cx)).await;
            ready.map_err(Into::into)?;
            let answered = service.call(request).await;
            let response = answered.map_err(Into::into)?;
            Ok(pass.response(response))
        })
    }
}

/// The same for HTTP/2, where it is not by the socket's silence that one sees an idle connection.
struct CountingAnswerer<S, A, B> {
    answerer: Answerer<S, A, B>,
    requests: Requests,
}

impl<S, A, B> hyper::service::Service<Request<Incoming>> for CountingAnswerer<S, A, B>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    A: Clone + Send + Sync + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    type Response = Response<Counted<HandoffBody<B>>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let counted = self.requests.begin();
        let answered = self.answerer.call(request);
        Box::pin(async { Ok(answered.await?.map(|body| Counted::new(body, counted))) })
    }
}

/// The tasks of an HTTP/2 connection, one for each request: they end with the server, which waits for
/// them.
#[derive(Clone)]
struct Owned(Watcher);

impl<F> Executor<F> for Owned
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let mut watcher = self.0.clone();
        tokio::spawn(async move {
            watcher.unless(Phase::Over, task).await;
        });
    }
}

/// Whether these are the first bytes of HTTP/2; None: they may be.
fn is_preface(bytes: &[u8]) -> Option<bool> {
    let length = bytes.len().min(PREFACE.len());
    if bytes[..length] != PREFACE[..length] {
        return Some(false);
    }
    (length == PREFACE.len()).then_some(true)
}

/// Waits for the first bytes, reads until they tell something, and puts them back.
async fn read_ahead<S, T>(io: &mut Io<S>, tells: impl Fn(&[u8]) -> Option<T>) -> io::Result<T>
where
    S: AsyncRead + Unpin,
{
    let mut ahead = BytesMut::with_capacity(1024);
    let told = loop {
        if io.read_buf(&mut ahead).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(told) = tells(&ahead) {
            break told;
        }
    };
    io.put_back(ahead.freeze());
    Ok(told)
}
