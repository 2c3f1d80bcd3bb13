//! The server itself: what a connection may take its time for, addresses, other protocols, and
//! listeners that fail.

use std::{
    env,
    future::{IntoFuture, Ready, ready},
    io,
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::Request,
    routing::{any, get},
};
use http::StatusCode;
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, Rlimit, setrlimit};
use support::{
    SLACK,
    raw::{End, Raw},
    server::Server,
    streams::{GET, Streams},
    within,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, DuplexStream, copy, duplex, split},
    net::{UnixListener, UnixStream},
    process::Command,
    time::{Instant, interval, sleep, timeout},
};
use tower_sse::{
    Event, SseConnection, SseLayer,
    serve::{Listener, PeerAddr, TcpListener, serve},
};

const PLAIN: &str = "GET /plain HTTP/1.1\r\nhost: a\r\n";

/// How long a head may take, in these tests.
const HEAD_TIME: Duration = Duration::from_secs(1);

fn streams() -> Streams {
    Streams::new(SseLayer::new("/events"))
}

async fn gets_plain<S>(client: &mut Raw<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    client.send(PLAIN).await;
    assert_eq!(client.head().await.status, StatusCode::OK);
    assert_eq!(client.take(5).await, b"plain");
}

// ===== time =====

#[tokio::test]
async fn head_sent_byte_by_byte_times_out() {
    let streams = streams();
    let set_up = |serve: support::server::Ours| serve.header_read_timeout(HEAD_TIME);
    let server = Server::ours_with(streams.router.clone(), set_up).await;
    // The last one begins as HTTP/2 does.
    for head in [
        "GET /plain HTTP/1.1\r\nhost: a\r\n",
        "",
        "PRI * HTTP/2.0\r\n\r\nSM",
    ] {
        let start = Instant::now();
        let mut client = Raw::connect(server.address).await;
        let mut ticks = interval(HEAD_TIME / 15);
        let mut bytes = head.bytes().chain(std::iter::repeat_n(b'x', 300));
        let mut is_silent = head.is_empty();
        loop {
            tokio::select! {
                read = client.more() => {
                    assert!(read.is_empty(), "{}", String::from_utf8_lossy(&read));
                    break;
                }
                _ = ticks.tick(), if !is_silent => {
                    let byte = bytes.next().unwrap();
                    is_silent = client.try_send_bytes(&[byte]).await.is_err();
                }
            }
        }
        let took = start.elapsed();
        assert!(
            took >= HEAD_TIME && took < HEAD_TIME + SLACK,
            "{head:?}: {took:?}"
        );
    }
}

#[tokio::test]
async fn connection_without_a_next_request_times_out() {
    for is_direct in [true, false] {
        let mut streams = streams();
        let server = Server::ours_with(streams.router.clone(), move |serve| {
            serve.header_read_timeout(HEAD_TIME).direct(is_direct)
        })
        .await;
        let mut idle = Raw::connect(server.address).await;
        let start = Instant::now();
        gets_plain(&mut idle).await;
        let mut streaming = Raw::connect(server.address).await;
        let sse = streams.open(&mut streaming).await;
        assert_eq!(idle.rest().await, b"");
        let took = start.elapsed();
        assert!(took >= HEAD_TIME && took < HEAD_TIME + SLACK, "{took:?}");

        // A stream is not idle, until it has ended.
        sse.send(Event::message("1")).await.unwrap();
        assert_eq!(streaming.event().await.unwrap().data, "1");
        let start = Instant::now();
        sse.close();
        assert_eq!(streaming.chunk().await, Err(End::LastChunk));
        assert_eq!(streaming.rest().await, b"");
        let took = start.elapsed();
        assert!(took >= HEAD_TIME && took < HEAD_TIME + SLACK, "{took:?}");
    }
}

// ===== what a service sees =====

#[tokio::test]
async fn peer_address_is_available_after_a_direct_stream() {
    let mut streams = streams();
    let show = async |Extension(PeerAddr(peer)): Extension<PeerAddr<SocketAddr>>| peer.to_string();
    let router = streams.router.clone().route("/peer", get(show));
    let server = Server::ours(router, true).await;
    let mut client = Raw::connect(server.address).await;
    let address = client.local_address().to_string();
    for _ in 0..2 {
        client.send("GET /peer HTTP/1.1\r\nhost: a\r\n").await;
        client.head().await;
        assert_eq!(client.take(address.len()).await, address.as_bytes());
        let sse = streams.open(&mut client).await;
        sse.close();
        assert_eq!(client.chunk().await, Err(End::LastChunk));
    }
}

#[tokio::test]
async fn upgraded_connection_belongs_to_its_new_protocol() {
    let streams = streams();
    let upgrade = async |mut request: Request| {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async {
            let socket = TokioIo::new(upgrade.await.unwrap());
            let (mut reader, mut writer) = split(socket);
            let _ = copy(&mut reader, &mut writer).await;
        });
        let head = [("connection", "upgrade"), ("upgrade", "echo")];
        (StatusCode::SWITCHING_PROTOCOLS, head)
    };
    let router = streams.router.clone().route("/echo", any(upgrade));
    let mut server = Server::ours_with(router, |serve| serve.header_read_timeout(HEAD_TIME)).await;
    let request = "GET /echo HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n";
    let mut client = Raw::connect(server.address).await;
    // What comes right behind the head is the other protocol's.
    client
        .send_bytes(format!("{request}\r\nearly").as_bytes())
        .await;
    assert_eq!(client.head().await.status, StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(client.take(5).await, b"early");
    // No time for a next head runs, and a shutdown does not wait for it.
    let mut idle = Raw::connect(server.address).await;
    assert_eq!(idle.rest().await, b"");
    server.begin_stop();
    server.finished().await;
    client.send_bytes(b"late").await;
    assert_eq!(client.take(4).await, b"late");
}

#[tokio::test]
async fn a_unix_socket_is_served_with_direct_streams() {
    let mut streams = streams();
    let path = env::temp_dir().join(format!("tower-sse-{}-server", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(serve(listener, streams.router.clone()).into_future());
    let mut client = Raw::over(UnixStream::connect(&path).await.unwrap());
    std::fs::remove_file(&path).unwrap();
    let sse = streams.open(&mut client).await;
    sse.send(Event::message("x".repeat(2_000_000)))
        .await
        .unwrap();
    assert_eq!(client.event().await.unwrap().data.len(), 2_000_000);
    assert_eq!(streams.direct(), 1);
    sse.close();
    assert_eq!(client.chunk().await, Err(End::LastChunk));
    gets_plain(&mut client).await;
    server.abort();
}

// ===== listeners that fail =====

/// One that fails for some times before each socket that it gives.
struct Failing {
    times: usize,
    calls: Arc<AtomicUsize>,
    socket: Option<DuplexStream>,
}

impl Listener for Failing {
    type Io = DuplexStream;
    type Handshake = Ready<io::Result<DuplexStream>>;
    type Addr = ();

    async fn accept(&mut self) -> io::Result<(Self::Handshake, ())> {
        if self.calls.fetch_add(1, SeqCst) < self.times {
            return Err(io::Error::other("too many open files"));
        }
        match self.socket.take() {
            Some(socket) => Ok((ready(Ok(socket)), ())),
            None => std::future::pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn accept_backoff_grows_up_to_one_second() {
    let streams = streams();
    let (socket, ours) = duplex(1000);
    let calls = Arc::new(AtomicUsize::new(0));
    let listener = Failing {
        times: 20,
        calls: Arc::clone(&calls),
        socket: Some(ours),
    };
    let server = tokio::spawn(serve(listener, streams.router.clone()).into_future());
    let mut called = Vec::new();
    let start = Instant::now();
    while called.len() < 20 {
        let count = calls.load(SeqCst);
        if count > called.len() {
            called.push(start.elapsed().as_millis());
        }
        sleep(Duration::from_millis(1)).await;
    }
    let pauses: Vec<_> = called.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert!(pauses[0] >= 5 && pauses[0] < 10, "{pauses:?}");
    assert!(pauses[18] >= 1000 && pauses[18] < 1010, "{pauses:?}");
    gets_plain(&mut Raw::over(socket)).await;
    server.abort();
}

const OUT_OF_FILES: &str = "SERVE_SERVER_OUT_OF_FILES";

/// In another process, since the bound is one of a process.
#[tokio::test]
async fn server_accepts_again_after_running_out_of_files() {
    let name = support::own_process::test_name(
        module_path!(),
        "server_accepts_again_after_running_out_of_files",
    );
    if env::var_os(OUT_OF_FILES).is_some() {
        return be_out_of_files().await;
    }
    let mut other = Command::new(env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env(OUT_OF_FILES, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
    let address: SocketAddr = loop {
        let line = within("the other process", lines.next_line())
            .await
            .unwrap()
            .unwrap();
        if let Some((_, address)) = line.split_once("listens on ") {
            break address.parse().unwrap();
        }
    };
    let mut streaming = Raw::request(address, GET).await;
    streaming.stream_head().await;
    streaming.event().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..2 * FILES {
        held.push(Raw::request(address, PLAIN).await);
    }
    // The last one waits in the backlog, and the stream goes on.
    let mut late = Raw::request(address, PLAIN).await;
    assert_eq!(held[0].head().await.status, StatusCode::OK);
    for _ in 0..10 {
        assert_eq!(streaming.event().await.unwrap().data, "tick");
        assert!(timeout(Duration::ZERO, late.more()).await.is_err());
    }
    drop(held);
    assert_eq!(late.head().await.status, StatusCode::OK);
    assert_eq!(streaming.event().await.unwrap().data, "tick");
    other.kill().await.unwrap();
}

/// How many files the other process may have.
const FILES: usize = 40;

async fn be_out_of_files() {
    let tick = async |sse: SseConnection| {
        tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(50));
            loop {
                ticks.tick().await;
                if sse.send(Event::message("tick")).await.is_err() {
                    break;
                }
            }
        });
    };
    let router = Router::new()
        .route("/events", get(tick))
        .layer(SseLayer::new("/events"))
        .route("/plain", get(|| async { "plain" }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let most = Rlimit {
        current: Some(FILES as u64),
        maximum: Some(FILES as u64),
    };
    setrlimit(Resource::Nofile, most).unwrap();
    println!("listens on {}", listener.local_addr().unwrap());
    serve(listener, router).await.unwrap();
}
