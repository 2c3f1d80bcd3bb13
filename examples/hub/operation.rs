//! What keeps the hub in hand: figures, readiness, and a stop that loses nothing.

use std::{future::IntoFuture, io, pin::pin, sync::atomic::Ordering};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
};
use serde_json::{Map, Value, json};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use tower_sse::serve::TcpListener;

use crate::{Hub, app};

/// Whether new streams should come here: for a load balancer.
pub(crate) async fn ready(State(hub): State<Hub>) -> (StatusCode, &'static str) {
    if hub.is_ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    }
}

/// The figures, in the text that Prometheus reads. A program whose other parts have figures too
/// installs one recorder for all, with `metrics::set_global_recorder`.
pub(crate) async fn metrics(State(hub): State<Hub>) -> impl IntoResponse {
    metrics::with_local_recorder(&*hub.recorder, || {
        hub.connections.stats().record();
        hub.broker.stats().record();
    });
    let content_type = (CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([content_type], hub.recorder.handle().render())
}

/// The figures, for the page.
pub(crate) async fn stats(State(hub): State<Hub>) -> Json<Value> {
    let connections = hub.connections.stats();
    let closed = connections.closed_by_reason();
    let closed: Map<_, _> = closed
        .map(|(reason, count)| (reason.as_str().to_owned(), count.into()))
        .collect();
    let broker = hub.broker.stats();
    Json(json!({
        "ready": hub.is_ready.load(Ordering::Relaxed),
        "connections": {
            "open": connections.open,
            "most": hub.options.max,
            "opened": connections.opened,
            "refused": connections.refused,
            "closed": closed,
            "events": connections.events_sent,
            "bytes": connections.bytes_sent,
            "queued": connections.queued_events,
        },
        "broker": {
            "topics": broker.topics,
            "published": broker.records,
            "history": hub.options.history,
            "kept": broker.history_events,
            "gaps": broker.gaps,
            "lagged": broker.lagged,
        },
    }))
}

/// How it has stopped.
#[derive(Debug, PartialEq)]
pub(crate) enum Stopped {
    /// All is answered.
    Finished,
    /// Not all was, in the time that there was for it.
    Unfinished,
    /// It was told again.
    AtOnce,
}

/// Serves until it is told to stop. Then `/ready` says no, the streams end one after the other, and
/// what the server still has to answer is answered. Told again, it stops at once.
pub(crate) async fn serve(
    listener: TcpListener,
    hub: Hub,
    told_to_stop: impl AsyncFn(),
) -> io::Result<Stopped> {
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tower_sse::serve::serve(listener, app(hub.clone()));
    let server = server.with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let mut server = pin!(server.into_future());
    tokio::select! {
        served = &mut server => return served.map(|()| Stopped::Finished),
        () = told_to_stop() => {}
    }
    println!("Stopping. Tell it again (Ctrl-C) to stop at once.");
    hub.is_ready.store(false, Ordering::Relaxed);
    let (unready, over) = (hub.options.unready, hub.options.drain);
    let drain = async {
        sleep(unready).await; // until the load balancer has noticed
        // With the drain, not after it: clients would come back on the sockets that they have open.
        let _ = stop.send(());
        let drained = hub.connections.drain().over(over).deadline(2 * over).await;
        println!(
            "Streams ended: {}, aborted: {}.",
            drained.ended, drained.aborted
        );
    };
    // A request that is not answered would hold the server up.
    let server = timeout(unready + 3 * over, server);
    tokio::select! {
        (served, ()) = async { tokio::join!(server, drain) } => match served {
            Ok(served) => served.map(|()| Stopped::Finished),
            Err(_) => Ok(Stopped::Unfinished),
        },
        () = told_to_stop() => Ok(Stopped::AtOnce),
    }
}

/// Waits for Ctrl-C, or for SIGTERM, which service managers and containers are stopped with.
pub(crate) async fn signal() {
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminated = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => _ = signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = interrupted => {}
        () = terminated => {}
    }
}
