//! Behind nginx and haproxy, with the buffering that they have by default: events come at once, one
//! by one.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use support::{
    raw::{End, Raw},
    server::Server,
    streams::{GET, Streams},
    until, within,
};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::Instant,
};
use tower_sse::{CloseReason, Event, SseLayer};

/// A proxy in front of a server. It is killed, and its folder removed, when this is dropped.
struct Proxy {
    address: SocketAddr,
    process: Child,
    folder: PathBuf,
}

impl Proxy {
    /// Runs a program with a file that this makes of the address to listen on.
    async fn start(
        program: &str,
        arguments: &[&str],
        config: impl Fn(SocketAddr) -> String,
    ) -> Self {
        // Between the look for a free port and its use another may take it.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let name = format!("tower-sse-{}-{}", std::process::id(), address.port());
            let folder = env::temp_dir().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("proxy.conf"), config(address)).unwrap();
            let process = spawn(program, arguments, &folder);
            let mut proxy = Self {
                address,
                process,
                folder,
            };
            if proxy.is_up().await {
                return proxy;
            }
        }
        panic!("{program} does not start");
    }

    /// Waits until it can be connected to, or has ended.
    async fn is_up(&mut self) -> bool {
        within("the proxy", async {
            loop {
                if self.process.try_wait().unwrap().is_some() {
                    return false;
                }
                if TcpStream::connect(self.address).await.is_ok() {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.start_kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn spawn(program: &str, arguments: &[&str], folder: &PathBuf) -> Child {
    // The folder of such programs is not on every user's path.
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .env("PATH", path)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command.spawn().unwrap_or_else(|error| {
        panic!(
            "{program} could not be run ({error}): install it, with `apt-get install {program}`, \
             `dnf install {program}` or `brew install {program}`, or run tests/run.sh, which does \
             that"
        )
    })
}

/// nginx, with more lines on how it asks the server.
async fn nginx(server: SocketAddr, more: &str) -> Proxy {
    let config = |address| {
        format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr crit;
            events {{}}
            http {{
                access_log off;
                client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
                uwsgi_temp_path uwsgi; scgi_temp_path scgi;
                server {{
                    listen {address};
                    location / {{ proxy_pass http://{server}; {more} }}
                }}
            }}"
        )
    };
    Proxy::start(
        "nginx",
        &["-p", ".", "-e", "stderr", "-c", "proxy.conf"],
        config,
    )
    .await
}

/// haproxy, with a line more.
async fn haproxy(server: SocketAddr, more: &str) -> Proxy {
    let config = |address| {
        format!(
            "defaults
                mode http
                timeout connect 5s
                timeout client 1m
                timeout server 1m
                {more}
            listen proxy
                bind {address}
                server server {server}\n"
        )
    };
    Proxy::start("haproxy", &["-db", "-q", "-f", "proxy.conf"], config).await
}

async fn start(layer: SseLayer) -> (Streams, Server) {
    let streams = Streams::new(layer);
    let server = Server::ours(streams.router.clone(), true).await;
    (streams, server)
}

/// Events through a proxy, and the end of the stream.
async fn come_at_once(proxy: &Proxy, streams: &mut Streams, is_direct: bool) {
    let took = come(proxy, streams, is_direct).await;
    // A proxy that waits for more data delays each event, by 200 ms. On a busy machine some are late for
    // other reasons, so the fastest quarter counts.
    assert!(took[12] < Duration::from_millis(100), "{took:?}");
}

/// The same, without a time limit. Returns the times of 50 events, the shortest first.
async fn come(proxy: &Proxy, streams: &mut Streams, is_direct: bool) -> Vec<Duration> {
    let before = streams.direct();
    let mut client = Raw::request(proxy.address, &format!("{GET}last-event-id: 7-ü\r\n")).await;
    let sse = streams.next().await;
    assert_eq!(sse.last_event_id(), Some("7-ü"));
    client.stream_head().await;
    assert_eq!(client.event().await.unwrap().data, "hello");
    assert_eq!(is_direct, streams.direct() == before + 1);
    let mut took = Vec::new();
    for number in 0..50 {
        let start = Instant::now();
        // The next one is not sent before this one is there.
        sse.send(Event::message(number.to_string())).await.unwrap();
        assert_eq!(client.event().await.unwrap().data, number.to_string());
        took.push(start.elapsed());
    }
    took.sort_unstable();
    sse.send(Event::message("x".repeat(3_000_000)))
        .await
        .unwrap();
    assert_eq!(client.event().await.unwrap().data.len(), 3_000_000);
    sse.close();
    assert_eq!(client.event().await, Err(End::LastChunk));
    took
}

/// A client that leaves the proxy.
async fn is_noticed(proxy: &Proxy, streams: &mut Streams) {
    let mut client = Raw::connect(proxy.address).await;
    let sse = streams.open(&mut client).await;
    drop(client);
    let reason = within("the end", sse.closed()).await;
    assert_eq!(reason, CloseReason::ClientGone);
    streams.gone().await;
}

/// Without a heartbeat: nginx itself says that a client has left.
fn silent() -> SseLayer {
    SseLayer::new("/events").keep_alive(None)
}

#[tokio::test]
async fn default_nginx_forwards_events_at_once() {
    let (mut streams, server) = start(silent()).await;
    let proxy = nginx(server.address, "").await;
    // It asks with HTTP/1.0.
    come_at_once(&proxy, &mut streams, false).await;
    is_noticed(&proxy, &mut streams).await;
}

#[tokio::test]
async fn nginx_with_http1_1_forwards_direct_events_at_once() {
    let (mut streams, server) = start(silent()).await;
    let keep = "proxy_http_version 1.1; proxy_set_header Connection \"\";";
    let proxy = nginx(server.address, keep).await;
    for _ in 0..2 {
        come_at_once(&proxy, &mut streams, true).await;
    }
    is_noticed(&proxy, &mut streams).await;
}

/// haproxy takes a client that closes for one that has closed its half, until it has something to
/// write: so a heartbeat is what finds it.
fn beating() -> SseLayer {
    SseLayer::new("/events").keep_alive(Duration::from_millis(100))
}

#[tokio::test]
async fn haproxy_with_no_delay_forwards_direct_events_at_once() {
    let (mut streams, server) = start(beating()).await;
    let proxy = haproxy(server.address, "option http-no-delay").await;
    for _ in 0..2 {
        come_at_once(&proxy, &mut streams, true).await;
    }
    is_noticed(&proxy, &mut streams).await;
}

/// It asks its kernel then to wait for more of a chunked body, which takes 200 ms at most.
#[tokio::test]
async fn default_haproxy_forwards_events_after_a_short_delay() {
    let (mut streams, server) = start(beating()).await;
    let proxy = haproxy(server.address, "").await;
    let took = come(&proxy, &mut streams, true).await;
    assert!(took[12] < Duration::from_millis(500), "{took:?}");
    is_noticed(&proxy, &mut streams).await;
}

#[tokio::test]
async fn proxies_forward_an_aborted_stream_as_aborted() {
    let (mut streams, server) = start(silent()).await;
    for proxy in [
        nginx(server.address, "proxy_http_version 1.1;").await,
        haproxy(server.address, "").await,
    ] {
        let mut client = Raw::connect(proxy.address).await;
        let sse = streams.open(&mut client).await;
        sse.fail("broken");
        assert_eq!(client.event().await, Err(End::Cut));
        until("no connection to be left", || {
            streams.connections.is_empty()
        })
        .await;
    }
}
