//! Limits, figures, the stop, the command line.

use std::{future::Future, net::SocketAddr, time::Duration};

use axum::Extension;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

use super::*;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = timeout(LIMIT, future).await;
    result.unwrap_or_else(|_| panic!("it took too long: {what}"))
}

fn hub_of(line: &str) -> Hub {
    let options = Options::parse(line.split_whitespace().map(str::to_owned));
    hub(options.unwrap())
}

async fn json(app: &Router) -> TestResult<Value> {
    let (status, stats) = ask(app, Method::GET, "/stats", "").await?;
    assert_eq!(status, StatusCode::OK);
    Ok(serde_json::from_str(&stats)?)
}

/// Asks for a stream, and is refused for this reason.
async fn refused(app: &Router, reason: &str) -> TestResult {
    let request = Request::get("/events?topic=a").body(Body::empty())?;
    let response = test_util::open(app.clone(), request).await?;
    assert_eq!(response.status(), StatusCode::OK);
    let mut events = response.into_body();
    let frame = events.frame().await?;
    let begin = format!("event: reconnect\ndata: {{\"reason\":\"{reason}\"}}\nretry: ");
    let retry = std::str::from_utf8(&frame)?.strip_prefix(&*begin);
    let retry: u64 = retry.ok_or("it is not the event")?.trim_end().parse()?;
    assert!((5000..=15000).contains(&retry), "{retry}");
    events.end().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_stream_beyond_the_limit_is_refused_until_one_has_ended() -> TestResult {
    let app = super::super::app(hub_of("--max 2"));
    let (_first, _) = open(&app, "/events?topic=a").await?;
    let (second, _) = open(&app, "/events?topic=a").await?;
    refused(&app, "full").await?;
    drop(second);
    let (_third, _) = open(&app, "/events?topic=a").await?;
    let stats = json(&app).await?;
    assert_eq!(stats["connections"]["open"], 2);
    assert_eq!(stats["connections"]["most"], 2);
    assert_eq!(stats["connections"]["opened"], 3);
    assert_eq!(stats["connections"]["refused"], 1);
    assert_eq!(stats["connections"]["closed"]["client_gone"], 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn stream_limit_is_counted_per_address() -> TestResult {
    let app = super::super::app(hub_of("--max-per-address 1"));
    let from = |address: &str| {
        let address: SocketAddr = address.parse().unwrap();
        let app = app.clone().layer(Extension(PeerAddr(address)));
        Router::new().fallback_service(app)
    };
    let (_one, _) = open(&from("192.0.2.1:1000"), "/events?topic=a").await?;
    refused(&from("192.0.2.1:1001"), "key_full").await?;
    let (_other, _) = open(&from("192.0.2.2:1000"), "/events?topic=a").await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn client_resumes_after_its_stream_reaches_the_lifetime() -> TestResult {
    let app = super::super::app(hub_of("--lifetime 20"));
    let (events, _) = open(&app, "/events?topic=a").await?;
    publish(&app, "/topics/a", "1").await?;
    let began = tokio::time::Instant::now();
    let mut events = events.time_limit(LIMIT);
    assert_eq!(next(&mut events).await?, "message:1");
    events.end().await?;
    let lived = began.elapsed().as_secs_f64();
    assert!((18.0..20.2).contains(&lived), "{lived}");

    publish(&app, "/topics/a", "2").await?;
    let path = format!("/events?topic=a&lastEventId={}", events.last_event_id());
    let (mut events, _) = open(&app, &path).await?;
    assert_eq!(next(&mut events).await?, "message:2");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn stats_count_streams_topics_and_events() -> TestResult {
    let app = app(7);
    let (mut one, _) = open(&app, "/events?topic=a&topic=b").await?;
    let (_two, _) = open(&app, "/events?topic=a").await?;
    publish(&app, "/topics/a", "1").await?;
    publish(&app, "/topics/c", "2").await?;
    assert_eq!(next(&mut one).await?, "message:1");

    let stats = json(&app).await?;
    let connections = &stats["connections"];
    assert_eq!(stats["ready"], true);
    assert_eq!(connections["open"], 2);
    // Two welcomes, and the event that one has read.
    assert_eq!(connections["events"], 3);
    assert!(connections["bytes"].as_u64() > Some(100), "{stats}");
    let expected = json!({
        "topics": 3, "published": 2, "history": 7, "kept": 2, "gaps": 0, "lagged": 0,
    });
    assert_eq!(stats["broker"], expected);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn metrics_endpoint_reports_only_this_hub() -> TestResult {
    let other = app(1);
    publish(&other, "/topics/a", "elsewhere").await?;
    let app = super::super::app(hub_of("--max 1"));
    let (_stream, _) = open(&app, "/events?topic=a").await?;
    refused(&app, "full").await?;
    publish(&app, "/topics/a", "1").await?;
    for published in [1, 2] {
        let request = Request::get("/metrics").body(Body::empty())?;
        let response = app.clone().oneshot(request).await?;
        let content_type = &response.headers()["content-type"];
        assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
        let text = to_bytes(response.into_body(), 1 << 20).await?;
        let text = std::str::from_utf8(&text)?;
        for line in [
            "# TYPE sse_connections_open gauge",
            "sse_connections_open 1",
            "sse_requests_refused_total 1",
            "sse_connections_closed_total{reason=\"drained\"} 0",
            "# TYPE sse_published_total counter",
            &format!("sse_published_total {published}"),
        ] {
            assert!(
                text.lines().any(|it| it == line),
                "{line} is not in\n{text}"
            );
        }
        publish(&app, "/topics/a", "2").await?;
    }
    Ok(())
}

/// A hub on a socket of this machine, and what tells it to stop.
struct Running {
    address: SocketAddr,
    hub: Hub,
    stop: Arc<Notify>,
    served: JoinHandle<std::io::Result<Stopped>>,
}

impl Running {
    async fn start(line: &str) -> TestResult<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let hub = hub_of(line);
        let stop = Arc::new(Notify::new());
        let told = Arc::clone(&stop);
        let served = serve(listener, hub.clone(), async move || told.notified().await);
        let served = tokio::spawn(served);
        Ok(Self {
            address,
            hub,
            stop,
            served,
        })
    }

    /// Sends a GET, on a socket of its own, and gives the socket.
    async fn get(&self, path: &str) -> TestResult<TcpStream> {
        let mut socket = TcpStream::connect(self.address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: hub\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        Ok(socket)
    }

    /// Opens a stream, and reads its welcome.
    async fn stream(&self) -> TestResult<TcpStream> {
        let mut socket = self.get("/events?topic=a").await?;
        read_until(&mut socket, "event: welcome").await?;
        Ok(socket)
    }

    async fn ended(self) -> TestResult<Stopped> {
        Ok(within("the end of the server", self.served).await??)
    }
}

async fn read_until(socket: &mut TcpStream, text: &str) -> TestResult<String> {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        let count = within(text, socket.read_buf(&mut read)).await?;
        assert_ne!(count, 0, "it ended without {text}");
    }
    Ok(String::from_utf8(read)?)
}

#[tokio::test]
async fn shutdown_asks_clients_to_reconnect_and_completes() -> TestResult {
    let hub = Running::start("--drain 4").await?;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(hub.stream().await?);
    }
    let mut kept = hub.get("/ready").await?;
    assert!(read_until(&mut kept, "ready\n").await?.contains(" 200 OK"));

    hub.stop.notify_one();
    for mut socket in streams {
        let mut rest = String::new();
        within("the end of a stream", socket.read_to_string(&mut rest)).await?;
        let last = "event: reconnect\ndata: {\"reason\":\"drained\"}\nretry: ";
        assert!(rest.contains(last), "{rest}");
        assert!(rest.ends_with("\r\n0\r\n\r\n"), "it broke off: {rest}");
    }
    let figures = hub.hub.connections.clone();
    assert_eq!(hub.ended().await?, Stopped::Finished);
    assert_eq!(figures.stats().closed(tower_sse::CloseReason::Drained), 20);
    Ok(())
}

#[tokio::test]
async fn readiness_fails_before_requests_are_refused() -> TestResult {
    let hub = Running::start("--unready 3600").await?;
    hub.stop.notify_one();
    within("/ready to say no", async {
        loop {
            let mut socket = hub.get("/ready").await?;
            let answer = read_until(&mut socket, "\r\n\r\n").await?;
            if answer.contains(" 503 ") {
                return TestResult::Ok(());
            }
        }
    })
    .await?;
    let _stream = hub.stream().await?;

    // Told again it stops at once: an hour is not waited for.
    hub.stop.notify_one();
    assert_eq!(hub.ended().await?, Stopped::AtOnce);
    Ok(())
}

#[tokio::test]
async fn stalled_client_does_not_block_shutdown() -> TestResult {
    let hub = Running::start("--drain 1").await?;
    let stalled = hub.stream().await?;
    let text = "x".repeat(256 * 1024);
    let sse = hub.hub.connections.iter().next().ok_or("no stream")?;
    // The server takes what is sent until the buffers on the way are full.
    within("full buffers", async {
        while let Ok(sent) = timeout(Duration::from_secs(1), sse.send(Event::message(&*text))).await
        {
            sent?;
        }
        TestResult::Ok(())
    })
    .await?;
    drop(sse);
    hub.stop.notify_one();
    hub.ended().await?;
    drop(stalled);
    Ok(())
}

#[test]
fn command_line_is_parsed_or_rejected_with_a_reason() {
    let parse = |line: &str| Options::parse(line.split_whitespace().map(str::to_owned));
    let options = parse("").unwrap();
    assert_eq!(options.listen.to_string(), "127.0.0.1:3000");
    assert_eq!((options.history, options.max), (1000, 10_000));
    let line = "--history 5 --listen [::1]:80 --max 6 --max-per-address 7 --lifetime 8 \
        --unready 9 --drain 10";
    let options = parse(line).unwrap();
    assert_eq!(options.listen.to_string(), "[::1]:80");
    assert_eq!((options.history, options.max), (5, 6));
    assert_eq!(options.max_per_address, 7);
    assert_eq!(options.lifetime, Duration::from_secs(8));
    assert_eq!(options.unready, Duration::from_secs(9));
    assert_eq!(options.drain, Duration::from_secs(10));
    assert!(parse("--unready 0").is_ok());
    for (line, text) in [
        ("--history 0", "0 is no number from 1 on"),
        ("--history many", "many is no number from 1 on"),
        ("--lifetime 0", "0 is no number from 1 on"),
        ("--unready -1", "-1 is no number from 0 on"),
        ("--listen 3000", "3000 is no address"),
        ("--max 5 --listen", "--listen needs a value"),
        ("--port 1", "--port is unknown; usage: hub"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.contains(text), "{line}: {error}");
    }
}
