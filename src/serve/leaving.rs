//! Which responses leave hyper, to be driven straight on their sockets.
//!
//! A stream leaves if, over HTTP/1.1, the request had no body and waits for nothing, and its
//! response comes out of all layers as a 200 without a `content-encoding` or a `content-length`, with
//! a body whose first frame is the stream's own, untouched, and in which no handler runs any more.

use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, TRAILER, UPGRADE},
};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::io::Flushed;
use crate::connection::{Mark, Reader};

/// What leaves.
pub(super) struct Leaver<B> {
    pub(super) reader: Reader,
    /// The stream's first frame, until hyper takes it: it goes out with the head, in one write.
    first: Option<Bytes>,
    /// Not to be polled again.
    pub(super) body: Pin<Box<B>>,
    /// The socket is to be closed behind it.
    pub(super) closes: bool,
}

/// A connection's way out of hyper.
pub(super) struct Door<B> {
    flushed: Flushed,
    is_allowed: bool,
    /// Guards what is about to leave, between hyper's service and the connection's task.
    leaver: Arc<Mutex<Option<Leaver<B>>>>,
}

/// What one request may do.
pub(super) struct Pass<B> {
    door: Option<Door<B>>,
    closes: bool,
}

impl<B> Clone for Door<B> {
    fn clone(&self) -> Self {
        Self {
            flushed: self.flushed.clone(),
            is_allowed: self.is_allowed,
            leaver: Arc::clone(&self.leaver),
        }
    }
}

impl<B> Door<B> {
    pub(super) fn new(flushed: Flushed, is_allowed: bool) -> Self {
        Self {
            flushed,
            is_allowed,
            leaver: Arc::default(),
        }
    }

    /// One that nothing leaves by.
    pub(super) fn closed() -> Self {
        Self::new(Flushed::default(), false)
    }

    pub(super) fn pass<R: Body>(&self, request: &Request<R>) -> Pass<B> {
        let headers = request.headers();
        let may_leave = self.is_allowed
            && request.version() == Version::HTTP_11
            && request.method() != Method::HEAD
            && request.body().is_end_stream()
            && !headers.contains_key(EXPECT)
            && !headers.contains_key(UPGRADE);
        Pass {
            door: may_leave.then(|| self.clone()),
            closes: says_close(headers),
        }
    }

    /// Whether something waits to leave, and its head and first frame have been written.
    pub(super) fn is_open(&self) -> bool {
        let is_given = |leaver: &Leaver<B>| leaver.first.is_none();
        self.flushed.get() && self.lock().as_ref().is_some_and(is_given)
    }

    /// What waits to leave gives its first frame, once.
    fn take_first(&self) -> Option<Bytes> {
        let first = self.lock().as_mut()?.first.take()?;
        // Only a flush from now on tells that it has been written.
        self.flushed.clear();
        Some(first)
    }

    pub(super) fn leave(&self) -> Option<Leaver<B>> {
        self.lock().take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Leaver<B>>> {
        self.leaver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Pass<B>
where
    B: Body<Data = Bytes>,
{
    /// The response as hyper gets it: with its body, or with one that stays pending while the real
    /// one leaves.
    pub(super) async fn response(self, mut response: Response<B>) -> Response<ServedBody<B>> {
        let mark = response.extensions_mut().remove::<Mark>();
        let (Some(mark), Some(door)) = (mark.filter(|_| may_leave(&response)), self.door) else {
            return response.map(ServedBody::plain);
        };
        let closes = self.closes || says_close(response.headers());
        let (head, body) = response.into_parts();
        let mut body = Box::pin(body);
        let first = poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await;
        if let Poll::Ready(Some(Ok(frame))) = &first {
            let data = frame.data_ref();
            let left = data.and_then(|first| Some((mark.take_over(first)?, first.clone())));
            if let Some((reader, first)) = left {
                *door.lock() = Some(Leaver {
                    reader,
                    first: Some(first),
                    body,
                    closes,
                });
                return Response::from_parts(head, ServedBody::Held { door });
            }
        }
        let first = match first {
            Poll::Pending => First::None,
            Poll::Ready(first) => First::Polled(first),
        };
        Response::from_parts(head, ServedBody::Polled { first, body })
    }
}

fn may_leave<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    let untouched = [CONTENT_ENCODING, CONTENT_LENGTH, TRAILER];
    // Over another version hyper would not have the body in chunks.
    response.status() == StatusCode::OK
        && response.version() == Version::HTTP_11
        && !untouched.iter().any(|it| headers.contains_key(it))
}

/// Whether the connection is to be closed after this message (RFC 9112, section 9.6).
fn says_close(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).into_iter();
    let mut options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

pin_project! {
    /// A response's body, as hyper gets it.
    #[project = ServedProj]
    pub(super) enum ServedBody<B: Body> {
        Plain {
            #[pin]
            body: B,
        },
        /// One that has been polled once, and stays.
        Polled {
            first: First<B::Data, B::Error>,
            body: Pin<Box<B>>,
        },
        /// The real one is leaving: its first frame, and then nothing.
        Held {
            door: Door<B>,
        },
    }
}

/// What a body has given already.
pub(super) enum First<D, E> {
    None,
    Polled(Option<Result<Frame<D>, E>>),
}

impl<B: Body> ServedBody<B> {
    pub(super) fn plain(body: B) -> Self {
        Self::Plain { body }
    }
}

impl<B: Body<Data = Bytes>> Body for ServedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project() {
            ServedProj::Plain { body } => body.poll_frame(cx),
            ServedProj::Polled { first, body } => match mem::replace(first, First::None) {
                First::Polled(first) => Poll::Ready(first),
                First::None => body.as_mut().poll_frame(cx),
            },
            ServedProj::Held { door } => match door.take_first() {
                Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain { body } => body.is_end_stream(),
            Self::Polled { first, body } => match first {
                First::None => body.is_end_stream(),
                First::Polled(_) => false,
            },
            Self::Held { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain { body } => body.size_hint(),
            Self::Polled { .. } | Self::Held { .. } => SizeHint::default(),
        }
    }
}
