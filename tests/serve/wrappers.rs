//! Whatever layers outside do to a stream's body, a client gets the same bytes of a direct stream as
//! of one that is left to hyper.
//!
//! Random stacks of body wrappers, around streams of each kind. One script drives both paths in
//! lockstep: an event is sent when the one before has left the innermost body, so that frames
//! coincide. The sockets are in memory, and the clock is paused.

use std::{
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response, Sse, sse},
    routing::get,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::header::CONTENT_TYPE;
use proptest::prelude::*;
use support::{
    given::given_with,
    raw::Raw,
    until, within,
    wrapped::{Given, Innermost, Outermost, Pulled, Wrap, Wrapped},
};
use tokio::{io::duplex, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tower_sse::{
    BoxError, Broker, Connections, Event, SseConnection, SseLayer, layer::Welcome,
    test_util::DirectProbe,
};

/// Who makes the stream.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A subscription to a broker.
    Subscribed,
    /// A handler that goes on in the body.
    Running,
    /// axum, and a layer adopts it.
    AdoptedSse,
    /// A body made by hand, and a layer adopts it.
    AdoptedBody,
    /// A body made by hand, without any layer.
    Foreign,
}

#[derive(Clone, Debug)]
enum Step {
    Send {
        size: usize,
    },
    /// This many small events at once.
    Burst(usize),
    /// Has the handler return, and keeps a handle.
    Return,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    /// What makes the stream finishes it.
    Finish,
    Close,
    CloseWith,
    Fail,
    /// What makes the stream fails, if it can.
    Break,
    Drain,
}

#[derive(Clone, Debug)]
struct Script {
    kind: Kind,
    /// From the inside to the outside.
    wraps: Vec<Wrap>,
    steps: Vec<Step>,
    ending: Ending,
    /// How much the socket takes ahead of its client.
    socket: usize,
    takes_trailers: bool,
}

// ===== the streams =====

type Input = Result<String, BoxError>;

/// Made by hand: an event comes in two frames.
fn pieces(input: mpsc::Receiver<Input>) -> impl Stream<Item = Result<Bytes, BoxError>> {
    ReceiverStream::new(input).flat_map(|input| {
        let pieces = match input {
            Ok(text) => {
                let event = Bytes::from(format!("data: {text}\n\n"));
                let (begin, end) = (event.slice(..5), event.slice(5..));
                vec![Ok(begin), Ok(end)]
            }
            Err(error) => vec![Err(error)],
        };
        stream::iter(pieces)
    })
}

/// Sends what it is given, until there is no more.
async fn forward(sse: SseConnection, mut input: mpsc::Receiver<Input>) -> Result<(), BoxError> {
    sse.start();
    while let Some(text) = input.recv().await {
        sse.send(Event::message(text?)).await?;
    }
    Ok(())
}

async fn answer(
    kind: Kind,
    sse: Option<SseConnection>,
    input: mpsc::Receiver<Input>,
    broker: Broker,
) -> Response {
    let event_stream = [(CONTENT_TYPE, "text/event-stream")];
    match (kind, sse) {
        (Kind::Subscribed, Some(sse)) => {
            broker.subscribe(&sse, "topic").await.unwrap().start();
            ().into_response()
        }
        (Kind::Running, Some(sse)) => match forward(sse, input).await {
            Ok(()) => ().into_response(),
            Err(_) => http::StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        },
        (Kind::AdoptedSse, _) => {
            let events = ReceiverStream::new(input);
            Sse::new(events.map(|text| text.map(|text| sse::Event::default().data(text))))
                .into_response()
        }
        _ => (event_stream, Body::from_stream(pieces(input))).into_response(),
    }
}

/// A stream on one of the paths.
struct Path {
    is_direct: bool,
    registry: Connections,
    input: Option<mpsc::Sender<Input>>,
    /// Held once the handler has returned.
    sse: Option<SseConnection>,
    pulled: Arc<Pulled>,
    given: Arc<Mutex<Given>>,
    probe: Arc<Mutex<Option<DirectProbe>>>,
    client: JoinHandle<Vec<u8>>,
}

impl Path {
    async fn open(script: &Script, is_direct: bool, broker: &Broker) -> Self {
        let registry = Connections::new();
        let (sender, input) = mpsc::channel(64);
        let input = Arc::new(Mutex::new(Some(input)));
        let (kind, broker) = (script.kind, broker.clone());
        let handler = move |request: Request| {
            let sse = request.extensions().get().cloned();
            let input = input.lock().unwrap().take().unwrap();
            answer(kind, sse, input, broker)
        };
        let (pulled, given, probe) = <(Arc<Pulled>, Arc<Mutex<Given>>, Arc<Mutex<_>>)>::default();
        let outside = {
            let wraps = script.wraps.clone();
            let (pulled, given, probe) =
                (Arc::clone(&pulled), Arc::clone(&given), Arc::clone(&probe));
            move |request: Request, next: Next| {
                *probe.lock().unwrap() = DirectProbe::of(request.extensions());
                let wraps = wraps.clone();
                let (pulled, given) = (Arc::clone(&pulled), Arc::clone(&given));
                async move {
                    let response = next.run(request).await;
                    response.map(|body| {
                        let mut body = Body::new(Innermost { body, pulled });
                        for wrap in wraps {
                            body = Body::new(Wrapped::new(body, wrap));
                        }
                        Body::new(Outermost { body, given })
                    })
                }
            }
        };
        let layer = SseLayer::any_path()
            .registry(&registry)
            .adopt(true)
            .welcome(Welcome::new(|_| Event::message("hello")))
            .retry(None)
            .keep_alive(None);
        let mut router = Router::new().route("/", get(handler));
        if script.kind != Kind::Foreign {
            router = router.layer(layer);
        }
        let router = router.layer(from_fn(outside));
        let sockets = given_with(router, |serve| serve.direct(is_direct));
        let (client, socket) = duplex(script.socket());
        sockets.send(Ok(socket)).await.unwrap();
        let mut request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n".to_owned();
        if script.takes_trailers {
            request.push_str("te: trailers\r\n");
        }
        let client = tokio::spawn(async move {
            let _sockets = sockets;
            let mut client = Raw::over(client);
            client.send(&request).await;
            client.rest().await
        });
        Self {
            is_direct,
            registry,
            input: Some(sender),
            sse: None,
            pulled,
            given,
            probe,
            client,
        }
    }

    fn handle(&self) -> Option<SseConnection> {
        self.registry.iter().next()
    }

    /// Sends an event, unless the stream has ended.
    fn send(&self, text: &str) {
        if let Some(sse) = &self.sse {
            let _ = sse.try_send(Event::message(text));
        } else if let Some(input) = &self.input {
            let _ = input.try_send(Ok(text.to_owned()));
        }
    }

    async fn has_pulled(&self, events: usize) {
        until("an event to be pulled", || {
            self.pulled.is_dropped() || self.pulled.events() >= events
        })
        .await;
    }

    async fn end(&mut self, ending: Ending, kind: Kind) {
        let handle = self.handle();
        match (ending, handle) {
            (Ending::Break, _) if self.sse.is_none() && kind != Kind::Subscribed => {
                if let Some(input) = &self.input {
                    let _ = input.try_send(Err("broken".into()));
                }
            }
            (Ending::Finish, _) if kind != Kind::Subscribed => {}
            (Ending::Finish | Ending::Close, Some(sse)) => sse.close(),
            (Ending::CloseWith, Some(sse)) => drop(sse.close_with(Event::message("last"))),
            (Ending::Fail | Ending::Break, Some(sse)) => sse.fail("broken"),
            (Ending::Drain, Some(sse)) => {
                drop(sse);
                let second = Duration::from_secs(1);
                let drain = self.registry.drain().over(Duration::ZERO);
                drain.retry(second..=second).await;
            }
            // It has ended already, or no layer is there to end it.
            (_, None) => {}
        }
        self.input = None;
        self.sse = None;
    }

    /// Returns the bytes on the wire, without the date, and what the server got.
    async fn outcome(self) -> (String, Given) {
        let wire = within("the end", self.client).await.unwrap();
        until("the body to be dropped", || self.pulled.is_dropped()).await;
        let probe = self.probe.lock().unwrap().take().unwrap();
        let given = mem::take(&mut *self.given.lock().unwrap());
        assert_eq!(
            probe.is_direct(),
            self.is_direct && given.is_stream,
            "is it direct?"
        );
        let wire = String::from_utf8(wire).unwrap();
        let lines = wire.split_inclusive("\r\n");
        let wire = lines.filter(|line| !line.starts_with("date: ")).collect();
        (wire, given)
    }
}

/// Runs a script on both paths. Returns the outcome of the direct one first.
async fn run(script: &Script) -> [(String, Given); 2] {
    let broker = Broker::in_memory();
    let mut paths = [
        Path::open(script, true, &broker).await,
        Path::open(script, false, &broker).await,
    ];
    let mut events = match script.kind {
        // The welcome, with the position in it.
        Kind::Subscribed | Kind::Running => 1,
        Kind::AdoptedSse | Kind::AdoptedBody | Kind::Foreign => 0,
    };
    for step in &script.steps {
        let texts = match *step {
            Step::Send { size } => vec!["x".repeat(size)],
            Step::Burst(count) => (0..count).map(|number| number.to_string()).collect(),
            Step::Return => Vec::new(),
        };
        for path in &mut paths {
            path.has_pulled(events).await;
            if matches!(step, Step::Return) && script.kind == Kind::Running {
                path.sse = path.handle();
                path.input = None;
            }
        }
        for text in &texts {
            if script.kind == Kind::Subscribed {
                broker.publish("topic", Event::message(text)).await.unwrap();
            } else {
                paths.iter().for_each(|path| path.send(text));
            }
        }
        events += texts.len();
    }
    for path in &mut paths {
        path.has_pulled(events).await;
    }
    for path in &mut paths {
        path.end(script.ending, script.kind).await;
    }
    let [direct, hyper] = paths;
    [direct.outcome().await, hyper.outcome().await]
}

// ===== any script =====

fn wrap() -> impl Strategy<Value = Wrap> {
    prop_oneof![
        Just(Wrap::Mask),
        Just(Wrap::Count),
        Just(Wrap::Yield),
        (1..20_u64).prop_map(Wrap::Sleep),
        Just(Wrap::Hold),
        (0..5000_usize).prop_map(Wrap::Limit),
        Just(Wrap::Append),
        (1..10_usize, any::<bool>())
            .prop_map(|(frames, reports)| Wrap::EndAfter { frames, reports }),
        (0..3_usize, 0..3_usize).prop_map(|(before, after)| Wrap::Empty { before, after }),
        Just(Wrap::Trailers),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // Both sides of what is copied into a chunk.
    let size = prop_oneof![
        1..20_usize,
        200..300_usize,
        8000..8300_usize,
        20_000..30_000_usize
    ];
    prop_oneof![
        6 => size.prop_map(|size| Step::Send { size }),
        2 => (1..40_usize).prop_map(Step::Burst),
        1 => Just(Step::Return),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    use Ending::{Break, Close, CloseWith, Drain, Fail, Finish};
    use Kind::{AdoptedBody, AdoptedSse, Foreign, Running, Subscribed};
    let kind = prop::sample::select(vec![Subscribed, Running, AdoptedSse, AdoptedBody, Foreign]);
    let ending = prop::sample::select(vec![Finish, Close, CloseWith, Fail, Break, Drain]);
    let wraps = prop::collection::vec(wrap(), 1..=3).prop_map(|mut wraps| {
        wraps.push(Wrap::Settle);
        wraps
    });
    let steps = prop::collection::vec(step(), 0..10);
    let socket = prop_oneof![Just(ROOMY), 50..5000_usize];
    let parts = (kind, wraps, steps, ending, socket, any::<bool>());
    parts.prop_map(
        |(kind, wraps, steps, ending, socket, takes_trailers)| Script {
            kind,
            wraps,
            steps,
            ending,
            socket,
            takes_trailers,
        },
    )
}

/// Takes all that is sent here at once.
const ROOMY: usize = 1 << 20;

impl Script {
    /// hyper drops what the socket has not taken when a body fails.
    fn socket(&self) -> usize {
        let fails = matches!(self.ending, Ending::Fail | Ending::Break | Ending::Drain)
            || self.wraps.iter().any(|wrap| matches!(wrap, Wrap::Limit(_)));
        if fails { ROOMY } else { self.socket }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn wrapped_streams_have_equal_bytes_on_both_paths(script in script()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let [direct, hyper] = runtime.block_on(run(&script));
        assert_eq!(direct.0, hyper.0, "direct, and in hyper");
        assert_eq!(direct.1.items, hyper.1.items, "what the bodies returned");
    }
}

fn script_of(kind: Kind, wrap: Wrap, ending: Ending) -> Script {
    Script {
        kind,
        wraps: vec![wrap],
        steps: vec![Step::Send { size: 3 }],
        ending,
        socket: ROOMY,
        takes_trailers: false,
    }
}

#[tokio::test(start_paused = true)]
async fn body_is_not_polled_after_it_reports_its_end() {
    // Its last frame is empty.
    let (before, after) = (0, 1);
    let wrap = Wrap::Empty { before, after };
    let script = script_of(Kind::Running, wrap, Ending::CloseWith);
    let [direct, hyper] = run(&script).await;
    assert_eq!(direct.0, hyper.0);
    assert_eq!(direct.1.items, hyper.1.items);
}

/// hyper writes a frame when the body is pending or has ended, and drops it when the body fails at
/// the next poll. A direct stream has written it by then.
#[tokio::test(start_paused = true)]
async fn frame_right_before_an_error_is_written() {
    let script = script_of(Kind::Foreign, Wrap::Hold, Ending::Break);
    let [direct, hyper] = run(&script).await;
    assert_eq!(direct.1.items, hyper.1.items);
    let written = direct.0.strip_prefix(&hyper.0);
    assert_eq!(written, Some("6\r\n xxx\n\n\r\n"), "{hyper:?}");
}
