//! The future of a response that passes the layer.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Response, StatusCode, response};
use http_body::Body;
use pin_project_lite::pin_project;

use super::{
    acceptance::acceptance,
    body::SseBody,
    handler::{Answer, Handler, failure},
    headers::head,
    refusal::refusal,
};
use crate::connection::{Acceptance, CloseReason, Reader, RefusalReason, StreamErrorKind};

pin_project! {
    /// Response future for [`SseService`](crate::layer::SseService).
    pub struct ResponseFuture<F> {
        #[pin]
        inner: FutureInner<F>,
    }
}

pin_project! {
    #[project = FutureInnerProj]
    enum FutureInner<F> {
        PassThrough {
            #[pin]
            future: F,
        },
        Sse {
            call: Option<Call<F>>,
        },
        Answered {
            answered: Option<Box<Answered>>,
        },
    }
}

/// A request that is ours, until the stream starts or is declined.
struct Call<F> {
    /// First, so that the connection ends for its own reason, not for what the handler's
    /// destructors do.
    reader: Reader,
    handler: Handler<F>,
    is_head: bool,
}

/// An answer of the layer's own. In a box, because what goes through should not carry its size.
struct Answered {
    response: Response<Bytes>,
    is_head: bool,
}

impl<F> ResponseFuture<F> {
    pub(super) fn pass_through(future: F) -> Self {
        Self {
            inner: FutureInner::PassThrough { future },
        }
    }

    pub(super) fn sse(reader: Reader, handler: Handler<F>, is_head: bool) -> Self {
        Self {
            inner: FutureInner::Sse {
                call: Some(Call {
                    reader,
                    handler,
                    is_head,
                }),
            },
        }
    }

    /// An answer that needs neither the inner service nor a connection.
    pub(super) fn answered(response: Response<Bytes>, is_head: bool) -> Self {
        Self {
            inner: FutureInner::Answered {
                answered: Some(Box::new(Answered { response, is_head })),
            },
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("is_sse", &matches!(self.inner, FutureInner::Sse { .. }))
            .finish_non_exhaustive()
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<SseBody<B, F>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().inner.project() {
            FutureInnerProj::PassThrough { future } => {
                let response = ready!(future.poll(cx))?;
                Poll::Ready(Ok(response.map(SseBody::pass_through)))
            }
            FutureInnerProj::Sse { call } => poll_call(call, cx),
            FutureInnerProj::Answered { answered } => match answered.take() {
                Some(answered) => Poll::Ready(Ok(answered.into_response())),
                // Polled again after it was ready, which is not allowed.
                None => Poll::Pending,
            },
        }
    }
}

/// Apart, so that what goes through does not pay for a frame of this size.
#[inline(never)]
fn poll_call<F, B, E>(
    call: &mut Option<Call<F>>,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<SseBody<B, F>>, E>>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    let Some(running) = call else {
        // Polled again after it was ready, or had panicked, which is not allowed.
        return Poll::Pending;
    };
    let polled = catch_unwind(AssertUnwindSafe(|| {
        let _entered = running.reader.trace().enter();
        running.handler.poll(cx)
    }));
    let answer = match polled {
        Err(_) if running.reader.poll_started(cx).is_ready() => {
            // Something was sent: the client is to get it, and to see the stream break.
            return match call.take() {
                Some(call) => Poll::Ready(Ok(call.panicked())),
                None => Poll::Pending,
            };
        }
        Err(panic) => {
            // Whoever catches it, as a layer outside that answers 500 does, may keep this
            // future for a while: the connection ends now.
            running.reader.end(CloseReason::Failed);
            *call = None;
            resume_unwind(panic)
        }
        Ok(Poll::Ready(answer)) => Some(answer),
        Ok(Poll::Pending) => {
            ready!(running.reader.poll_started(cx));
            None
        }
    };
    let Some(call) = call.take() else {
        return Poll::Pending;
    };
    Poll::Ready(match answer {
        None => Ok(call.start()),
        Some(answer) => call.answer(answer),
    })
}

impl Answered {
    fn into_response<B, F>(self) -> Response<SseBody<B, F>> {
        let Self { response, is_head } = self;
        response.map(|bytes| {
            if is_head {
                SseBody::head()
            } else {
                SseBody::whole(bytes)
            }
        })
    }
}

impl<F> Call<F> {
    /// Starts the stream, with a handler that has not answered.
    fn start<B>(self) -> Response<SseBody<B, F>> {
        stream(self.reader, Some(self.handler), None, self.is_head)
    }

    /// Starts the stream, to break it off.
    fn panicked<B>(self) -> Response<SseBody<B, F>> {
        drop(self.handler);
        self.reader.handler_failed(StreamErrorKind::HandlerPanicked);
        stream(self.reader, None, None, self.is_head)
    }

    /// Starts the stream or declines it, by what the handler has answered.
    fn answer<B, E>(self, answer: Result<Answer<B>, E>) -> Result<Response<SseBody<B, F>>, E> {
        let Self {
            reader,
            handler,
            is_head,
        } = self;
        // It may hold the request, and so a handle, that would pass for somebody's wish to send.
        drop(handler);

        let acceptance = acceptance(&answer, reader.adopts());
        let is_adopted = matches!(acceptance, Acceptance::Adopted);
        if reader.answered(acceptance, failure(&answer)) {
            let inner = match answer {
                Ok(Answer::Response(response)) if is_adopted => {
                    return Ok(adopted(reader, response));
                }
                Ok(Answer::Response(response)) => Some(response.into_parts().0),
                _ => None,
            };
            return Ok(stream(reader, None, inner, is_head));
        }
        let refused = reader.refused().map(|(config, kind)| Answered {
            response: refusal(RefusalReason::KeyFull, config, kind),
            is_head,
        });
        drop(reader);
        if let Some(refused) = refused {
            return Ok(refused.into_response());
        }
        Ok(match answer? {
            Answer::Response(response) => response.map(SseBody::pass_through),
            Answer::Accepted => bare(StatusCode::NO_CONTENT),
            Answer::Refused(status) => bare(status),
        })
    }
}

fn stream<B, F>(
    mut reader: Reader,
    handler: Option<Handler<F>>,
    inner: Option<response::Parts>,
    is_head: bool,
) -> Response<SseBody<B, F>> {
    let head = head(inner);
    if is_head {
        reader.end(CloseReason::Closed);
        return Response::from_parts(head, SseBody::head());
    }
    reader.begin(handler.is_some());
    Response::from_parts(head, SseBody::stream(reader, handler))
}

fn adopted<B, F>(mut reader: Reader, inner: Response<B>) -> Response<SseBody<B, F>> {
    let (parts, body) = inner.into_parts();
    reader.begin_adopted();
    Response::from_parts(head(Some(parts)), SseBody::adopted(reader, body))
}

fn bare<B, F>(status: StatusCode) -> Response<SseBody<B, F>> {
    let mut response = Response::new(SseBody::empty());
    *response.status_mut() = status;
    response
}
