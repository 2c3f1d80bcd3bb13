//! What it costs to build one event and have its bytes: this crate, axum's `Event`, and the least
//! that anyone could pay, which is to allocate and to copy the finished bytes.
//!
//! axum gives no bytes away but through a response. So its events are built by an endless stream
//! inside an `Sse` response, and its body is polled for one frame after another: one poll, one
//! event. What that road costs without any encoding is measured with an event that axum keeps
//! ready for the wire, and is taken off axum's time before the two are compared.

#[path = "support/goals.rs"]
mod goals;

use std::{
    convert::Infallible,
    fmt::Write,
    hint::black_box,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::response::{
    IntoResponse,
    sse::{Event as AxumEvent, Sse},
};
use bytes::Bytes;
use criterion::Criterion;
use futures_util::stream;
use goals::{Wanted, goal, medians};
use http_body::Body;
use serde::Serialize;
use tower_sse::{
    Event,
    event::{Decoded, Decoder, MessageEvent},
};

const NAME: &str = "placed";
const ID: &str = "1718000";

const ROUNDS: usize = 401;

#[derive(Clone, Serialize)]
struct Order {
    number: u64,
    customer: String,
    lines: u32,
    total: f64,
    paid: bool,
}

/// Builds one event, and has its bytes.
type Encode = Box<dyn FnMut() -> Bytes>;

struct Case {
    name: &'static str,
    ours: Encode,
    axum: Encode,
    copy: Encode,
    goal: Goal,
    is_large: bool,
}

/// What is wanted of our time.
#[derive(Clone, Copy)]
enum Goal {
    /// So many times shorter than axum's, at least.
    TimesAxum(f64),
    /// So many times longer than that of a copy, at most.
    TimesCopy(f64),
}

fn main() {
    // `cargo test --benches` comes here without this flag.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let mut cases = cases();
    for case in &mut cases {
        case.check();
        let mut group = criterion.benchmark_group(case.name);
        group.bench_function("tower-sse", |bencher| bencher.iter(&mut case.ours));
        group.bench_function("axum", |bencher| bencher.iter(&mut case.axum));
        group.bench_function("copy", |bencher| bencher.iter(&mut case.copy));
        group.finish();
    }
    criterion.final_summary();
    if is_bench {
        print_goals(&mut cases);
    }
}

fn print_goals(cases: &mut [Case]) {
    let mut road = axum(|| AxumEvent::DEFAULT_KEEP_ALIVE);
    for case in cases {
        let [ours, axum, copy, road] = medians(
            ROUNDS,
            if case.is_large { 250 } else { 2_000 },
            [
                &mut |calls| call(&mut case.ours, calls),
                &mut |calls| call(&mut case.axum, calls),
                &mut |calls| call(&mut case.copy, calls),
                &mut |calls| call(&mut road, calls),
            ],
        );
        let name = case.name;
        println!(
            "{name}: tower-sse {ours:.1} ns, axum {axum:.1} ns (of them its road {road:.1} ns), \
             copy {copy:.1} ns"
        );
        let times_axum = (axum - road) / ours;
        match case.goal {
            Goal::TimesAxum(wanted) => goal(
                &format!("encode {name}, times as fast as axum"),
                times_axum,
                Wanted::AtLeast(wanted),
            ),
            Goal::TimesCopy(wanted) => goal(
                &format!("encode {name}, times as long as a copy"),
                ours / copy,
                Wanted::AtMost(wanted),
            ),
        }
    }
}

fn call(encode: &mut Encode, calls: u64) {
    for _ in 0..calls {
        black_box(encode());
    }
}

fn cases() -> Vec<Case> {
    let in_lines = ["a line of forty-nine bytes, to have a kilobyte.."; 20].join("\n");
    vec![
        text_case("100 B", text_of(100), Goal::TimesAxum(3.0)),
        text_case("1 KB", text_of(1024), Goal::TimesAxum(2.5)),
        text_case("1 KB in 20 lines", in_lines, Goal::TimesAxum(1.3)),
        json_case("JSON of a struct", Goal::TimesAxum(1.3)),
        text_case("64 KB", text_of(64 * 1024), Goal::TimesCopy(1.3)),
    ]
}

fn text_of(size: usize) -> String {
    let mut text = String::new();
    for number in 0.. {
        if text.len() >= size {
            break;
        }
        write!(text, "word {number}, ").unwrap();
    }
    text.truncate(size);
    text
}

fn text_case(name: &'static str, text: String, goal: Goal) -> Case {
    let for_axum = text.clone();
    Case::new(
        name,
        goal,
        move || {
            let (name, text, id) = black_box((NAME, text.as_str(), ID));
            Event::new(name, text)
                .and_then(|event| event.id(id))
                .unwrap()
        },
        move || {
            let (name, text, id) = black_box((NAME, for_axum.as_str(), ID));
            AxumEvent::default().event(name).data(text).id(id)
        },
    )
}

fn json_case(name: &'static str, goal: Goal) -> Case {
    let order = Order {
        number: 4711,
        customer: "Ada Lovelace".into(),
        lines: 3,
        total: 129.9,
        paid: true,
    };
    let for_axum = order.clone();
    Case::new(
        name,
        goal,
        move || {
            let (name, order, id) = black_box((NAME, &order, ID));
            Event::json(name, order)
                .and_then(|event| event.id(id))
                .unwrap()
        },
        move || {
            let (name, order, id) = black_box((NAME, &for_axum, ID));
            AxumEvent::default()
                .event(name)
                .json_data(order)
                .unwrap()
                .id(id)
        },
    )
}

impl Case {
    fn new(
        name: &'static str,
        goal: Goal,
        ours: impl Fn() -> Event + 'static,
        theirs: impl Fn() -> AxumEvent + Send + 'static,
    ) -> Self {
        let wire = ours().into_bytes();
        Self {
            name,
            goal,
            is_large: wire.len() > 10_000,
            ours: Box::new(move || ours().into_bytes()),
            axum: axum(theirs),
            copy: Box::new(move || Bytes::from(black_box(&wire).to_vec())),
        }
    }

    /// The contenders say the same.
    fn check(&mut self) {
        let ours = decoded(&(self.ours)());
        assert_eq!(ours, decoded(&(self.axum)()), "{}", self.name);
        assert_eq!(ours, decoded(&(self.copy)()), "{}", self.name);
    }
}

fn decoded(wire: &[u8]) -> MessageEvent {
    let mut decoder = Decoder::new();
    decoder.feed(wire).unwrap();
    match (decoder.next(), decoder.next()) {
        (Some(Decoded::Event(event)), None) => event,
        other => panic!("not one event: {other:?}"),
    }
}

fn axum(build: impl Fn() -> AxumEvent + Send + 'static) -> Encode {
    let events = stream::repeat_with(move || Ok::<_, Infallible>(build()));
    let mut body = Sse::new(events).into_response().into_body();
    Box::new(move || {
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) else {
            unreachable!("the stream is endless and always ready");
        };
        frame.into_data().unwrap()
    })
}
