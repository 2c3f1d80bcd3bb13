//! The path that the streams of a test take. They are response bodies; in `direct` they are
//! what the crate's own server makes of them, in memory: direct streams, wherever they may be.

use std::{
    cell::Cell,
    future::{Future, Ready, poll_fn, ready},
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Empty, Full};
use tokio::time::timeout;
use tower::{Layer, Service};
use tower_sse::{
    BoxError, Event, SseConnection, SseLayer,
    layer::SseBody,
    layer::Welcome,
    test_util::{self, EventReader, ReadError, WireBody},
};

/// Whether streams are direct wherever they may be.
pub fn is_direct() -> bool {
    if BODIES_ALONE.get() {
        return false;
    }
    super::IS_DIRECT
}

/// What a test that says something of bodies alone holds, on the thread on which it opens them.
#[must_use]
pub fn bodies_alone() -> impl Drop {
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            BODIES_ALONE.set(false);
        }
    }
    BODIES_ALONE.set(true);
    Guard
}

thread_local! {
    static BODIES_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// How many responses were read, or dropped, as direct streams; and how many otherwise.
pub fn count() -> (usize, usize) {
    (DIRECT.load(SeqCst), OTHERS.load(SeqCst))
}

/// How long a service may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

static DIRECT: AtomicUsize = AtomicUsize::new(0);
static OTHERS: AtomicUsize = AtomicUsize::new(0);

/// A layer whose streams have no welcome. One that gives nothing when it is polled first stays a
/// body: so there is a beginning, which readers do not see, where streams are to be direct. It
/// counts as an event.
pub fn without_welcome(layer: SseLayer) -> SseLayer {
    if is_direct() {
        layer.welcome(Welcome::new(|_| beginning()))
    } else {
        layer.welcome(None)
    }
}

fn beginning() -> Event {
    Event::comment("the beginning of a direct stream")
}

/// Calls a service.
pub fn call<S, R, B>(
    mut service: S,
    request: Request<R>,
) -> impl Future<Output = Result<Response<Either<OnWire<B>, B>>, S::Error>> + use<S, R, B>
where
    S: Service<Request<R>, Response = Response<B>>,
    R: Asks,
    B: Body<Data = Bytes>,
{
    let called = if is_direct() {
        let mut served = test_util::served(Asked(service));
        Either::Left(served.call(request.map(Asked)))
    } else {
        Either::Right(service.call(request))
    };
    async {
        Ok(match called {
            Either::Left(called) => called.await?.map(|body| Either::Left(OnWire::new(body))),
            Either::Right(called) => called.await?.map(Either::Right),
        })
    }
}

/// As [`call`], with the events to read.
pub async fn read<S, R, B>(
    mut service: S,
    request: Request<R>,
) -> Result<Response<EventReader>, S::Error>
where
    S: Service<Request<R>, Response = Response<B>>,
    R: Asks,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    poll_fn(|cx| service.poll_ready(cx)).await?;
    Ok(call(service, request).await?.map(EventReader::new))
}

// ===== as in the library's kit =====

pub async fn open<S, R, B>(
    service: S,
    request: Request<R>,
) -> Result<Response<EventReader>, ReadError>
where
    S: Service<Request<R>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    R: Asks,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    if !is_direct() {
        return test_util::open(service, request).await;
    }
    let answered = timeout(LIMIT, read(service, request)).await;
    let response = answered.map_err(|_| ReadError::TimedOut(LIMIT))?;
    response.map_err(|error| ReadError::Broken(error.into()))
}

pub async fn connection() -> (SseConnection, EventReader) {
    connection_of(&SseLayer::any_path(), Request::default()).await
}

pub async fn connection_of(layer: &SseLayer, request: Request<()>) -> (SseConnection, EventReader) {
    if !is_direct() {
        return test_util::connection_of(layer, request).await;
    }
    let (sse, mut body) = captured(layer, request).await;
    if let Either::Left(body) = &mut body {
        body.begin();
    }
    (sse, EventReader::new(body))
}

/// As [`connection_of`], with a body that has not been polled on any path.
pub async fn connection_untouched(
    layer: &SseLayer,
    request: Request<()>,
) -> (SseConnection, EventReader) {
    let (sse, body) = captured(layer, request).await;
    (sse, EventReader::new(body))
}

type Captured = SseBody<Empty<Bytes>, Ready<Result<Response<Empty<Bytes>>, BoxError>>>;

async fn captured(
    layer: &SseLayer,
    request: Request<()>,
) -> (SseConnection, Either<OnWire<Captured>, Captured>) {
    let capture = Capture::default();
    let called = call(layer.layer(capture.clone()), request).await;
    let connection = capture.0.lock().unwrap().take();
    (connection.expect("ours"), called.unwrap().into_body())
}

/// A handler that answers, and leaves its connection here.
#[derive(Clone, Default)]
struct Capture(Arc<Mutex<Option<SseConnection>>>);

impl Service<Request<()>> for Capture {
    type Response = Response<Empty<Bytes>>;
    type Error = BoxError;
    type Future = Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<()>) -> Self::Future {
        *self.0.lock().unwrap() = request.extensions_mut().remove();
        ready(Ok(Response::default()))
    }
}

// ===== requests =====

/// What a request has for a body.
pub trait Asks {
    fn has_ended(&self) -> bool;
}

impl Asks for () {
    fn has_ended(&self) -> bool {
        true
    }
}

impl Asks for Full<Bytes> {
    fn has_ended(&self) -> bool {
        self.is_end_stream()
    }
}

impl Asks for axum::body::Body {
    fn has_ended(&self) -> bool {
        self.is_end_stream()
    }
}

/// What makes a body of any request's body, for the server to look at; and the service that gets
/// what was there before.
pub struct Asked<T>(T);

impl<R: Asks> Body for Asked<R> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        unreachable!("a service gets the body itself")
    }

    fn is_end_stream(&self) -> bool {
        self.0.has_ended()
    }
}

impl<S, R> Service<Request<Asked<R>>> for Asked<S>
where
    S: Service<Request<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Asked<R>>) -> S::Future {
        self.0.call(request.map(|asked| asked.0))
    }
}

// ===== responses =====

/// A body from the server, less the beginning that readers do not see.
pub struct OnWire<B: Body> {
    body: WireBody<B>,
    has_begun: bool,
    /// What it began with, until that is read.
    first: Option<Option<Result<Frame<Bytes>, BoxError>>>,
}

impl<B: Body> OnWire<B> {
    fn new(body: WireBody<B>) -> Self {
        Self {
            body,
            has_begun: false,
            first: None,
        }
    }

    /// Polls it, as the server does at once.
    fn begin(&mut self)
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let cx = &mut Context::from_waker(Waker::noop());
        if let Poll::Ready(first) = Pin::new(&mut *self).poll_frame(cx) {
            self.first = Some(first);
        }
    }
}

impl<B> Body for OnWire<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(first);
        }
        loop {
            let polled = Pin::new(&mut self.body).poll_frame(cx);
            let Poll::Ready(Some(Ok(frame))) = &polled else {
                return polled;
            };
            if mem::replace(&mut self.has_begun, true) {
                return polled;
            }
            let Some(data) = frame.data_ref() else {
                return polled;
            };
            let beginning = beginning().into_bytes();
            if !data.starts_with(&beginning) {
                return polled;
            }
            // What was sent before may have come with it.
            let rest = data.slice(beginning.len()..);
            if !rest.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(rest))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Body> Drop for OnWire<B> {
    fn drop(&mut self) {
        let count = if self.body.is_direct() {
            &DIRECT
        } else {
            &OTHERS
        };
        count.fetch_add(1, SeqCst);
    }
}
