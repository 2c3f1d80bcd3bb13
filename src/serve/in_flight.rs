//! The requests that an HTTP/2 connection has open: one that has none for too long is closed.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{sync::watch, time::timeout};

/// How many requests are open.
#[derive(Debug)]
pub(super) struct Requests(watch::Sender<usize>);

/// One of them, until it is dropped: with its response's body.
#[derive(Debug)]
pub(super) struct Request(watch::Sender<usize>);

impl Requests {
    pub(super) fn none() -> Self {
        Self(watch::Sender::new(0))
    }

    pub(super) fn begin(&self) -> Request {
        self.0.send_modify(|open| *open += 1);
        Request(self.0.clone())
    }

    /// Ready when none has been open for so long.
    pub(super) fn rest(&self, time: Duration) -> impl Future<Output = ()> + use<> {
        let mut open = self.0.subscribe();
        async move {
            loop {
                // No error: this has a sender of its own.
                let _ = open.wait_for(|open| *open == 0).await;
                // One that is over again by the time of a look has begun the time anew, too.
                if timeout(time, open.changed()).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

pin_project! {
    /// A response's body, which keeps its request open.
    pub(super) struct Counted<B> {
        #[pin]
        body: B,
        _request: Request,
    }
}

impl<B> Counted<B> {
    pub(super) fn new(body: B, request: Request) -> Self {
        Self {
            body,
            _request: request,
        }
    }
}

impl<B: Body<Data = Bytes>> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
