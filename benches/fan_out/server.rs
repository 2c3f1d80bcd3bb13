//! The two servers: each a process of its own, so that its processor time is its own too.
//!
//! `GET /events` streams, `POST /publish` publishes and answers when that is done, `GET /cpu` tells
//! the processor time so far.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    io::{Read, Write},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::Query,
    response::sse::{Event as AxumEvent, KeepAlive, Sse},
    routing::{get, post},
};
use futures_util::stream;
use tokio::sync::broadcast;
use tower_sse::{Broker, BrokerError, Event, SseConnection, SseLayer, serve};

/// The name of the variable that makes a server of this program.
const ROLE: &str = "FAN_OUT_SERVER";

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The servers that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// The crate's own server, with direct streams.
    Direct,
    /// The crate's layer and broker on `axum::serve`.
    Ours,
    Axum,
    /// What the machine can do.
    Epoll,
}

impl Contender {
    pub(crate) const ALL: [Self; 4] = [Self::Direct, Self::Ours, Self::Axum, Self::Epoll];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Ours => "ours",
            Self::Axum => "axum",
            Self::Epoll => "epoll",
        }
    }
}

/// A server that runs. It ends with this, and with the bench, whatever ends that.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
}

impl Server {
    pub(crate) fn start(contender: Contender) -> Self {
        let this = std::env::current_exe().expect("the bench's own path");
        let mut process = Command::new(this)
            .env(ROLE, contender.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a server process");
        let mut port = [0; 2];
        let stdout = process.stdout.as_mut().expect("the server's output");
        stdout.read_exact(&mut port).expect("the server's port");
        Self {
            process,
            port: u16::from_le_bytes(port),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Which server this process is to be, if it is one.
pub(crate) fn role() -> Option<Contender> {
    let role = std::env::var(ROLE).ok()?;
    Contender::ALL.into_iter().find(|it| it.name() == role)
}

#[tokio::main]
pub(crate) async fn serve(contender: Contender) {
    // The bench is gone when its end of the pipe is.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let listener = serve::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut stdout = std::io::stdout();
    stdout.write_all(&port.to_le_bytes()).expect("a reader");
    stdout.flush().expect("a reader");
    let with_cpu = |router: Router| router.route("/cpu", get(async || cpu_time().to_string()));
    match contender {
        Contender::Direct => serve::serve(listener, with_cpu(ours()))
            .header_read_timeout(Duration::from_secs(3600)) // The control connection rests for long.
            .await
            .expect("an endless run"),
        Contender::Ours => axum::serve(listener.into_tokio(), with_cpu(ours()))
            .await
            .expect("an endless run"),
        Contender::Axum => axum::serve(listener.into_tokio(), with_cpu(axums()))
            .await
            .expect("an endless run"),
        Contender::Epoll => {
            let listener = listener.into_tokio().into_std().expect("a socket");
            tokio::task::block_in_place(|| crate::epoll::serve(&listener));
        }
    }
}

/// A broker behind the layer.
fn ours() -> Router {
    let broker = Broker::in_memory();
    let publisher = broker.clone();
    let events = async move |sse: SseConnection| -> Result<(), BrokerError> {
        broker.subscribe(&sse, "ticks").await?.start();
        Ok(())
    };
    let publish = publishing(move |text| {
        let broker = publisher.clone();
        async move {
            let event = Event::new("tick", &text).expect("a plain type");
            broker.publish("ticks", event).await.expect("a position");
        }
    });
    let layer = SseLayer::new("/events").keep_alive(KEEP_ALIVE);
    Router::new()
        .route("/events", get(events))
        .layer(layer)
        .route("/publish", publish)
}

/// What an axum application does without this crate.
fn axums() -> Router {
    let (sender, _) = broadcast::channel::<Arc<str>>(1024);
    let publisher = sender.clone();
    let events = async move || {
        let events = stream::unfold(sender.subscribe(), async |mut events| {
            let text = events.recv().await.expect("no lag");
            let event = AxumEvent::default().event("tick").data(text);
            Some((Ok::<_, Infallible>(event), events))
        });
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
    };
    let publish = publishing(move |text| {
        let _ = publisher.send(text.into());
        std::future::ready(())
    });
    Router::new()
        .route("/events", get(events))
        .route("/publish", publish)
}

/// Publishes `n` events of `size` bytes with this function. Their data begins with their number
/// and the time.
fn publishing<F, R>(publish: F) -> axum::routing::MethodRouter
where
    F: Fn(String) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send,
{
    let number = Arc::new(AtomicU64::new(0));
    post(async move |Query(query): Query<HashMap<String, usize>>| {
        for _ in 0..query["n"] {
            let number = number.fetch_add(1, Relaxed);
            let mut text = format!("{number:012} {:020} ", now());
            text.extend(std::iter::repeat_n('x', query["size"] - text.len()));
            publish(text).await;
        }
    })
}

/// Nanoseconds on a clock that server and load share.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// The processor time of this process, in nanoseconds: user and system.
pub(crate) fn cpu_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
