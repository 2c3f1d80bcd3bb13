//! What becomes of a response on its way through the server, without a socket: for tests.
//!
//! Everything that decides here is the server's own: what may leave hyper, and how a stream that has
//! left is driven. What stands for hyper only passes bodies on, and what stands for the socket is
//! [`Wire`].
//!
//! Nothing happens but when the body is polled: no task, no time. So a body that nobody polls is
//! one whose client takes nothing, as it is without all this.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::io::AsyncWrite;
use tower_service::Service;

use super::{
    direct::{Direct, Left},
    handoff::{Handoff, HandoffBody, Pass},
    io::Io,
    wire::{Came, Wire},
};
use crate::BoxError;

/// A service as [`serve`](crate::serve::serve) serves it over HTTP/1.1, without a socket.
///
/// Its responses have the bodies that a client of the server would get: streams that may leave hyper
/// are driven as the server drives them, and their chunks are read back strictly. So a test sees
/// what layers around the [`SseLayer`](crate::SseLayer) do to
/// [direct streams](crate::serve#direct-streams): whether they stay direct
/// ([`WireBody::is_direct`]), and what becomes of permits and guards.
///
/// The client takes a frame when the body is polled, and leaves when it is dropped. There is no
/// write deadline.
///
/// # Example
///
/// ```
/// use axum::{Router, body::Body, routing::get};
/// use http::Request;
/// use http_body_util::BodyExt;
/// use tower::Service;
/// use tower_http::cors::CorsLayer;
/// use tower_sse::{SseConnection, SseLayer, test_util};
///
/// async fn events(_: SseConnection) {}
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_sse::BoxError> {
/// let app: Router = Router::new()
///     .route("/events", get(events))
///     .layer(SseLayer::new("/events").hold_open(true))
///     .layer(CorsLayer::permissive());
/// let request = Request::get("/events").body(Body::empty())?;
/// let response = test_util::served(app).call(request).await?;
/// assert_eq!(response.headers()["access-control-allow-origin"], "*");
///
/// let mut body = response.into_body();
/// let welcome = body.frame().await.ok_or("it has ended")??.into_data();
/// assert!(welcome.is_ok_and(|data| data.starts_with(b"event: welcome\n")));
/// assert!(body.is_direct());
/// # Ok(())
/// # }
/// ```
pub fn served<S>(service: S) -> Served<S> {
    Served { service }
}

/// A service as the crate's own server serves it. See [`served`].
#[derive(Clone, Debug)]
pub struct Served<S> {
    service: S,
}

impl<S, R, B> Service<Request<R>> for Served<S>
where
    S: Service<Request<R>, Response = Response<B>>,
    R: Body,
    B: Body<Data = Bytes>,
{
    type Response = Response<WireBody<B>>;
    type Error = S::Error;
    type Future = ServedFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<R>) -> Self::Future {
        let wire = Wire::default();
        let io = Io::new(wire.clone(), Bytes::new(), None);
        let door = Handoff::new(io.flushed(), true);
        let pass = door.pass(&mut request);
        ServedFuture {
            answer: self.service.call(request),
            way: Some((Way { wire, io, door }, pass)),
        }
    }
}

pin_project! {
    /// The response future of [`Served`].
    pub struct ServedFuture<F, B> {
        #[pin]
        answer: F,
        // None: it has answered.
        way: Option<(Way<B>, Pass<B>)>,
    }
}

impl<F, B, E> Future for ServedFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<WireBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.answer.poll(cx))?;
        let (head, body) = response.into_parts();
        // What the server looks at, when the body is polled.
        let looked_at = Response::from_parts(head.clone(), body);
        let body = match this.way.take() {
            Some((way, pass)) => WireBody {
                state: State::Answered(Box::new((looked_at, pass, way))),
                is_direct: false,
            },
            None => WireBody {
                state: State::Over,
                is_direct: false,
            },
        };
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}

impl<F, B> fmt::Debug for ServedFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedFuture").finish_non_exhaustive()
    }
}

/// A response body as a client of the crate's own server gets it. See [`served`].
///
/// It ends cleanly where the server writes the last chunk, and with an error where the server closes
/// the socket without one.
pub struct WireBody<B> {
    state: State<B>,
    is_direct: bool,
}

/// The socket, and the way to it out of hyper.
struct Way<B> {
    wire: Wire,
    io: Io<Wire>,
    door: Handoff<B>,
}

enum State<B> {
    /// Not polled yet: the server does so at once, or as soon as hyper can write.
    Answered(Box<(Response<B>, Pass<B>, Way<B>)>),
    /// In hyper, which may be about to lose it.
    InHyper(Pin<Box<HandoffBody<B>>>, Box<Way<B>>),
    Direct(Box<Direct<Wire, B>>, Wire),
    /// All that was written has been read.
    Left(Left<Wire>, Wire),
    Over,
}

impl<B> WireBody<B> {
    /// Whether this is an event stream that leaves hyper, to be driven straight on its socket. That
    /// is known once the body has been polled.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }
}

impl<B> Body for WireBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        loop {
            match mem::replace(&mut this.state, State::Over) {
                State::Answered(answered) => {
                    let (response, pass, way) = *answered;
                    let body = pass.response(response).into_body();
                    this.state = State::InHyper(Box::pin(body), Box::new(way));
                }
                State::InHyper(mut body, mut way) => {
                    // What was given before has been written, now that there is to be more.
                    if Pin::new(&mut way.io).poll_flush(cx).is_ready() && way.door.is_ready() {
                        if let Some(leaver) = way.door.leave() {
                            let Way { wire, io, .. } = *way;
                            let direct = Direct::new(io, leaver.body, leaver.link);
                            this.state = State::Direct(Box::new(direct), wire);
                            continue;
                        }
                    }
                    let frame = body.as_mut().poll_frame(cx);
                    this.is_direct = way.door.has_leaver();
                    this.state = State::InHyper(body, way);
                    return frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)));
                }
                State::Direct(mut direct, wire) => {
                    let polled = Pin::new(&mut *direct).poll(cx);
                    let came = wire.read();
                    let is_pending = polled.is_pending();
                    this.state = match polled {
                        Poll::Pending => State::Direct(direct, wire),
                        Poll::Ready(left) => State::Left(left, wire),
                    };
                    match came {
                        Ok(Came::Frame(frame)) => {
                            return Poll::Ready(Some(Ok(Frame::data(frame))));
                        }
                        Ok(Came::Nothing) if is_pending => return Poll::Pending,
                        // There is room for more now, or else nothing follows.
                        Ok(_) => {}
                        Err(error) => {
                            this.state = State::Over;
                            return Poll::Ready(Some(Err(error.into())));
                        }
                    }
                }
                State::Left(left, wire) => {
                    let error = match left {
                        _ if wire.is_over() => return Poll::Ready(None),
                        Left::Clean(_) => "the last chunk has not come".into(),
                        Left::Broken(error) => {
                            error.unwrap_or_else(|| "the socket was closed".into())
                        }
                    };
                    return Poll::Ready(Some(Err(error)));
                }
                State::Over => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Answered(answered) => answered.0.body().is_end_stream(),
            State::InHyper(body, _) => body.is_end_stream(),
            State::Direct(direct, _) => direct.is_end_stream(),
            State::Left(_, wire) => wire.is_over(),
            State::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Answered(answered) => answered.0.body().size_hint(),
            State::InHyper(body, _) => body.size_hint(),
            State::Direct(..) | State::Left(..) => SizeHint::default(),
            State::Over => SizeHint::with_exact(0),
        }
    }
}

impl<B> fmt::Debug for WireBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireBody")
            .field("is_direct", &self.is_direct)
            .finish_non_exhaustive()
    }
}
