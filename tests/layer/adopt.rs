//! Event streams that the inner service makes by itself, taken over.

use super::paths;
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use support::Held;

use axum::{
    Router,
    response::sse::{self, Sse},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{
    CloseReason, Connections, Event, SseLayer,
    event::Decoded,
    test_util::{EventReader, ReadError},
};

/// A body whose pieces come through a channel; an empty one breaks it off.
struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.0.poll_recv(cx).map(|piece| {
            let piece = piece?;
            Some(match piece.is_empty() {
                true => Err("broken off"),
                false => Ok(Frame::data(piece)),
            })
        })
    }
}

/// The stream of a layer around a service that answers a request with these pieces.
async fn adopted(layer: &SseLayer, request: Request<()>) -> (mpsc::Sender<Bytes>, EventReader) {
    let (pieces, body) = mpsc::channel(64);
    let body = Mutex::new(Some(Pieces(body)));
    let service =
        layer.layer(service_fn(move |_: Request<()>| {
            let body = body.lock().unwrap().take().expect("it is called once");
            let response = Response::builder().header("content-type", "text/event-stream");
            async move {
                Ok::<_, Infallible>(response.header("content-length", "7").body(body).unwrap())
            }
        }));
    let response = paths::read(service, request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let head = response.headers();
    assert_eq!(head["content-type"], "text/event-stream");
    assert_eq!(head["cache-control"], "no-store, no-transform");
    assert!(!head.contains_key("content-length"));
    let events = response.into_body();
    (pieces, events.time_limit(Duration::from_secs(1_000_000)))
}

fn layer() -> SseLayer {
    SseLayer::any_path().adopt(true)
}

async fn frame(events: &mut EventReader) -> String {
    let frame = events.frame().await.unwrap();
    String::from_utf8(frame.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn adopted_axum_streams_are_counted_and_drained() {
    let connections = Connections::new();
    let events = || async {
        let event = Ok::<_, Infallible>(sse::Event::default().event("old").data("as it was"));
        Sse::new(stream::iter([event]).chain(stream::pending()))
    };
    let layer = SseLayer::new("/events").adopt(true).registry(&connections);
    let app = Router::new().route("/events", get(events)).layer(layer);
    let mut streams = Vec::new();
    for _ in 0..20 {
        let request = Request::get("/events").body(axum::body::Body::empty());
        let response = paths::read(app.clone(), request.unwrap()).await.unwrap();
        let mut events = response.into_body();
        let first = events.event().await.unwrap();
        assert_eq!((&*first.event_type, &*first.data), ("old", "as it was"));
        streams.push(events);
    }
    let stats = connections.stats();
    assert_eq!((stats.open, stats.opened, stats.events_sent), (20, 20, 20));
    assert_eq!(
        stats.bytes_sent,
        20 * "event: old\ndata: as it was\n\n".len() as u64
    );

    let ended = streams.into_iter().map(|mut events| async move {
        events = events.time_limit(Duration::from_secs(60));
        let last = events.event().await.unwrap();
        assert_eq!(last.event_type, "reconnect");
        events.end().await.unwrap();
    });
    let ended = futures_util::future::join_all(ended);
    let (drained, _) = tokio::join!(connections.drain().into_future(), ended);
    assert_eq!((drained.ended, drained.aborted), (20, 0));
    assert_eq!(connections.stats().closed(CloseReason::Drained), 20);
}

#[tokio::test(start_paused = true)]
async fn frames_end_at_event_boundaries_for_any_chunking() {
    let text = "\u{feff}: hi\ndata: 1\n\nevent: a\r\ndata: 2\r\ndata: b\r\n\r\nid: 7\rdata: 3\r\r";
    for size in 1..text.len() {
        let (pieces, mut events) = adopted(&layer(), Request::default()).await;
        let sent = tokio::spawn(async move {
            for piece in text.as_bytes().chunks(size) {
                pieces.send(Bytes::copy_from_slice(piece)).await.unwrap();
            }
        });
        let mut all = String::new();
        loop {
            match events.frame().await {
                Ok(frame) => all += std::str::from_utf8(&frame).unwrap(),
                Err(ReadError::Ended) => break,
                Err(error) => panic!("{error}"),
            }
            // A LF may come late, behind its CR.
            let read = all.trim_end_matches('\n');
            let is_whole =
                ["", ": hi"].contains(&read) || all.ends_with("\n\n") || all.ends_with('\r');
            assert!(is_whole || all.ends_with("\r\n"), "{size}: {all:?}");
            assert!(
                !all.ends_with("1\n") && !all.ends_with("2\r\n"),
                "{size}: {all:?}"
            );
        }
        assert_eq!(all, text.trim_start_matches('\u{feff}'), "{size}");
        sent.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn events_of_the_layer_are_sent_between_inner_events() {
    let layer = layer();
    let (pieces, mut events) = adopted(&layer, Request::default()).await;
    let connection = layer.registered().iter().next().unwrap();
    pieces.send("data: 1\n\ndata: ".into()).await.unwrap();
    assert_eq!(frame(&mut events).await, "data: 1\n\n");
    // The second event has begun, and its start is held back.
    connection.try_send(Event::message("between")).unwrap();
    assert_eq!(frame(&mut events).await, "data: between\n\n");
    assert_eq!(frame(&mut events).await, ":\n");
    pieces.send("2\n\n".into()).await.unwrap();
    assert_eq!(frame(&mut events).await, "data: 2\n\n");
    assert_eq!(layer.registered().stats().events_sent, 3);
}

#[tokio::test(start_paused = true)]
async fn oversized_event_is_sent_in_parts_without_interleaving() {
    let layer = layer().keep_alive(Duration::from_secs(1));
    let (pieces, mut events) = adopted(&layer, Request::default()).await;
    let line = Bytes::from(format!("data: {}\n", "x".repeat((1 << 20) - 1)));
    pieces.send(line.clone()).await.unwrap();
    assert_eq!(events.frame().await.unwrap(), line);
    let connection = layer.registered().iter().next().unwrap();
    connection.try_send(Event::message("waits")).unwrap();
    let waiting = tokio::time::timeout(Duration::from_secs(30), events.frame()).await;
    assert!(waiting.is_err(), "{waiting:?}");
    pieces.send("data: the end\n\n".into()).await.unwrap();
    assert_eq!(frame(&mut events).await, "data: the end\n\n");
    assert_eq!(frame(&mut events).await, "data: waits\n\n");
}

#[tokio::test(start_paused = true)]
async fn unfinished_event_does_not_outlast_a_drain() {
    let layer = layer();
    let (pieces, mut events) = adopted(&layer, Request::default()).await;
    let endless = Bytes::from(vec![b'x'; 2 << 20]);
    pieces.send(endless.clone()).await.unwrap();
    assert_eq!(events.frame().await.unwrap(), endless);
    let drain = tokio::spawn(layer.registered().drain().into_future());
    let broken = events.frame().await;
    assert!(matches!(broken, Err(ReadError::Broken(_))), "{broken:?}");
    let drained = drain.await.unwrap();
    assert_eq!((drained.ended, drained.aborted), (0, 1));
    // The inner stream is let go of.
    assert!(pieces.is_closed());
}

#[tokio::test(start_paused = true)]
async fn drain_aborts_only_unfinished_completions() {
    for finishes in [true, false] {
        let layer = SseLayer::completions("/").adopt(true);
        let request = Request::post("/").body(()).unwrap();
        let (pieces, mut events) = adopted(&layer, request).await;
        pieces.send("data: 1\n\n".into()).await.unwrap();
        let drain = tokio::spawn(layer.registered().drain().into_future());
        // On paused time: before the earliest cut of a drain, and as a rule after it has begun here.
        tokio::time::sleep(Duration::from_millis(4_900)).await;
        pieces.send("data: 2\n\n".into()).await.unwrap();
        if finishes {
            drop(pieces);
        }
        assert_eq!(events.event().await.unwrap().data, "1");
        assert_eq!(events.event().await.unwrap().data, "2");
        let drained = if finishes {
            events.end().await.unwrap();
            (1, 0)
        } else {
            let broken = events.event().await;
            assert!(matches!(broken, Err(ReadError::Broken(_))), "{broken:?}");
            (0, 1)
        };
        let ended = drain.await.unwrap();
        assert_eq!((ended.ended, ended.aborted), drained);
    }
}

#[tokio::test(start_paused = true)]
async fn adopted_stream_ends_as_its_inner_stream_does() {
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&reasons);
    let layer = layer().on_close(move |_, reason| noted.lock().unwrap().push(reason));
    let (pieces, mut events) = adopted(&layer, Request::default()).await;
    pieces
        .send("data: 1\n\ndata: not ended".into())
        .await
        .unwrap();
    drop(pieces);
    assert_eq!(frame(&mut events).await, "data: 1\n\n");
    assert_eq!(frame(&mut events).await, "data: not ended");
    assert!(matches!(events.frame().await, Err(ReadError::Ended)));

    let (pieces, mut events) = adopted(&layer, Request::default()).await;
    pieces.send("data: 1\n\n".into()).await.unwrap();
    pieces.send(Bytes::new()).await.unwrap();
    assert_eq!(frame(&mut events).await, "data: 1\n\n");
    match events.frame().await {
        Err(ReadError::Broken(error)) => assert_eq!(error.to_string(), "broken off"),
        other => panic!("{other:?}"),
    }

    let (pieces, events) = adopted(&layer, Request::default()).await;
    drop(events);
    assert!(pieces.is_closed());
    let expected = [
        CloseReason::Closed,
        CloseReason::Failed,
        CloseReason::ClientGone,
    ];
    assert_eq!(*reasons.lock().unwrap(), expected);
    assert_eq!(layer.registered().held(), 0);
}

#[tokio::test(start_paused = true)]
async fn adopted_stream_has_connection_limit_and_lifetime() {
    let layer = layer()
        .max_connections(1)
        .max_lifetime(Duration::from_secs(60));
    let (pieces, mut events) = adopted(&layer, Request::default()).await;
    let other = paths::open(
        layer.layer(service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(String::new()))
        })),
        Request::default(),
    );
    let mut other = other.await.unwrap().into_body();
    assert_eq!(other.event().await.unwrap().data, r#"{"reason":"full"}"#);
    assert!(matches!(other.event().await, Err(ReadError::Ended)));
    while !matches!(events.decoded().await, Err(ReadError::Ended)) {}
    assert!(pieces.is_closed());
    assert_eq!(layer.registered().stats().closed(CloseReason::Lifetime), 1);
}

#[tokio::test(start_paused = true)]
async fn responses_not_eligible_for_adoption_pass_unchanged() {
    let event_stream = |status: u16, encoding: Option<&'static str>| {
        let mut response = Response::builder()
            .status(status)
            .header("content-type", "text/event-stream; charset=utf-8");
        if let Some(encoding) = encoding {
            response = response.header("content-encoding", encoding);
        }
        response.body(String::from("data: 1")).unwrap()
    };
    let any_method = || SseLayer::any_path();
    let cases = [
        (any_method(), "GET", 200, None),
        (any_method().adopt(true), "GET", 200, Some("gzip")),
        (any_method().adopt(true), "GET", 203, None),
        (any_method().adopt(true), "HEAD", 200, None),
        (any_method().adopt(true), "POST", 200, None),
    ];
    for (layer, method, status, encoding) in cases {
        let service = layer.layer(service_fn(move |_: Request<()>| async move {
            Ok::<_, Infallible>(event_stream(status, encoding))
        }));
        let request = Request::builder().method(method).body(()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        assert!(!response.headers().contains_key("cache-control"));
        assert_eq!(response.body().size_hint().exact(), Some(7));
        assert_eq!(layer.registered().held(), 0);
    }
}

#[tokio::test]
async fn adopted_stream_does_not_block_server_shutdown() {
    let connections = Connections::new();
    let layer = SseLayer::new("/{kind}")
        .methods([http::Method::GET, http::Method::POST])
        .adopt(true)
        .registry(&connections);
    let endless = || async {
        let (sender, events) = mpsc::channel::<Result<sse::Event, Infallible>>(1);
        let _ = sender.try_send(Ok(sse::Event::default().data("open")));
        tokio::spawn(async move { sender.closed().await });
        Sse::new(ReceiverStream::new(events)).keep_alive(sse::KeepAlive::default())
    };
    let app = Router::new()
        .route("/get", get(endless))
        .route("/post", post(|| async { "other" }))
        .layer(layer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/get", listener.local_addr().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let server = tokio::spawn(server.into_future());
    let mut response = reqwest::get(&url).await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert_eq!(first, "data: open\n\n");
    stop.send(()).unwrap();
    let drain = connections.drain().over(Duration::from_millis(50));
    let drained = drain.await;
    assert_eq!((drained.ended, drained.aborted), (1, 0));
    let mut rest = tower_sse::event::Decoder::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        rest.feed(&chunk).unwrap();
    }
    let last = std::iter::from_fn(|| rest.next()).find_map(|decoded| match decoded {
        Decoded::Event(event) => Some(event.event_type),
        _ => None,
    });
    assert_eq!(last.as_deref(), Some("reconnect"));
    let finished = tokio::time::timeout(support::LIMIT, server).await;
    finished.expect("the server finishes").unwrap().unwrap();
}
