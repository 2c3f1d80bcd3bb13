//! What feature "metrics" gives to its recorder.

use super::paths;
use http::Request;
use metrics_exporter_prometheus::PrometheusBuilder;
use paths::connection_of;
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{Broker, Event, SseLayer};

/// The value of a series in Prometheus' text, by its name and labels.
fn value(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("{series} is not in\n{text}"));
    line.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_metric_is_recorded_under_its_name() {
    let layer = SseLayer::any_path().max_connections(1);
    let broker = Broker::in_memory();
    let (sse, mut events) = connection_of(&layer, Request::default()).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    broker.publish("a", Event::message("1")).await.unwrap();
    while events.event().await.unwrap().data != "1" {}
    sse.send(Event::message("waits")).await.unwrap();
    let inner = service_fn(|_: Request<()>| async {
        Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
    });
    layer
        .layer(inner)
        .oneshot(Request::default())
        .await
        .unwrap();

    let recorder = PrometheusBuilder::new().build_recorder();
    let record = || {
        metrics::with_local_recorder(&recorder, || {
            layer.registered().stats().record();
            broker.stats().record();
        });
        recorder.handle().render()
    };
    let text = record();
    let stats = layer.registered().stats();
    for (series, expected) in [
        ("sse_connections_open", 1),
        ("sse_connections_pending", 0),
        ("sse_connections_opened_total", 1),
        ("sse_connections_closed_total{reason=\"closed\"}", 0),
        ("sse_requests_refused_total", 1),
        ("sse_events_sent_total", stats.events_sent),
        ("sse_bytes_sent_total", stats.bytes_sent),
        ("sse_events_queued", 1),
        ("sse_bytes_queued", stats.queued_bytes),
        ("sse_topics", 1),
        ("sse_subscriptions", 1),
        ("sse_published_total", 1),
        ("sse_records_total", 1),
        ("sse_gaps_total", 0),
        ("sse_events_lagged_total", 0),
        ("sse_records_unreadable_total", 0),
    ] {
        assert_eq!(value(&text, series), expected as f64, "{series}");
    }
    assert!(stats.events_sent > 1 && stats.queued_bytes > 1);
    drop((sse, events));
    let text = record();
    assert_eq!(value(&text, "sse_connections_open"), 0.0);
    let gone = "sse_connections_closed_total{reason=\"client_gone\"}";
    assert_eq!(value(&text, gone), 1.0);
    let names = include_str!("../../src/metrics.rs");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(
            name.is_empty() || names.contains(&format!("`{name}`")),
            "{name} is not told of"
        );
    }
}
