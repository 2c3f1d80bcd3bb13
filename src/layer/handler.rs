//! What answers a request of the layer, and the answers that it may give.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Response, StatusCode};

use crate::connection::StreamErrorKind;

/// What answers a request that is ours. In a box, because it may move into the body.
pub(super) enum Handler<F> {
    Inner(Pin<Box<F>>),
    Accept(AcceptFuture),
}

pub(super) type AcceptFuture = Pin<Box<dyn Future<Output = Result<(), StatusCode>> + Send>>;

pub(super) enum Answer<B> {
    Response(Response<B>),
    /// The `accept` function said yes.
    Accepted,
    Refused(StatusCode),
}

impl<F> Handler<F> {
    pub(super) fn poll<B, E>(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer<B>, E>>
    where
        F: Future<Output = Result<Response<B>, E>>,
    {
        match self {
            Self::Inner(future) => future.as_mut().poll(cx).map_ok(Answer::Response),
            Self::Accept(future) => future.as_mut().poll(cx).map(|answer| {
                Ok(match answer {
                    Ok(()) => Answer::Accepted,
                    Err(status) => Answer::Refused(status),
                })
            }),
        }
    }
}

/// How an answer that comes after the start breaks the stream off, if it does.
pub(super) fn failure<B, E>(answer: &Result<Answer<B>, E>) -> Option<StreamErrorKind> {
    let status = match answer {
        Ok(Answer::Response(response)) => response.status(),
        Ok(Answer::Accepted) => StatusCode::OK,
        Ok(Answer::Refused(status)) => *status,
        Err(_) => return Some(StreamErrorKind::HandlerError),
    };
    (status != StatusCode::OK).then_some(StreamErrorKind::HandlerAnswer(status))
}
