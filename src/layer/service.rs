//! The service that a layer makes.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{
    body::SseBody, future::ResponseFuture, handler::Handler, refusal::refusal,
    settings::LayerSettings,
};

/// Middleware that turns the answers of its inner service into event streams, made by
/// [`SseLayer`](crate::SseLayer).
///
/// Its errors are those of the inner service, untouched.
#[derive(Clone)]
pub struct SseService<S> {
    inner: S,
    settings: Arc<LayerSettings>,
}

impl<S> SseService<S> {
    pub(super) fn new(inner: S, settings: Arc<LayerSettings>) -> Self {
        Self { inner, settings }
    }

    /// The inner service.
    pub fn as_inner(&self) -> &S {
        &self.inner
    }

    /// The inner service, to change.
    pub fn as_inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service alone.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for SseService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
{
    type Response = Response<SseBody<ResBody, S::Future>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let Some(info) = self.settings.rule.matches(&request) else {
            return ResponseFuture::pass_through(self.inner.call(request));
        };
        let settings = &self.settings;
        let kind = info.kind;
        if let Err(forbidden) = settings.guard.check(&request) {
            return ResponseFuture::answered(forbidden.response(), kind.is_head);
        }
        let (keys, request) = settings.keys_of(request);
        let opened = settings.registry.open(&settings.config, info, &keys);
        let (connection, reader) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                let refusal = refusal(reason, &settings.config, kind);
                return ResponseFuture::answered(refusal, kind.is_head);
            }
        };
        let mut request = request;
        // From here on the reader's destructor ends the connection, also if the inner service
        // panics.
        let handler = match &settings.accept {
            Some(accept) => Handler::Accept(accept(connection, request.into_parts().0)),
            None => {
                request.extensions_mut().insert(connection);
                Handler::Inner(Box::pin(self.inner.call(request)))
            }
        };
        ResponseFuture::sse(reader, handler, kind.is_head)
    }
}

impl<S: fmt::Debug> fmt::Debug for SseService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseService")
            .field("inner", &self.inner)
            .field("settings", &self.settings)
            .finish()
    }
}
