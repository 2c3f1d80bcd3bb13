//! Calls a layer, and polls what comes of it, by hand: no socket, no runtime, no time.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex},
    task::Poll,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio_test::task::{self, Spawn};
use tower::{Layer, service_fn};
use tower_sse::{BoxError, CloseReason, SseConnection, SseLayer};

use super::paths;

pub type Text = Full<Bytes>;

/// The error of the inner service.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure;

pub type Answer<B = Text> = Result<Response<B>, Failure>;

pub fn get(path: &str) -> Request<Text> {
    Request::get(path).body(Text::default()).unwrap()
}

/// A plain 200, with a body that a stream must not show.
pub fn plain() -> Answer {
    Ok(Response::new(Text::from("the inner body")))
}

pub fn status(status: u16) -> Answer {
    let response = Response::builder().status(status);
    Ok(response.body(Text::from("the inner body")).unwrap())
}

pub fn sse_of<B>(request: &Request<B>) -> SseConnection {
    let connection = request.extensions().get::<SseConnection>();
    connection.expect("the request is ours").clone()
}

/// Waits for ever, without a waker.
pub async fn forever() {
    poll_fn(|_| Poll::<()>::Pending).await;
}

// ===== the call =====

/// A response future, to be polled.
pub struct Call {
    future: Spawn<Pin<Box<dyn Future<Output = Answer<Stream>>>>>,
}

/// Calls the layer around a handler.
pub fn call<B>(
    layer: &SseLayer,
    request: Request<Text>,
    handler: impl AsyncFnOnce(Request<Text>) -> Answer<B> + 'static,
) -> Call
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    let mut handler = Some(handler);
    let service = layer.layer(service_fn(move |request| {
        let handler = handler.take().expect("the service is called once");
        async move { handler(request).await }
    }));
    let answered = paths::call(service, request);
    let future = async { Ok(answered.await?.map(Stream::new)) };
    Call {
        future: task::spawn(Box::pin(future)),
    }
}

/// Calls the layer, on the path `/events`, around a handler that takes the connection alone.
pub fn call_sse(
    layer: &SseLayer,
    handler: impl AsyncFnOnce(SseConnection) -> Answer + 'static,
) -> Call {
    call(layer, get("/events"), async move |request| {
        let sse = sse_of(&request);
        drop(request);
        handler(sse).await
    })
}

impl Call {
    pub fn poll(&mut self) -> Poll<Answer<Stream>> {
        self.future.poll()
    }

    pub fn is_woken(&self) -> bool {
        self.future.is_woken()
    }

    /// The response, which must be there.
    #[track_caller]
    pub fn response(mut self) -> Response<Stream> {
        match self.poll() {
            Poll::Ready(response) => response.expect("the service has answered"),
            Poll::Pending => panic!("there is no response yet"),
        }
    }

    /// The stream, which must have started.
    #[track_caller]
    pub fn stream(self) -> Stream {
        let response = self.response();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        response.into_body()
    }
}

/// A stream that has started, and the one handle on it. Its welcome has not been taken.
#[track_caller]
pub fn open(layer: &SseLayer) -> (SseConnection, Stream) {
    let (sse, mut stream) = open_untouched(layer);
    stream.begin();
    (sse, stream)
}

/// The same, whose body has not been polled on any path.
#[track_caller]
pub fn open_untouched(layer: &SseLayer) -> (SseConnection, Stream) {
    let place = Rc::new(RefCell::new(None));
    let kept = Rc::clone(&place);
    let call = call_sse(layer, async move |sse| {
        kept.replace(Some(sse));
        plain()
    });
    let stream = call.stream();
    let sse = place.take().expect("the handler ran");
    (sse, stream)
}

// ===== the body =====

/// A response body, to be polled.
pub struct Stream {
    body: Spawn<Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>>,
    /// What it began with, until that is taken.
    first: Option<Next>,
}

type Next = Option<Result<Frame<Bytes>, BoxError>>;

/// What came of polling a body for as long as it was ready.
#[derive(Debug)]
pub enum Rest {
    Waits,
    Ended,
    Broke(BoxError),
}

impl Stream {
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<BoxError>,
    {
        Self {
            body: task::spawn(Box::pin(body.map_err(Into::into))),
            first: None,
        }
    }

    /// Polls it, as a server does at once: else it is not direct when it is closed first. A body
    /// that is polled later is the harder case.
    pub fn begin(&mut self) {
        if !paths::is_direct() {
            return;
        }
        if let Poll::Ready(first) = self.poll() {
            self.first = Some(first);
        }
    }

    pub fn poll(&mut self) -> Poll<Next> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(first);
        }
        self.body.enter(|cx, body| body.poll_frame(cx))
    }

    pub fn is_woken(&self) -> bool {
        self.body.is_woken()
    }

    pub fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    /// The next frame of data, which must be there.
    #[track_caller]
    pub fn frame(&mut self) -> Bytes {
        match self.poll() {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().expect("a frame of data"),
            other => panic!("no frame, but {other:?}"),
        }
    }

    /// As [`frame`](Self::frame), as text.
    #[track_caller]
    pub fn text(&mut self) -> String {
        String::from_utf8(self.frame().into()).unwrap()
    }

    /// Passes over the welcome, which must come alone.
    #[track_caller]
    pub fn skip_welcome(&mut self) {
        let welcome = self.text();
        assert!(welcome.starts_with("event: welcome\n"), "{welcome:?}");
        assert_eq!(welcome.matches("\n\n").count(), 1, "{welcome:?}");
    }

    /// All data that is ready, and what is behind it. A body that wakes its task is polled again.
    #[track_caller]
    pub fn rest(&mut self) -> (String, Rest) {
        let mut text = Vec::new();
        let rest = loop {
            match self.poll() {
                Poll::Ready(Some(Ok(frame))) => {
                    text.extend_from_slice(&frame.into_data().expect("a frame of data"));
                }
                Poll::Ready(None) => break Rest::Ended,
                Poll::Ready(Some(Err(error))) => break Rest::Broke(error),
                Poll::Pending if self.is_woken() => {}
                Poll::Pending => break Rest::Waits,
            }
        };
        (String::from_utf8(text).unwrap(), rest)
    }

    /// Asserts that there is nothing to take now, and that the stream goes on.
    #[track_caller]
    pub fn assert_waits(&mut self) {
        let (text, rest) = self.rest();
        assert!(matches!(rest, Rest::Waits), "{rest:?}");
        assert_eq!(text, "");
    }
}

impl Rest {
    #[track_caller]
    pub fn assert_ended(self) {
        assert!(matches!(self, Self::Ended), "{self:?}");
    }

    /// The error that the body broke off with.
    #[track_caller]
    pub fn into_error(self) -> BoxError {
        match self {
            Self::Broke(error) => error,
            other => panic!("the body did not break off, it {other:?}"),
        }
    }
}

// ===== what happened =====

/// Notes of hooks and handlers, in order.
#[derive(Clone, Debug, Default)]
pub struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    pub fn add(&self, note: impl Into<String>) {
        self.0.lock().unwrap().push(note.into());
    }

    /// The notes since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// The layer, with hooks that note `open` and `close: REASON`.
    pub fn on(&self, layer: SseLayer) -> SseLayer {
        let (open, close) = (self.clone(), self.clone());
        layer
            .on_open(move |_| open.add("open"))
            .on_close(move |_, reason| close.add(format!("close: {}", reason.as_str())))
    }

    /// A hook for one connection, that notes `own: REASON`.
    pub fn own(&self) -> impl FnOnce(CloseReason) + Send + use<> {
        let notes = self.clone();
        move |reason| notes.add(format!("own: {}", reason.as_str()))
    }

    /// A value that notes its end.
    pub fn on_drop(&self, note: &'static str) -> impl Drop + Send + use<> {
        OnDrop(self.clone(), note)
    }
}

struct OnDrop(Notes, &'static str);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.add(self.1);
    }
}
