//! Which public types may cross threads, be moved while pinned, and be cloned: part of the API,
//! though nothing in it says so.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    future::{Pending, Ready},
    io,
    marker::{PhantomData, PhantomPinned},
    path::{Path, PathBuf},
    pin::Pin,
    rc::Rc,
};

use bytes::Bytes;
use http_body::Body;
use http_body_util::{Empty, combinators::UnsyncBoxBody};
use tower_sse::{
    BoxError, Broker, BrokerError, CloseReason, Connections, Error, Event, SseConnection, SseLayer,
    axum::SseRejection,
    backplane::{
        self, AppendError, AppendErrorKind, Memory, Read, Record, RecordStream, Start,
        nats::{self, JetStream, JetStreamOptions},
        redis::{ConnectError, RedisOptions, RedisStreams},
    },
    broker::{
        BrokerBuilder, BrokerErrorKind, BrokerStats, Epoch, History, Outcome, Position,
        SlowConsumer, Subscribe, Subscription, TopicError, TopicName,
    },
    connection::{
        ClosedError, ConnectionStats, Drain, Drained, LimitError, Refusal, RefusalReason,
        SendError, StreamError, TrySendError,
    },
    event::{Decoded, Decoder, EventError, EventId, EventTooLong, EventType, Field, MessageEvent},
    layer::{
        GuardError, KeepAlive, Limits, OutboxLimits, PatternError, ResponseFuture, SseBody,
        SseService, Welcome,
    },
    serve::{Handshaking, Io, PeerAddr, Serve, TcpListener},
    test_util::{DirectProbe, EventReader, ReadError, Served, ServedFuture, WireBody},
};

/// Asks a type for its traits: a constant of its own exists only where the bound holds, and hides
/// the one that every type has.
struct Probe<T>(PhantomData<T>);

trait Otherwise {
    const SEND: bool = false;
    const SYNC: bool = false;
    const UNPIN: bool = false;
    const CLONE: bool = false;
}

impl<T> Otherwise for Probe<T> {}

impl<T: Send> Probe<T> {
    const SEND: bool = true;
}

impl<T: Sync> Probe<T> {
    const SYNC: bool = true;
}

impl<T: Unpin> Probe<T> {
    const UNPIN: bool = true;
}

impl<T: Clone> Probe<T> {
    const CLONE: bool = true;
}

macro_rules! traits {
    ($($type:ty),* $(,)?) => {{
        let mut table = BTreeMap::new();
        $(
            let traits = [
                (Probe::<$type>::SEND, "Send"),
                (Probe::<$type>::SYNC, "Sync"),
                (Probe::<$type>::UNPIN, "Unpin"),
                (Probe::<$type>::CLONE, "Clone"),
            ];
            let has = traits.iter().filter(|(has, _)| *has).map(|(_, name)| *name);
            table.insert(stringify!($type), has.collect::<Vec<_>>().join(" "));
        )*
        table
    }};
}

type SendFuture = Pending<()>;
type LocalFuture = Ready<Rc<()>>;
type PinnedFuture = PhantomPinned;
type SendBody = UnsyncBoxBody<Bytes, BoxError>;
type LocalBody = Rc<Empty<Bytes>>;
type PinnedBody = PhantomPinned;
type BoxedBody = Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>;
type LocalService = Rc<()>;
type CellService = Cell<()>;

#[test]
fn public_types_keep_their_auto_traits() {
    let all = "Send Sync Unpin Clone";
    let no_clone = "Send Sync Unpin";

    let handles = traits![SseConnection, Connections, SseLayer, SseService<()>];
    let values = traits![
        Event,
        EventType<'static>,
        EventId<'static>,
        Field,
        MessageEvent,
        Decoder,
        Decoded,
        CloseReason,
        ClosedError,
        DirectProbe,
        ConnectionStats,
        Drained,
        LimitError,
        Refusal,
        RefusalReason,
        EventTooLong,
        SseRejection,
        KeepAlive,
        Limits,
        OutboxLimits,
        Welcome,
    ];
    let of_topics = traits![
        Broker,
        BrokerBuilder,
        BrokerErrorKind,
        BrokerStats,
        Epoch,
        History,
        Outcome,
        Position,
        SlowConsumer,
        TopicError,
        TopicName,
        AppendErrorKind,
        JetStream,
        JetStreamOptions,
        Memory,
        Read,
        Record,
        Start,
        RedisOptions,
        RedisStreams,
    ];
    for (name, traits) in handles.into_iter().chain(values).chain(of_topics) {
        assert_eq!(traits, all, "{name}");
    }

    let errors = traits![
        Error,
        EventError,
        SendError,
        TrySendError,
        StreamError,
        PatternError,
        GuardError,
        ReadError,
        BoxError,
        BrokerError,
        AppendError,
        nats::ConnectError,
        backplane::ReadError,
        ConnectError,
    ];
    let of_servers = traits![TcpListener, Handshaking<(), ()>];
    assert_eq!(traits![Io<()>]["Io<()>"], "Send Sync Unpin");
    for (name, traits) in errors.into_iter().chain(traits![Drain]).chain(of_servers) {
        assert_eq!(traits, no_clone, "{name}");
    }
}

#[test]
fn server_builder_is_send() {
    assert_eq!(traits![Serve<(), ()>]["Serve<(), ()>"], "Send Unpin");
    assert_eq!(
        traits![PeerAddr<()>]["PeerAddr<()>"],
        "Send Sync Unpin Clone"
    );
}

#[test]
fn broker_types_are_send_but_record_stream_is_not_sync() {
    let found = traits![Subscription, Subscribe<'static>, RecordStream];
    let expected = [
        ("RecordStream", "Send Unpin"),
        ("Subscription", "Send Sync Unpin"),
        ("Subscribe<'static>", "Send Sync Unpin"),
    ];
    assert_eq!(
        found,
        expected.map(|(name, it)| (name, it.to_owned())).into()
    );
}

#[test]
fn generic_types_inherit_auto_traits_of_their_contents() {
    let expected = [
        ("SseService<LocalService>", "Unpin Clone"),
        ("SseService<CellService>", "Send Unpin Clone"),
        ("ResponseFuture<SendFuture>", "Send Unpin"),
        ("ResponseFuture<LocalFuture>", "Unpin"),
        ("ResponseFuture<PinnedFuture>", "Send"),
        ("SseBody<SendBody, SendFuture>", "Send Unpin"),
        ("SseBody<LocalBody, SendFuture>", "Unpin"),
        ("SseBody<SendBody, LocalFuture>", "Unpin"),
        ("SseBody<PinnedBody, SendFuture>", "Send"),
        ("SseBody<SendBody, PinnedFuture>", "Send Unpin"),
        ("EventReader", "Send Unpin"),
        ("Served<LocalService>", "Unpin Clone"),
        ("Served<CellService>", "Send Unpin Clone"),
        ("ServedFuture<SendFuture, SendBody>", "Send Sync Unpin"),
        ("ServedFuture<LocalFuture, SendBody>", "Unpin"),
        ("ServedFuture<PinnedFuture, LocalBody>", ""),
        ("WireBody<SendBody>", "Send Unpin"),
        ("WireBody<BoxedBody>", "Unpin"),
    ];
    let found = traits![
        SseService<LocalService>,
        SseService<CellService>,
        ResponseFuture<SendFuture>,
        ResponseFuture<LocalFuture>,
        ResponseFuture<PinnedFuture>,
        SseBody<SendBody, SendFuture>,
        SseBody<LocalBody, SendFuture>,
        SseBody<SendBody, LocalFuture>,
        SseBody<PinnedBody, SendFuture>,
        SseBody<SendBody, PinnedFuture>,
        EventReader,
        Served<LocalService>,
        Served<CellService>,
        ServedFuture<SendFuture, SendBody>,
        ServedFuture<LocalFuture, SendBody>,
        ServedFuture<PinnedFuture, LocalBody>,
        WireBody<SendBody>,
        WireBody<BoxedBody>,
    ];
    let expected = expected.map(|(name, traits)| (name, traits.to_owned()));
    assert_eq!(found, expected.into());
}

/// Does nothing but compile.
fn is_send_and_sync<T: Send + Sync>(_: T) {}
fn is_send<T: Send>(_: T) {}
fn is_static<T: 'static>(_: T) {}

#[tokio::test]
async fn connection_futures_are_send() {
    let connections = Connections::new();
    is_static(connections.iter());
    is_send(connections.iter());

    let (sse, _reader) = tower_sse::test_util::connection().await;
    let event = || Event::message("x");
    is_send_and_sync(sse.send(event()));
    is_send_and_sync(sse.closed());
    is_send(sse.send_all(tokio_stream::once(Ok::<_, BoxError>(event()))));

    let broker = Broker::in_memory();
    is_send(broker.publish("a", event()));
    is_send(broker.subscribe(&sse, "a").into_future());
    let subscription = broker.subscribe(&sse, "a").await;
    let subscription = subscription.expect("the connection is open");
    is_send(subscription.resolved());
    subscription.start();

    let sent = tokio::spawn(async move { sse.send(event()).await });
    assert!(matches!(sent.await, Ok(Ok(()))));
}

#[test]
fn every_public_type_is_covered() -> io::Result<()> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let here = fs::read_to_string(root.join("tests/house/auto_traits.rs"))?;
    let lib = fs::read_to_string(root.join("src/lib.rs"))?;
    let modules = lib
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "))
        .filter_map(|line| line.strip_suffix(';'));
    let mut paths: Vec<PathBuf> = modules
        .flat_map(|name| [format!("src/{name}"), format!("src/{name}.rs")])
        .map(|path| root.join(path))
        .filter(|path| path.exists())
        .collect();
    let mut seen = 0;
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(path)? {
                paths.push(entry?.path());
            }
        } else {
            for line in fs::read_to_string(&path)?.lines() {
                let Some(rest) = line
                    .strip_prefix("pub struct ")
                    .or(line.strip_prefix("pub enum "))
                else {
                    continue;
                };
                let end = rest.find(|c: char| !c.is_alphanumeric());
                let name = &rest[..end.unwrap_or(rest.len())];
                // Once in the imports, and once in a table.
                let mentions = here.split(|c: char| !c.is_alphanumeric());
                let mentions = mentions.filter(|word| *word == name).count();
                assert!(mentions >= 2, "{name} of {}", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 15, "the sources were not found");
    Ok(())
}
