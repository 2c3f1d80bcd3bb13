//! Which responses leave hyper, to be written straight to their sockets.
//!
//! An event stream leaves if its request, over HTTP/1.1, had no body and waits for nothing, and if
//! its response comes out of all layers as a 200 that hyper would send in chunks. Who made the
//! stream, and what layers do to its body, makes no difference: the server goes on polling that
//! body, in place of hyper.
//!
//! 1. hyper gets the response's head and [`HandoffBody`] as its body. That gives the first frame,
//!    if it is ready at the first poll, and stays pending from then on.
//! 2. hyper flushes what it has written before it waits. The flush is noticed by the socket
//!    ([`Flushed`]): the head and the first frame have been written then, and nothing else.
//! 3. The connection takes the socket back from hyper, and the body out of the [`Handoff`].
//!
//! That hyper flushes before it waits, and begins no other message meanwhile, is not documented: a
//! test checks it with the lowest supported version of hyper and with the one in the lock file.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TRAILER, UPGRADE},
};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::io::Flushed;
use crate::connection::Link;

/// What leaves hyper.
pub(super) struct Leaver<B> {
    pub(super) body: Pin<Box<B>>,
    pub(super) link: Link,
    /// The socket is to be closed behind it.
    pub(super) closes: bool,
}

/// How the responses of one connection leave hyper.
pub(super) struct Handoff<B> {
    flushed: Flushed,
    is_allowed: bool,
    /// Guards what is about to leave, between hyper's service and the connection's task. Held for
    /// one move.
    leaver: Arc<Mutex<Option<Leaver<B>>>>,
}

/// What the response to one request may do.
pub(super) struct Pass<B> {
    handoff: Option<Handoff<B>>,
    link: Link,
    closes: bool,
}

impl<B> Clone for Handoff<B> {
    fn clone(&self) -> Self {
        Self {
            flushed: self.flushed.clone(),
            is_allowed: self.is_allowed,
            leaver: Arc::clone(&self.leaver),
        }
    }
}

impl<B> Handoff<B> {
    pub(super) fn new(flushed: Flushed, is_allowed: bool) -> Self {
        Self {
            flushed,
            is_allowed,
            leaver: Arc::default(),
        }
    }

    /// One by which no response leaves.
    pub(super) fn none() -> Self {
        Self::new(Flushed::default(), false)
    }

    /// Checks a request, and links the layers that handle it with the server.
    pub(super) fn pass<R: Body>(&self, request: &mut Request<R>) -> Pass<B> {
        let link = Link::default();
        request.extensions_mut().insert(link.clone());
        let headers = request.headers();
        let may_leave = self.is_allowed
            && request.version() == Version::HTTP_11
            && request.method() != Method::HEAD
            && request.body().is_end_stream()
            && !headers.contains_key(EXPECT)
            && !headers.contains_key(UPGRADE);
        Pass {
            handoff: may_leave.then(|| self.clone()),
            link,
            closes: has_close(headers),
        }
    }

    /// Whether a response waits to leave, and hyper has written all that it had of it.
    pub(super) fn is_ready(&self) -> bool {
        self.flushed.get() && self.lock().is_some()
    }

    /// Whether a response waits to leave.
    #[cfg(feature = "test-util")]
    pub(super) fn has_leaver(&self) -> bool {
        self.lock().is_some()
    }

    pub(super) fn leave(&self) -> Option<Leaver<B>> {
        self.lock().take()
    }

    fn put(&self, leaver: Leaver<B>) {
        // Only a flush from now on shows that all has been written.
        self.flushed.clear();
        *self.lock() = Some(leaver);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Leaver<B>>> {
        self.leaver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Body> Pass<B> {
    /// The response as hyper gets it.
    pub(super) fn response(self, response: Response<B>) -> Response<HandoffBody<B>> {
        let handoff = self.handoff.filter(|_| may_leave(&response));
        let closes = self.closes || has_close(response.headers());
        let Some(handoff) = handoff else {
            return response.map(|body| HandoffBody::Whole { body });
        };
        response.map(|body| HandoffBody::Leaving {
            body: Box::pin(body),
            way: Some((handoff, self.link, closes)),
        })
    }
}

/// Whether a response is an event stream that hyper would send in chunks, and nothing else.
fn may_leave<B: Body>(response: &Response<B>) -> bool {
    let (headers, body) = (response.headers(), response.body());
    response.status() == StatusCode::OK
        // Over another version hyper would not send the body in chunks.
        && response.version() == Version::HTTP_11
        && is_event_stream(headers)
        && !headers.contains_key(CONTENT_LENGTH)
        && !headers.contains_key(TRAILER)
        && !body.is_end_stream()
        && body.size_hint().exact().is_none()
}

/// Whether the media type is exactly `text/event-stream`, with whatever parameters.
fn is_event_stream(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let media_type = value.as_bytes().split(|byte| *byte == b';').next();
    media_type.is_some_and(|it| it.trim_ascii().eq_ignore_ascii_case(b"text/event-stream"))
}

/// Whether the connection is to be closed after this message (RFC 9112, section 9.6).
fn has_close(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).into_iter();
    let mut options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

pin_project! {
    /// A response's body as hyper gets it.
    #[project = HandoffBodyProj]
    #[project_replace = HandoffBodyOwned]
    pub(super) enum HandoffBody<B> {
        /// It stays with hyper.
        Whole {
            #[pin]
            body: B,
        },
        /// It leaves at its first poll, if it turns out to be a stream.
        Leaving {
            body: Pin<Box<B>>,
            way: Option<(Handoff<B>, Link, bool)>,
        },
        /// It has left.
        Left,
    }
}

impl<B: Body<Data = Bytes>> Body for HandoffBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let (first, way, is_ended) = match self.as_mut().project() {
            HandoffBodyProj::Whole { body } => return body.poll_frame(cx),
            HandoffBodyProj::Leaving { body, way } => {
                let first = body.as_mut().poll_frame(cx);
                (first, way.take(), body.is_end_stream())
            }
            HandoffBodyProj::Left => return Poll::Pending,
        };
        let is_stream = match &first {
            Poll::Pending => true,
            Poll::Ready(Some(Ok(frame))) => frame.is_data() && !is_ended,
            Poll::Ready(_) => false,
        };
        if let Some((handoff, link, closes)) = way.filter(|_| is_stream) {
            if let HandoffBodyOwned::Leaving { body, .. } = self.project_replace(Self::Left) {
                handoff.put(Leaver { body, link, closes });
            }
        }
        first
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { body } => body.is_end_stream(),
            Self::Leaving { body, .. } => body.is_end_stream(),
            Self::Left => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { body } => body.size_hint(),
            Self::Leaving { body, .. } => body.size_hint(),
            Self::Left => SizeHint::default(),
        }
    }
}
