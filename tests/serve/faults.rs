//! What goes wrong with clients, over real sockets: on streams that are direct, and on those that
//! hyper drives, with the same outcome.

use std::{
    env,
    future::{IntoFuture, ready},
    io,
    process::Command,
    sync::Arc,
    time::Duration,
};

use socket2::SockRef;
use support::{
    LIMIT, SLACK,
    raw::{End, Raw},
    server::Server,
    streams::{GET, Streams},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream, unix},
    time::{Instant, interval, timeout},
};
use tower_sse::{
    CloseReason, Event, SseConnection, SseLayer,
    serve::{Listener, TcpListener, serve},
};

/// How long a peer may take nothing, in these tests.
const DEADLINE: Duration = Duration::from_secs(1);

fn quiet() -> SseLayer {
    SseLayer::new("/events")
        .keep_alive(None)
        .stall_timeout(None)
}

/// A server with buffers as small as they get, and a stream on it.
async fn small(layer: SseLayer, is_direct: bool) -> (Streams, Server, Raw, SseConnection) {
    small_until(DEADLINE, layer, is_direct).await
}

/// The same, with this write deadline.
async fn small_until(
    deadline: Duration,
    layer: SseLayer,
    is_direct: bool,
) -> (Streams, Server, Raw, SseConnection) {
    let mut streams = Streams::new(layer);
    let server = Server::ours_small(streams.router.clone(), move |serve| {
        serve.direct(is_direct).write_deadline(Some(deadline))
    })
    .await;
    let mut client = Raw::connect_small(server.address).await;
    let sse = streams.open(&mut client).await;
    assert_eq!(is_direct, streams.direct() == 1);
    (streams, server, client, sse)
}

fn big(size: usize) -> Event {
    Event::message("x".repeat(size))
}

#[tokio::test]
async fn reset_in_the_middle_of_a_frame_is_detected_at_once() {
    for is_direct in [true, false] {
        // The deadline is far away.
        let (streams, _server, mut client, sse) = small_until(2 * LIMIT, quiet(), is_direct).await;
        sse.send(big(1_000_000)).await.unwrap();
        client.take(1000).await;
        client.reset();
        let reason = within("the end", sse.closed()).await;
        assert_eq!(reason, CloseReason::ClientGone);
        streams.gone().await;
    }
}

#[tokio::test]
async fn stalled_client_is_closed_at_the_write_deadline() {
    for is_direct in [true, false] {
        let (streams, _server, mut client, sse) = small(quiet(), is_direct).await;
        let sent = Instant::now();
        sse.send(big(1_000_000)).await.unwrap();
        let reason = within("the end", sse.closed()).await;
        let took = sent.elapsed();
        assert_eq!(reason, CloseReason::ClientGone);
        assert!(took >= DEADLINE && took < DEADLINE + SLACK, "{took:?}");
        streams.gone().await;
        // What is in the buffers is still there, and then it breaks off.
        assert_eq!(client.chunk().await, Err(End::Cut));
    }
}

/// A Unix socket's listener. Each write takes a place in the kernel's buffer, however short it is:
/// a few heartbeats fill it.
struct Small(UnixListener);

impl Listener for Small {
    type Io = UnixStream;
    type Handshake = std::future::Ready<io::Result<UnixStream>>;
    type Addr = Arc<unix::SocketAddr>;

    async fn accept(&mut self) -> io::Result<(Self::Handshake, Self::Addr)> {
        let (socket, address) = self.0.accept().await?;
        SockRef::from(&socket).set_send_buffer_size(1)?;
        Ok((ready(Ok(socket)), Arc::new(address)))
    }
}

#[tokio::test]
async fn stalled_client_is_closed_with_only_heartbeats_to_write() {
    for is_direct in [true, false] {
        let mut streams = Streams::new(quiet().keep_alive(Duration::from_millis(1)));
        let name = format!("tower-sse-{}-{is_direct}", std::process::id());
        let path = env::temp_dir().join(name);
        let listener = Small(UnixListener::bind(&path).unwrap());
        let served = serve(listener, streams.router.clone())
            .direct(is_direct)
            .write_deadline(Some(DEADLINE));
        let server = tokio::spawn(served.into_future());
        let mut client = UnixStream::connect(&path).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        client
            .write_all(format!("{GET}\r\n").as_bytes())
            .await
            .unwrap();
        let sse = streams.next().await;

        let mut taken = vec![(Instant::now(), 0)];
        let reason = within("the end", async {
            let mut looks = interval(Duration::from_millis(10));
            loop {
                tokio::select! {
                    reason = sse.closed() => break reason,
                    _ = looks.tick() => {}
                }
                taken.push((Instant::now(), streams.connections.stats().bytes_sent));
            }
        })
        .await;
        let end = Instant::now();
        assert_eq!(reason, CloseReason::ClientGone);
        let stats = streams.connections.stats();
        assert_eq!(stats.events_sent, 1, "the welcome alone");
        assert!(stats.bytes_sent > 20, "heartbeats");
        assert_eq!(is_direct, streams.direct() == 1);
        streams.gone().await;
        let mut text = Vec::new();
        within("the rest", client.read_to_end(&mut text))
            .await
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let beats = body.strip_prefix("D\r\ndata: hello\n\n\r\n").unwrap();
        let count = beats.len() / 7;
        assert_eq!(beats, "2\r\n:\n\r\n".repeat(count));
        // The deadline runs from when a heartbeat was taken from the stream that has not come.
        let came = 13 + 2 * count as u64;
        // It was written between two observations, which may be far apart on a busy machine.
        let stuck = taken.iter().position(|(_, bytes)| *bytes > came).unwrap();
        let (most, least) = (end - taken[stuck - 1].0, end - taken[stuck].0);
        assert!(
            most >= DEADLINE && least < DEADLINE + SLACK,
            "{least:?} to {most:?}"
        );
        server.abort();
    }
}

#[tokio::test]
async fn a_client_that_reads_1_kb_a_second_gets_everything() {
    tokio::join!(gets_all_slowly(true), gets_all_slowly(false));
}

async fn gets_all_slowly(is_direct: bool) {
    let mut streams = Streams::new(quiet());
    let server = Server::ours_small(streams.router.clone(), move |serve| {
        // Longer than the kernel needs to see that there is room again: it waits for some KiB.
        serve.direct(is_direct).write_deadline(Some(8 * DEADLINE))
    })
    .await;
    let mut client = Raw::connect_small(server.address).await;
    let sse = streams.open(&mut client).await;
    assert_eq!(is_direct, streams.direct() == 1);
    sse.send(big(20_000)).await.unwrap();
    let mut seconds = interval(Duration::from_secs(1));
    for _ in 0..17 {
        seconds.tick().await;
        assert!(client.sip(1000).await && !sse.is_closed());
    }
    assert_eq!(client.event().await.unwrap().data.len(), 20_000);
    assert!(!sse.is_closed());
}

/// The kernel says that there is room again when a slow peer has taken some KiB: without
/// `TCP_NOTSENT_LOWAT` it would be a third of its buffer, which grows to megabytes.
#[tokio::test]
async fn slow_client_behind_system_buffers_is_not_closed() {
    tokio::join!(is_not_given_up(true), is_not_given_up(false));
}

async fn is_not_given_up(is_direct: bool) {
    let mut streams = Streams::new(quiet());
    let server = Server::ours_with(streams.router.clone(), move |serve| {
        serve.direct(is_direct).write_deadline(Some(4 * DEADLINE))
    })
    .await;
    let mut client = Raw::connect_small(server.address).await;
    let sse = streams.open(&mut client).await;
    assert_eq!(is_direct, streams.direct() == 1);
    sse.send(big(2_000_000)).await.unwrap();
    let start = Instant::now();
    let mut ticks = interval(Duration::from_millis(50));
    while start.elapsed() < 10 * DEADLINE {
        ticks.tick().await;
        assert!(client.sip(1000).await && !sse.is_closed());
    }
    assert_eq!(client.event().await.unwrap().data.len(), 2_000_000);
    assert!(!sse.is_closed());
}

#[tokio::test]
async fn client_bytes_during_a_stream_do_not_disturb_it() {
    for is_direct in [true, false] {
        for size in [1, 10_000, 40_000_000] {
            let (streams, _server, mut client, sse) = small(quiet(), is_direct).await;
            let bytes = vec![b'x'; size];
            let sends = timeout(Duration::from_millis(500), client.try_send_bytes(&bytes)).await;
            // What is over the bound stays with the client.
            assert_eq!(sends.is_err(), size == 40_000_000, "{size}");
            for number in 0..10 {
                sse.send(Event::message(number.to_string())).await.unwrap();
                assert_eq!(client.event().await.unwrap().data, number.to_string());
            }
            // That it leaves may not be noticed behind so many bytes, but with the next write is.
            drop(client);
            within("the end", async {
                while sse.send(Event::message("more")).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            assert_eq!(sse.closed().await, CloseReason::ClientGone);
            streams.gone().await;
        }
    }
}

#[tokio::test]
async fn half_close_by_the_client_is_a_disconnect() {
    for is_direct in [true, false] {
        let (streams, _server, mut client, sse) = small(quiet(), is_direct).await;
        client.half_close().await;
        let reason = within("the end", sse.closed()).await;
        assert_eq!(reason, CloseReason::ClientGone);
        assert_eq!(client.chunk().await, Err(End::Cut));
        streams.gone().await;
    }
}

const ALONE: &str = "SERVE_FAULTS_ALONE";

/// In a network of its own, which is taken down: nobody says a word to the server then. Where the
/// system gives none, as in some containers, it is a proxy that goes silent.
#[tokio::test]
async fn vanished_client_is_detected_by_the_user_timeout() {
    let name = support::own_process::test_name(
        module_path!(),
        "vanished_client_is_detected_by_the_user_timeout",
    );
    if env::var_os(ALONE).is_some() {
        return vanish().await;
    }
    // As a user who is root inside, or as root.
    let Some(ways) = ["-rn", "-n"].into_iter().find(gives_network) else {
        println!("there is no network of one's own here");
        return silent(DEADLINE, None).await;
    };
    let program = env::current_exe().unwrap();
    let mut alone = tokio::process::Command::new("unshare");
    alone.arg(ways).arg(program).args(["--exact", &name]);
    let output = alone.env(ALONE, "1").kill_on_drop(true).output();
    let output = within("the other process", output).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn gives_network(ways: &&str) -> bool {
    let tried = Command::new("unshare").args([ways, "true"]).output();
    let tried = tried.expect("the program `unshare`, of util-linux");
    tried.status.success()
}

fn set_network(state: &str) {
    // Its folder is not on every user's path.
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut set = Command::new("ip");
    set.args(["link", "set", "lo", state]).env("PATH", path);
    let set = set.status();
    assert!(set.expect("the program `ip`, of iproute2").success());
}

async fn vanish() {
    set_network("up");
    for is_direct in [true, false] {
        let mut streams = Streams::new(quiet().keep_alive(Duration::from_millis(100)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = listener.user_timeout(Some(DEADLINE));
        // There is room for what is written, so that no write is ever pending.
        let served = serve(listener, streams.router.clone())
            .direct(is_direct)
            .write_deadline(Some(DEADLINE));
        let server = tokio::spawn(served.into_future());
        let mut client = Raw::connect(address).await;
        let sse = streams.open(&mut client).await;
        let before = Instant::now();
        set_network("down");
        let reason = within("the end", sse.closed()).await;
        let took = before.elapsed();
        assert_eq!(reason, CloseReason::ClientGone);
        // The system looks at its timeout when it sends again, at times that double.
        assert!(took > DEADLINE && took < DEADLINE + SLACK, "{took:?}");
        streams.gone().await;
        set_network("up");
        server.abort();
    }
}

/// A proxy that goes silent: it holds its connection, and reads no more. Its system says that it is
/// there, and has no room.
#[tokio::test]
async fn silent_proxy_is_detected_by_either_deadline() {
    tokio::join!(
        silent(DEADLINE, None),
        silent(Duration::from_secs(100), Some(DEADLINE))
    );
}

async fn silent(user_timeout: Duration, write_deadline: Option<Duration>) {
    for is_direct in [true, false] {
        let mut streams = Streams::new(quiet().keep_alive(Duration::from_millis(100)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = listener.user_timeout(Some(user_timeout));
        let served = serve(listener, streams.router.clone())
            .direct(is_direct)
            .write_deadline(write_deadline);
        let server = tokio::spawn(served.into_future());
        let mut proxy = Raw::connect_small(address).await;
        let sse = streams.open(&mut proxy).await;
        assert_eq!(is_direct, streams.direct() == 1);
        let sent = Instant::now();
        sse.send(big(10_000_000)).await.unwrap();
        let reason = within("the end", sse.closed()).await;
        let took = sent.elapsed();
        assert_eq!(reason, CloseReason::ClientGone);
        // The system looks at its timeout when it asks again, at times that double.
        assert!(took >= DEADLINE && took < DEADLINE + SLACK, "{took:?}");
        streams.gone().await;
        server.abort();
    }
}
