//! Clients that come and go, at whatever point: is anything left of them?

use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::{Router, extract::State, http::request::Parts, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
    time::{interval, sleep, timeout},
};
use tower_sse::{Broker, Connections, Error, Event, SseConnection, SseLayer, layer::Limits};

use crate::{
    client::{connect, request},
    goals::{Wanted, goal},
    process::{Process, Serves, joined, listen, open_files, resident, settled, tasks},
};

const CLIENTS: usize = 100_000;
const WARM_UP: usize = 20_000;
const AT_A_TIME: usize = 200;

/// One of each way to be a stream: subscribed at once, after some time, a handler that runs on.
const PATHS: [&str; 3] = ["/topic", "/slow", "/loop"];

// ===== the server =====

pub(crate) struct Server {
    connections: Connections,
    broker: Broker,
    opened: Arc<AtomicU64>,
    closed: Arc<AtomicU64>,
}

async fn topic(State(broker): State<Broker>, sse: SseConnection) -> Result<(), Error> {
    broker.subscribe(&sse, "news").await?.start();
    Ok(())
}

async fn slow(broker: State<Broker>, sse: SseConnection) -> Result<(), Error> {
    sleep(Duration::from_millis(3)).await;
    topic(broker, sse).await
}

async fn run_on(sse: SseConnection) -> Result<(), Error> {
    loop {
        sse.send(news()).await?;
        sleep(Duration::from_millis(5)).await;
    }
}

fn news() -> Event {
    Event::message(format!("{:x<2000}", ""))
}

impl Server {
    pub(crate) async fn start() -> (Self, Vec<u16>) {
        let server = Self {
            connections: Connections::new(),
            broker: Broker::in_memory(),
            opened: Arc::default(),
            closed: Arc::default(),
        };
        let (opened, closed) = (Arc::clone(&server.opened), Arc::clone(&server.closed));
        let layer = SseLayer::new("/{stream}")
            .registry(&server.connections)
            // The ticker goes when there is no stream: it looks as often as this.
            .keep_alive(Duration::from_secs(1))
            .max_connections(10 * AT_A_TIME)
            .limits(
                Limits::new().connections_per(10 * AT_A_TIME, |request: &Parts| {
                    Some(request.uri.path().to_owned())
                }),
            )
            .max_lifetime(Duration::from_secs(3600))
            .on_open(move |_| {
                opened.fetch_add(1, Relaxed);
            })
            .on_close(move |_, _| {
                closed.fetch_add(1, Relaxed);
            });
        let router = Router::new()
            .route("/topic", get(topic))
            .route("/slow", get(slow))
            .route("/loop", get(run_on))
            .with_state(server.broker.clone())
            .layer(layer);
        let (listener, port) = listen(None);
        tokio::spawn(async { axum::serve(listener, router).await });
        let broker = server.broker.clone();
        // Once before it is looked at, so that the broker's own task is there.
        broker.publish("news", news()).await.expect("a position");
        tokio::spawn(async move {
            let mut time = interval(Duration::from_millis(10));
            loop {
                time.tick().await;
                broker.publish("news", news()).await.expect("a position");
            }
        });
        (server, vec![port])
    }
}

impl Serves for Server {
    async fn answer(&self, _: &str) -> String {
        let stats = self.connections.stats();
        let subscribers = self.broker.subscriber_count("news").expect("a topic");
        joined([
            self.connections.len() as u64,
            subscribers as u64,
            tasks() as u64,
            open_files() as u64,
            resident(),
            stats.opened,
            stats.refused,
            self.opened.load(Relaxed),
            self.closed.load(Relaxed),
        ])
    }
}

/// What the server says of itself.
struct Figures {
    open: u64,
    subscribers: u64,
    tasks: u64,
    files: u64,
    resident: u64,
    opened: u64,
    refused: u64,
    on_open: u64,
    on_close: u64,
}

// ===== the clients =====

/// Comes, and leaves at random: before its request, in it, before the head, in the head, in an
/// event. In one of four times by a FIN, else by an RST, which leaves no port waiting.
async fn come_and_go(port: u16) {
    let mut socket = connect(port, None).await;
    let path = PATHS[fastrand::usize(..PATHS.len())];
    let request = request(path, None);
    let sent = match fastrand::u8(..6) {
        0 => 0,
        1 => fastrand::usize(..request.len()),
        _ => request.len(),
    };
    let written = socket.write_all(&request.as_bytes()[..sent]).await;
    written.expect("a request");
    if sent == request.len() {
        match fastrand::u8(..4) {
            0 => {}
            1 => sleep(Duration::from_millis(fastrand::u64(..8))).await,
            // The head has about 180 bytes.
            2 => read(&mut socket, fastrand::usize(1..400)).await,
            _ => read(&mut socket, fastrand::usize(400..8_000)).await,
        }
    }
    if fastrand::u8(..4) > 0 {
        let _ = socket.set_zero_linger();
    }
}

async fn read(socket: &mut TcpStream, bytes: usize) {
    let mut buffer = vec![0; bytes];
    let read = timeout(Duration::from_secs(30), socket.read_exact(&mut buffer));
    read.await.expect("a stream in time").expect("a stream");
    assert!(
        buffer.starts_with(
            b"HTTP/1.1 200 OK"
                .get(..bytes)
                .unwrap_or(b"HTTP/1.1 200 OK")
        )
    );
}

async fn churn(port: u16, clients: usize) {
    let left = Rc::new(Cell::new(clients));
    let set = LocalSet::new();
    for _ in 0..AT_A_TIME {
        let left = Rc::clone(&left);
        set.spawn_local(async move {
            while left.get() > 0 {
                left.set(left.get() - 1);
                come_and_go(port).await;
            }
        });
    }
    set.await;
    assert_eq!(left.get(), 0);
}

async fn figures(server: &mut Process) -> Figures {
    let answer: [u64; 9] = server.ask("").await.try_into().expect("nine figures");
    let [
        open,
        subscribers,
        tasks,
        files,
        resident,
        opened,
        refused,
        on_open,
        on_close,
    ] = answer;
    Figures {
        open,
        subscribers,
        tasks,
        files,
        resident,
        opened,
        refused,
        on_open,
        on_close,
    }
}

pub(crate) async fn run() {
    let (mut server, ports) = Process::start("churn").await;
    let at_rest = figures(&mut server).await;
    // The start is the server at rest, once it has had many clients.
    churn(ports[0], WARM_UP).await;
    let long = Duration::from_secs(15);
    let is_at_rest =
        |it: &Figures| it.open == 0 && (it.tasks, it.files) == (at_rest.tasks, at_rest.files);
    let start = settled(long, async || figures(&mut server).await, is_at_rest).await;
    let time = Instant::now();
    churn(ports[0], CLIENTS).await;
    let time = time.elapsed().as_secs_f64();
    let is_at_rest =
        |it: &Figures| it.open == 0 && (it.tasks, it.files) == (start.tasks, start.files);
    let end = settled(long, async || figures(&mut server).await, is_at_rest).await;

    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "  {CLIENTS} clients in {time:.1} s, {} streams opened, {} started, {} refused",
        end.opened - start.opened,
        end.on_open - start.on_open,
        end.refused,
    );
    println!(
        "  before any client: {} tasks, {} files, {:.1} MiB; after {WARM_UP}: {}, {}, {:.1}; at \
         the end: {}, {}, {:.1}",
        at_rest.tasks,
        at_rest.files,
        mib(at_rest.resident),
        start.tasks,
        start.files,
        mib(start.resident),
        end.tasks,
        end.files,
        mib(end.resident),
    );
    let none = Wanted::AtMost(0.0);
    goal(
        "churn_streams_left",
        (end.open + end.subscribers) as f64,
        none,
    );
    let hooks_owed = end.on_open.abs_diff(end.on_close);
    goal("churn_on_close_calls_owed", hooks_owed as f64, none);
    goal(
        "churn_tasks_left",
        end.tasks as f64 - at_rest.tasks as f64,
        none,
    );
    goal(
        "churn_files_left",
        end.files as f64 - at_rest.files as f64,
        none,
    );
    let growth = mib(end.resident) - mib(start.resident);
    goal("churn_memory_growth_mib", growth, Wanted::AtMost(5.0));
}
