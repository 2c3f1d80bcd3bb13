//! What others write into a log is counted, and told to `tracing` once a second at most. One test
//! alone: what is told is collected for the whole process.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use support::nats as nats_server;
use support::nodes;
use support::redis as redis_server;

use nats_server::{NatsServer, STREAM};
use nodes::{Client, publish, within};
use redis_server::RedisServer;
use tokio::time::{Instant, interval, sleep};
use tower_sse::{Broker, backplane::redis::RedisStreams};
use tracing_subscriber::fmt::MakeWriter;

/// Collects what is written.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// What has been told of entries that were skipped, since the last call.
    fn take(&self) -> Vec<String> {
        let text = std::mem::take(&mut *self.0.lock().unwrap());
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains("junk"), "{text}");
        let lines = text.lines().filter(|it| it.contains("skipped"));
        lines.map(str::to_owned).collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

const JUNK: u64 = 1000;

/// Has junk written for some seconds.
async fn flood(lines: &Lines, broker: &Broker, skipped: impl Fn() -> u64, junk: impl AsyncFn()) {
    let mut client = Client::join_now(broker, "a").await;
    lines.take();
    let start = Instant::now();
    let mut ticks = interval(Duration::from_millis(3));
    for _ in 0..JUNK {
        ticks.tick().await;
        junk().await;
    }
    publish(broker, "after").await;
    assert_eq!(client.next().await, "after");
    within("all to be counted", async {
        while skipped() < JUNK {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let seconds = start.elapsed().as_secs() as usize;
    let told = lines.take();
    println!("told in {seconds} s: {told:#?}");
    assert_eq!(skipped(), JUNK);
    assert!((2..=seconds + 1).contains(&told.len()), "{told:#?}");
    assert!(
        told[0].contains("WARN") && told[0].contains("all="),
        "{told:#?}"
    );
}

#[tokio::test]
async fn foreign_entries_are_logged_at_most_once_a_second() {
    if !support::own_process::is_own(
        module_path!(),
        "foreign_entries_are_logged_at_most_once_a_second",
    )
    .await
    {
        return;
    }
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(lines.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let server = RedisServer::start().await;
    let log = RedisStreams::connect(server.url()).await.unwrap();
    let mut others = server.connection().await.unwrap();
    let others = Arc::new(tokio::sync::Mutex::new(&mut others));
    let broker = Broker::new(log.clone());
    flood(
        &lines,
        &broker,
        || log.skipped(),
        async || {
            let mut add = redis::cmd("XADD");
            add.arg(&["{tower-sse}:log", "*", "junk", "junk"]);
            let () = add.query_async(*others.lock().await).await.unwrap();
        },
    )
    .await;
    drop(broker);

    let server = NatsServer::start().await;
    let log = server.log().await;
    let others = server.admin().await;
    let broker = Broker::new(log.clone());
    flood(
        &lines,
        &broker,
        || log.skipped(),
        async || {
            let published = others.publish(STREAM, "junk".into()).await.unwrap();
            published.await.unwrap();
        },
    )
    .await;
}
