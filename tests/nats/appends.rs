//! Appends to JetStream whose acknowledgement does not come, and what does not get there at all.

use std::time::Duration;

use async_nats::jetstream::stream;
use support::{
    LIMIT,
    nats::NatsServer,
    nodes::publish_at_last,
    topics::{is_not_sent_because, publish},
    until, within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};
use tower_sse::{
    Broker, Event,
    backplane::{
        AppendErrorKind,
        nats::{JetStream, JetStreamOptions},
    },
    broker::BrokerErrorKind,
};

/// What a proxy does with what the server says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    Pass,
    AreLost,
    /// And the connection breaks.
    Break,
}

/// Stands between a log and its server. It is ended when this is dropped.
struct Proxy {
    url: String,
    answers: watch::Sender<Answers>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn to(server: &NatsServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let address = server.url().replace("nats://", "");
        let answers = watch::Sender::new(Answers::Pass);
        let watched = answers.subscribe();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&address).await.unwrap();
                connections.spawn(connection(client, server, watched.clone()));
            }
        });
        Self { url, answers, task }
    }

    /// Waits until all its connections have broken.
    async fn breaks(&self) {
        self.answers.send_replace(Answers::Break);
        // Each connection holds receivers, and the accepting task holds one.
        until("the connections to break", || {
            self.answers.receiver_count() == 1
        })
        .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(client: TcpStream, server: TcpStream, mut answers: watch::Receiver<Answers>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let told = answers.clone();
    let down = async move {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            if *told.borrow() == Answers::Pass
                && to_client.write_all(&bytes[..count]).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        () = down => {}
        _ = answers.wait_for(|it| *it == Answers::Break) => {}
    }
}

#[tokio::test]
async fn retried_append_is_stored_once() {
    let server = NatsServer::start().await;
    let proxy = Proxy::to(&server).await;
    let options = JetStreamOptions::new(&proxy.url).append_timeout(LIMIT);
    let broker = Broker::new(options.connect().await.unwrap());
    publish(&broker, "a", "1").await;

    proxy.answers.send_replace(Answers::AreLost);
    let publishing = tokio::spawn(async move { publish(&broker, "a", "2").await });
    let stored = async {
        while server.stream().await.cached_info().state.messages < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    within("the message to be stored", stored).await;
    assert!(!publishing.is_finished());
    proxy.breaks().await;
    proxy.answers.send_replace(Answers::Pass);
    let position = within("the append", publishing).await.unwrap();
    assert_eq!(position.offset(), 2);
    assert_eq!(server.stream().await.cached_info().state.messages, 2);
}

#[tokio::test]
async fn unacknowledged_append_times_out_as_maybe_sent() {
    let server = NatsServer::start().await;
    let proxy = Proxy::to(&server).await;
    let limit = Duration::from_secs(2);
    let log = JetStreamOptions::new(&proxy.url)
        .append_timeout(limit)
        .connect()
        .await
        .unwrap();
    let broker = Broker::new(log);
    publish_at_last(&broker, "1").await;
    let before = server.stream().await.cached_info().state.messages;
    proxy.answers.send_replace(Answers::AreLost);
    let start = Instant::now();
    let error = broker.publish("a", Event::message("2")).await.unwrap_err();
    assert_eq!(
        error.kind(),
        BrokerErrorKind::Append(AppendErrorKind::MaybeSent)
    );
    // The default timeout is five seconds.
    let time = start.elapsed();
    println!("timed out after {time:?}");
    assert!((limit..2 * limit + limit / 2).contains(&time), "{time:?}");
    // It was sent twice, and is there once.
    let after = server.stream().await.cached_info().state.messages;
    assert_eq!(after, before + 1);
}

#[tokio::test]
async fn subject_of_another_stream_is_refused() {
    let server = NatsServer::start().await;
    let config = stream::Config {
        name: "other".to_owned(),
        subjects: vec!["taken".to_owned()],
        ..stream::Config::default()
    };
    server.admin().await.create_stream(config).await.unwrap();
    let limit = Duration::from_millis(500);
    let options = server.options().subject("taken").append_timeout(limit);
    let broker = Broker::new(options.connect().await.unwrap());
    let error = broker.publish("a", Event::message("1")).await.unwrap_err();
    assert_eq!(
        error.kind(),
        BrokerErrorKind::Append(AppendErrorKind::NotSent)
    );
}

#[tokio::test]
async fn invalid_options_fail_at_connect() {
    let refused = async |options: JetStreamOptions, why: &str| {
        let error = options.connect().await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    for url in [
        "",
        "http://127.0.0.1",
        "ws://a",
        "nats://127.0.0.1:x",
        "nats://a,",
    ] {
        refused(JetStreamOptions::new(url), "URL").await;
    }
    let options = || JetStreamOptions::new("nats://127.0.0.1:1");
    for name in ["", "a.b", "a b", "*"] {
        refused(options().stream(name), "name").await;
    }
    for subject in ["", "a.*", "a b", "$JS.API.x"] {
        refused(options().subject(subject), "subject").await;
    }
}

#[tokio::test]
async fn authorization_failure_is_the_cause_of_the_error() {
    let mut server = NatsServer::stopped();
    server.more = r#"authorization { user: me, password: "p@ss" }"#.to_owned();
    server.restart().await;
    let strangers = server.options().user_and_password("me", "wrong");
    let broker = Broker::new(strangers.connect().await.unwrap());
    is_not_sent_because(&broker, "authorization").await;

    let url = server.url().replace("//", "//me:p%40ss@");
    let broker = Broker::new(JetStream::connect(url).await.unwrap());
    publish(&broker, "a", "1").await;
}
