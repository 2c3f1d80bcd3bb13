//! What goes through untouched: requests that are not ours, and answers that want no stream.

use super::rules;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use rules::{Answer, Failure, Notes, Rest, Stream, call, get, plain, sse_of, status};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};
use support::Held;
use tower_sse::{Connections, Event, SseLayer};

/// A body with two frames and trailers, and a size hint that nobody would make up.
#[derive(Default)]
struct Odd(u8);

impl Body for Odd {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 += 1;
        Poll::Ready(match self.0 {
            1 => Some(Ok(Frame::data(Bytes::from_static(b"one")))),
            2 => Some(Ok(Frame::data(Bytes::from_static(b"\xfftwo")))),
            3 => {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-trailer", "yes".parse().unwrap());
                Some(Ok(Frame::trailers(trailers)))
            }
            _ => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0 >= 3
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(3);
        hint.set_upper(77);
        hint
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Extension(&'static str);

fn odd(status: u16) -> Response<Odd> {
    Response::builder()
        .status(status)
        .version(Version::HTTP_10)
        .header("content-length", "7")
        .header("content-encoding", "gzip")
        .header("etag", "\"1\"")
        .header("cache-control", "max-age=60")
        .header("connection", "close")
        .header("set-cookie", "a=1")
        .header("set-cookie", "b=2")
        .extension(Extension("of the response"))
        .body(Odd::default())
        .unwrap()
}

/// Asserts that this is what [`odd`] made, but for headers that the test itself has added.
#[track_caller]
fn assert_untouched(response: Response<Stream>, expected: &Response<Odd>) {
    let (parts, mut body) = response.into_parts();
    assert_eq!(parts.status, expected.status());
    assert_eq!(parts.version, Version::HTTP_10);
    assert_eq!(&parts.headers, expected.headers());
    let extension = parts.extensions.get::<Extension>();
    assert_eq!(extension, Some(&Extension("of the response")));

    assert_eq!(
        (body.size_hint().lower(), body.size_hint().upper()),
        (3, Some(77))
    );
    assert!(!body.is_end_stream());
    assert_eq!(body.frame(), "one");
    assert_eq!(body.frame(), b"\xfftwo"[..]);
    let Poll::Ready(Some(Ok(trailers))) = body.poll() else {
        panic!("no trailers");
    };
    assert_eq!(trailers.trailers_ref().unwrap()["x-trailer"], "yes");
    assert!(body.is_end_stream());
    assert!(matches!(body.poll(), Poll::Ready(None)));
}

// ===== requests that are not ours =====

#[test]
fn response_to_an_unmatched_request_is_unchanged() {
    let layer = SseLayer::new("/events").hold_open(true);
    for code in [200, 404] {
        let call = call(&layer, get("/elsewhere"), async move |_| Ok(odd(code)));
        assert_untouched(call.response(), &odd(code));
    }
    let own = async |_| {
        let mut response = odd(200);
        let value = "text/event-stream".parse().unwrap();
        response.headers_mut().insert("content-type", value);
        Ok(response)
    };
    let response = call(&layer, get("/elsewhere"), own).response();
    assert_eq!(response.headers()["cache-control"], "max-age=60");
    assert_eq!(response.headers()["content-length"], "7");
}

#[test]
fn request_is_forwarded_unchanged() {
    let layer = SseLayer::new("/events");
    for path in ["/elsewhere?a=%20", "/events?a=%20"] {
        let request = Request::get(path)
            .version(Version::HTTP_2)
            .header("x-a", "1")
            .header("x-a", "2")
            .header("accept-encoding", "gzip")
            .header("last-event-id", "7")
            .extension(Extension("of the request"))
            .body("the request's body".into())
            .unwrap();
        let headers = request.headers().clone();
        let handler = async move |request: Request<rules::Text>| {
            assert_eq!(request.uri(), path);
            assert_eq!(request.version(), Version::HTTP_2);
            assert_eq!(request.headers(), &headers);
            let extension = request.extensions().get::<Extension>();
            assert_eq!(extension, Some(&Extension("of the request")));
            let (text, _) = Stream::new(request.into_body()).rest();
            assert_eq!(text, "the request's body");
            plain()
        };
        assert_eq!(call(&layer, request, handler).response().status(), 200);
    }
}

#[test]
fn inner_service_error_passes_through() {
    let layer = SseLayer::new("/events");
    for path in ["/elsewhere", "/events"] {
        let mut call = call(&layer, get(path), async |_| {
            Answer::<rules::Text>::Err(Failure)
        });
        let Poll::Ready(Err(error)) = call.poll() else {
            panic!("no error");
        };
        assert_eq!(error, Failure);
    }
    assert_eq!(layer.registered().held(), 0);
}

// ===== answers that want no stream =====

/// Calls the layer around a handler that answers this and keeps a handle; asserts that the answer
/// goes through, and that the connection is told.
#[track_caller]
fn assert_declined(layer: &SseLayer, change: impl Fn(&mut Response<Odd>)) {
    let notes = Notes::default();
    let layer = notes.on(layer.clone());
    let mut answer = odd(200);
    change(&mut answer);
    let mut expected = odd(200);
    change(&mut expected);

    let hook = notes.own();
    let (keep, kept) = std::sync::mpsc::channel();
    let call = call(&layer, get("/events"), async move |request| {
        let sse = sse_of(&request);
        sse.on_close(hook);
        keep.send(sse).unwrap();
        Ok(answer)
    });
    let response = call.response();
    assert_eq!(notes.take(), ["own: declined"], "before the body is taken");
    assert_eq!(layer.registered().held(), 0);
    assert_untouched(response, &expected);

    let sse = kept.recv().unwrap();
    let error = tokio_test::block_on(sse.send(Event::message("late"))).unwrap_err();
    assert_eq!(
        error
            .reason()
            .map_or("none", tower_sse::CloseReason::as_str),
        "declined"
    );
    assert_eq!(tokio_test::block_on(sse.closed()).as_str(), "declined");
    assert_eq!(notes.take(), [""; 0]);
}

#[test]
fn any_status_but_200_is_declined() {
    let layer = SseLayer::new("/events");
    for code in [
        201, 202, 204, 206, 301, 302, 304, 400, 401, 403, 404, 410, 500, 503,
    ] {
        let status = StatusCode::from_u16(code).unwrap();
        assert_declined(&layer, |answer| *answer.status_mut() = status);
        assert_declined(&layer.clone().hold_open(true), |answer| {
            *answer.status_mut() = status;
        });
    }
}

#[test]
fn a_200_that_is_an_event_stream_already_is_declined() {
    for value in [
        "text/event-stream",
        "text/event-stream;charset=utf-8",
        "text/event-stream; charset=utf-8",
        "Text/Event-Stream",
        "TEXT/EVENT-STREAM",
    ] {
        assert_declined(&SseLayer::new("/events").hold_open(true), |answer| {
            let value = value.parse().unwrap();
            answer.headers_mut().insert("content-type", value);
        });
    }
}

#[test]
fn a_200_of_grpc_is_declined() {
    let layer = SseLayer::new("/{*any}").hold_open(true);
    for value in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc-web+proto",
        "Application/GRPC",
    ] {
        assert_declined(&layer, |answer| {
            let value = value.parse().unwrap();
            answer.headers_mut().insert("content-type", value);
        });
    }
    assert_declined(&layer, |answer| {
        answer
            .headers_mut()
            .insert("grpc-status", "16".parse().unwrap());
    });
}

#[test]
fn declined_200_passes_through_even_with_a_handle_kept() {
    let layer = SseLayer::new("/events").hold_open(true);
    let (keep, kept) = std::sync::mpsc::channel();
    let call = call(&layer, get("/events"), async move |request| {
        let sse = sse_of(&request);
        assert!(sse.decline());
        assert!(sse.decline(), "twice is as good as once");
        assert!(sse.is_closed());
        sse.start();
        assert!(sse.try_send(Event::message("late")).is_err());
        sse.close();
        keep.send(sse).unwrap();
        Ok(odd(200))
    });
    assert_untouched(call.response(), &odd(200));
    let sse = kept.recv().unwrap();
    assert_eq!(tokio_test::block_on(sse.closed()).as_str(), "declined");
    assert_eq!(layer.registered().held(), 0);
}

#[test]
fn unsent_200_without_a_handle_is_declined() {
    let notes = Notes::default();
    let layer = notes.on(SseLayer::new("/events"));
    let hook = notes.own();
    let handler = async move |request: Request<rules::Text>| {
        sse_of(&request).on_close(hook);
        Ok(odd(200))
    };
    let response = call(&layer, get("/events"), handler).response();
    assert_eq!(notes.take(), ["own: declined"]);
    assert_eq!(layer.registered().held(), 0);
    assert_untouched(response, &odd(200));
}

#[test]
fn request_kept_by_the_handler_is_not_a_handle() {
    /// A future that keeps its request after it has answered.
    struct Keeps(Option<Request<rules::Text>>);

    impl Future for Keeps {
        type Output = Result<Response<Odd>, Failure>;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            assert!(self.0.is_some());
            Poll::Ready(Ok(odd(200)))
        }
    }

    use tower::{Layer, Service, service_fn};
    let layer = SseLayer::new("/events");
    let mut service = layer.layer(service_fn(|request| Keeps(Some(request))));
    let mut call = tokio_test::task::spawn(service.call(get("/events")));
    let Poll::Ready(Ok(response)) = call.poll() else {
        panic!("no response");
    };
    assert_untouched(response.map(Stream::new), &odd(200));
    assert_eq!(layer.registered().held(), 0);
}

#[test]
fn hold_open_makes_a_200_without_a_handle_a_stream() {
    let connections = Connections::new();
    let layer = SseLayer::new("/events")
        .registry(&connections)
        .hold_open(true);
    let mut stream = call(&layer, get("/events"), async |_| Ok(odd(200))).stream();
    stream.skip_welcome();
    stream.assert_waits();

    let sse = connections.iter().next().unwrap();
    sse.try_send(Event::message("found")).unwrap();
    drop(sse);
    assert_eq!(stream.text(), "data: found\n\n");
    stream.assert_waits();
    assert_eq!(connections.close_where(|_| true), 1);
    stream.rest().1.assert_ended();
    assert_eq!(connections.held(), 0);
}

#[test]
fn decline_after_start_has_no_effect() {
    let layer = SseLayer::new("/events");
    let (sse, mut stream) = rules::open(&layer);
    assert!(!sse.decline());
    assert!(!sse.is_closed());
    stream.skip_welcome();
    stream.assert_waits();
}

#[test]
fn unpolled_send_fails_after_a_decline() {
    // The send is made, but not polled, before the handler declines.
    let layer = SseLayer::new("/events");
    let handler = async |request| {
        let sse = sse_of(&request);
        let send = sse.send(Event::message("too late"));
        sse.decline();
        let error = send.await.unwrap_err();
        assert_eq!(
            error
                .reason()
                .map_or("none", tower_sse::CloseReason::as_str),
            "declined"
        );
        assert_eq!(error.into_event().into_bytes(), "data: too late\n\n");
        status(404)
    };
    assert_eq!(
        call(&layer, get("/events"), handler).response().status(),
        404
    );
}

#[test]
fn outer_layer_passes_the_stream_of_an_inner_layer() {
    use tower::{Layer, Service, service_fn};
    let (outside, inside) = (SseLayer::any_path(), SseLayer::any_path());
    let inner = service_fn(async |request: Request<rules::Text>| {
        let _ = sse_of(&request).try_send(Event::message("once"));
        plain()
    });
    let mut service = outside.layer(inside.layer(inner));
    let mut call = tokio_test::task::spawn(service.call(get("/")));
    let Poll::Ready(Ok(response)) = call.poll() else {
        panic!("no response");
    };
    assert_eq!(outside.registered().held(), 0);
    let (text, rest) = Stream::new(response.into_body()).rest();
    assert_eq!(text.matches("event: welcome").count(), 1);
    assert!(text.ends_with("data: once\n\n"));
    assert!(matches!(rest, Rest::Ended));
}
