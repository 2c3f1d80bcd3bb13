//! Many idle streams: what their heartbeats and lifetimes cost.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{
    runtime::{Builder, Handle},
    time::sleep,
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_sse::{Broker, CloseReason, Connections, SseConnection, SseLayer};

use crate::{
    goals::{Wanted, goal},
    process::cpu_time,
};

const STREAMS: u64 = 100_000;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LIFETIME: Duration = Duration::from_secs(3600);
const MEASURED: Duration = Duration::from_secs(60);

/// What the tasks count.
#[derive(Default)]
struct Counts {
    heartbeats: AtomicU64,
    opened: AtomicU64,
}

/// Opens a stream, subscribed to a topic of its own, and takes what comes, as a server does. Opens
/// another one when it ends.
async fn stay<S, B>(service: S, counts: Arc<Counts>)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
    B: http_body::Body<Data = Bytes>,
{
    loop {
        let request = Request::get("/events").body(()).expect("a plain request");
        let Ok(response) = service.clone().oneshot(request).await;
        counts.opened.fetch_add(1, Relaxed);
        let mut body = pin!(response.into_body());
        while let Some(Ok(frame)) = body.frame().await {
            let is_heartbeat = frame.data_ref().is_some_and(|data| **data == *b":\n");
            counts
                .heartbeats
                .fetch_add(u64::from(is_heartbeat), Relaxed);
        }
    }
}

/// Opens them all, in the time of one heartbeat, so that they are as spread as they would be.
async fn open_all(layer: &SseLayer, broker: &Broker, counts: &Arc<Counts>) {
    const STEPS: u64 = 150;
    for step in 0..STEPS {
        for number in 0..STREAMS / STEPS + u64::from(step < STREAMS % STEPS) {
            let (broker, name) = (broker.clone(), format!("user:{step}:{number}"));
            let answer = move |mut request: Request<()>| {
                let sse: SseConnection = request.extensions_mut().remove().expect("a connection");
                let (broker, name) = (broker.clone(), name.clone());
                async move {
                    // As old as any: those that come to the end of their lives are spread, too.
                    sse.close_at(Instant::now() + LIFETIME.mul_f64(fastrand::f64()));
                    let subscription = broker.subscribe(&sse, name).await;
                    subscription.expect("a subscription").start();
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                }
            };
            tokio::spawn(stay(layer.layer(service_fn(answer)), Arc::clone(counts)));
        }
        sleep(KEEP_ALIVE / STEPS as u32).await;
    }
}

pub(crate) fn run() {
    let runtime = Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        // Not on the thread that only waits.
        let measured = Handle::current().spawn(measure());
        measured.await.expect("a measurement");
    });
}

async fn measure() {
    let connections = Connections::new();
    let layer = SseLayer::new("/events")
        .registry(&connections)
        .keep_alive(KEEP_ALIVE)
        .max_lifetime(LIFETIME);
    let broker = Broker::in_memory();
    let counts = Arc::new(Counts::default());
    let setup = cpu_time();
    open_all(&layer, &broker, &counts).await;
    let setup = cpu_time() - setup;
    assert_eq!(connections.len(), STREAMS as usize);

    let beats = || counts.heartbeats.load(Relaxed);
    let lives = || connections.stats().closed(CloseReason::Lifetime);
    let (beats_before, lives_before) = (beats(), lives());
    let (start, cpu) = (Instant::now(), cpu_time());
    sleep(MEASURED).await;
    let (time, cpu) = (start.elapsed(), cpu_time() - cpu);
    let (beats, lives) = (beats() - beats_before, lives() - lives_before);

    let share = cpu.as_secs_f64() / time.as_secs_f64() * 100.0;
    println!(
        "  {STREAMS} streams for {:.0} s, opened with {setup:.1?} of processor time: {beats} \
         heartbeats, {lives} lives over, {cpu:.2?} of processor time, {:.2} us a heartbeat",
        time.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / beats as f64,
    );
    // Each stream has one in every 15 s, and up to 64 ms more: a machine that cannot keep up beats
    // less, which must not pass for cheap.
    let due = STREAMS as f64 * time.as_secs_f64() / KEEP_ALIVE.as_secs_f64();
    goal(
        "idle_heartbeats_over_due",
        beats as f64 / due,
        Wanted::AtLeast(0.95),
    );
    goal("idle_cpu_percent_of_a_core", share, Wanted::AtMost(2.0));
}
