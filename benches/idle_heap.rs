//! Heap that the crate adds to an idle connection: live bytes with many open streams, less those
//! with as many answers of the bare inner service.

#[path = "support/counting.rs"]
mod counting;
#[path = "support/goals.rs"]
mod goals;

use std::{
    convert::Infallible,
    future::{Future, pending},
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tower::{Layer, Service, service_fn};
use tower_sse::{Connections, SseConnection, SseLayer};

use goals::{Wanted, goal};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const CONNECTIONS: usize = 10_000;

/// The handles that the application keeps.
static KEPT: Mutex<Vec<SseConnection>> = Mutex::new(Vec::new());

type Answer = Result<Response<Full<Bytes>>, Infallible>;

fn kept() -> MutexGuard<'static, Vec<SseConnection>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers, and keeps a handle on the stream.
async fn answer(mut request: Request<()>) -> Answer {
    if let Some(sse) = request.extensions_mut().remove() {
        kept().push(sse);
    }
    Ok(Response::default())
}

/// Starts the stream, and runs on.
async fn run_on(mut request: Request<()>) -> Answer {
    let sse = request.extensions_mut().remove::<SseConnection>();
    drop(request);
    if let Some(sse) = &sse {
        sse.start();
    }
    pending().await
}

fn request() -> Request<()> {
    Request::get("/events").body(()).expect("a plain request")
}

/// Makes as many as there are connections, each in a box, as servers do. Gives them with the bytes
/// that each takes.
fn hold<T>(mut make: impl FnMut() -> T, settle: impl Fn(Pin<&mut T>)) -> (f64, Vec<Pin<Box<T>>>) {
    let before = counting::live_bytes();
    let mut held = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut made = Box::pin(make());
        settle(made.as_mut());
        held.push(made);
    }
    let bytes = counting::live_bytes() - before;
    (bytes as f64 / CONNECTIONS as f64, held)
}

/// The body of a response that comes at once.
fn body<S, B>(service: &mut S) -> B
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut future = Box::pin(service.call(request()));
    match future.as_mut().poll(&mut cx) {
        Poll::Ready(Ok(response)) => response.into_body(),
        Poll::Pending => panic!("no response yet"),
    }
}

/// Takes the welcome.
fn settle<B: Body>(mut body: Pin<&mut B>) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(body.as_mut().poll_frame(&mut cx).is_ready());
    assert!(body.as_mut().poll_frame(&mut cx).is_pending());
}

fn open_streams<S, B>(name: &str, connections: &Connections, service: &mut S, of_bare: f64)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body,
{
    let before = counting::live_bytes();
    kept().reserve_exact(CONNECTIONS);
    let of_handles = (counting::live_bytes() - before) as f64 / CONNECTIONS as f64;
    let (of_ours, bodies) = hold(|| body(service), settle);
    assert_eq!(connections.len(), CONNECTIONS);
    println!(
        "{name}: {of_ours:.0} bytes with the layer, {of_bare:.0} without; a kept handle has \
         {of_handles:.0} more",
    );
    goal(
        &format!("idle_heap_{name}_bytes"),
        of_ours - of_bare,
        Wanted::AtMost(1024.0),
    );
    drop(bodies);
    assert!(connections.is_empty());
    drop(std::mem::take(&mut *kept()));
    let left = counting::live_bytes() - before;
    println!("{name}: {left} bytes left when the streams are gone");
}

fn main() {
    // As in an application: where there is no runtime there are no timers either.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    counting::start();
    let start = counting::live_bytes();

    let (of_bare, _) = hold(|| body(&mut service_fn(answer)), |_| ());
    let connections = Connections::new();
    let layer = SseLayer::new("/events").registry(&connections);
    let mut service = layer.layer(service_fn(answer));
    open_streams("answered", &connections, &mut service, of_bare);
    drop((service, layer, connections));

    // What a handler's own future takes is not ours.
    let (of_bare, _) = hold(
        || service_fn(run_on).call(request()),
        |handler| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(handler.poll(&mut cx).is_pending());
        },
    );
    let connections = Connections::new();
    let layer = SseLayer::new("/events").registry(&connections);
    let mut service = layer.layer(service_fn(run_on));
    open_streams("running", &connections, &mut service, of_bare);
    drop((service, layer, connections));

    let left = counting::live_bytes() - start;
    println!("{left} bytes left when all is gone");
}
