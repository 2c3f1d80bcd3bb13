//! The body of a response that has passed the layer.

use std::{
    fmt,
    future::Future,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{
    adopted::Adopted,
    handler::{Handler, failure},
};
use crate::{
    BoxError,
    connection::{Reader, StreamErrorKind},
};

pin_project! {
    /// Response body for [`SseService`](crate::layer::SseService).
    ///
    /// Either an event stream, which may go on polling the handler's future, or the inner body as
    /// it came.
    pub struct SseBody<B, F> {
        #[pin]
        inner: BodyInner<B, F>,
    }
}

pin_project! {
    #[project = BodyInnerProj]
    enum BodyInner<B, F> {
        /// Bytes that are there already, if any: an answer of the layer's own.
        Whole { bytes: Bytes },
        /// Ends at once, and leaves its size open: the answer to a HEAD request. An exact 0 would
        /// make servers write a `content-length` that the stream has not.
        Head,
        PassThrough {
            #[pin]
            body: B,
        },
        Stream {
            stream: OpenStream<F>,
        },
        /// In a box, so that what goes through does not have to be moved with room for it.
        Adopted {
            adopted: Pin<Box<Adopted<B>>>,
        },
    }
}

/// A stream, and the handler that still runs.
struct OpenStream<F> {
    /// First, so that the connection ends for its own reason, not for what the handler's
    /// destructors do.
    reader: Reader,
    handler: Option<Handler<F>>,
}

impl<B, F> SseBody<B, F> {
    pub(super) fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    pub(super) fn whole(bytes: Bytes) -> Self {
        Self {
            inner: BodyInner::Whole { bytes },
        }
    }

    pub(super) fn head() -> Self {
        Self {
            inner: BodyInner::Head,
        }
    }

    pub(super) fn pass_through(body: B) -> Self {
        Self {
            inner: BodyInner::PassThrough { body },
        }
    }

    pub(super) fn adopted(reader: Reader, body: B) -> Self {
        Self {
            inner: BodyInner::Adopted {
                adopted: Box::pin(Adopted::new(reader, body)),
            },
        }
    }

    pub(super) fn stream(reader: Reader, handler: Option<Handler<F>>) -> Self {
        Self {
            inner: BodyInner::Stream {
                stream: OpenStream { reader, handler },
            },
        }
    }
}

/// An empty body, whatever the inner one is: layers outside need one for their own answers.
impl<B, F> Default for SseBody<B, F> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<B, F> fmt::Debug for SseBody<B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_stream = matches!(
            self.inner,
            BodyInner::Stream { .. } | BodyInner::Adopted { .. }
        );
        f.debug_struct("SseBody")
            .field("is_stream", &is_stream)
            .finish_non_exhaustive()
    }
}

impl<B, F, E> Body for SseBody<B, F>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    F: Future<Output = Result<Response<B>, E>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().inner.project() {
            BodyInnerProj::Whole { bytes } if !bytes.is_empty() => {
                Poll::Ready(Some(Ok(Frame::data(mem::take(bytes)))))
            }
            BodyInnerProj::Whole { .. } | BodyInnerProj::Head => Poll::Ready(None),
            BodyInnerProj::PassThrough { body } => {
                Poll::Ready(ready!(body.poll_frame(cx)).map(|frame| frame.map_err(Into::into)))
            }
            BodyInnerProj::Adopted { adopted } => {
                let next = ready!(adopted.as_mut().poll_frame(cx));
                Poll::Ready(next.map(|frame| frame.map(Frame::data)))
            }
            BodyInnerProj::Stream { stream } => {
                let next = ready!(stream.poll_frame(cx));
                Poll::Ready(next.map(|frame| frame.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            BodyInner::Whole { bytes } => bytes.is_empty(),
            BodyInner::Head => false,
            BodyInner::PassThrough { body } => body.is_end_stream(),
            BodyInner::Stream { stream } => stream.reader.is_ended(),
            BodyInner::Adopted { adopted } => adopted.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            BodyInner::Whole { bytes } => SizeHint::with_exact(bytes.len() as u64),
            BodyInner::Head | BodyInner::Stream { .. } | BodyInner::Adopted { .. } => {
                SizeHint::default()
            }
            BodyInner::PassThrough { body } => body.size_hint(),
        }
    }
}

impl<F> OpenStream<F> {
    /// Apart, so that what goes through does not pay for a frame of this size.
    #[inline(never)]
    fn poll_frame<B, E>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>>
    where
        F: Future<Output = Result<Response<B>, E>>,
    {
        self.poll_handler(cx);
        let next = self.reader.poll_frame(cx);
        if self.reader.is_ended() {
            self.handler = None;
        }
        next.map(|next| next.map(|frame| frame.map_err(Into::into)))
    }

    fn poll_handler<B, E>(&mut self, cx: &mut Context<'_>)
    where
        F: Future<Output = Result<Response<B>, E>>,
    {
        let Some(handler) = &mut self.handler else {
            return;
        };
        self.reader.attend();
        // A panic must not pass for the end of the stream, nor take other streams of an HTTP/2
        // connection with it. The handler is not touched again after one.
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let _entered = self.reader.trace().enter();
            handler.poll(cx)
        }));
        let failure = match polled {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(answer)) => failure(&answer),
            Err(_) => Some(StreamErrorKind::HandlerPanicked),
        };
        // Before the stream looks for handles that are left: it may hold one.
        self.handler = None;
        match failure {
            None => self.reader.handler_finished(),
            Some(kind) => self.reader.handler_failed(kind),
        }
    }
}
