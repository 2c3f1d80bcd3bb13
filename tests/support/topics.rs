//! Clients of a broker that need no socket.

use std::{error::Error, time::Duration};

use http::Request;
use tokio::time::{Instant, sleep};
use tower_sse::{
    Broker, BrokerError, Event, SseConnection, SseLayer,
    backplane::AppendErrorKind,
    broker::{BrokerErrorKind, Outcome, Position, Subscription},
    test_util::{EventReader, connection_of},
};

/// A stream of events, subscribed to topics.
pub struct Client {
    pub sse: SseConnection,
    pub events: EventReader,
}

impl Client {
    /// A client with this `Last-Event-ID`, and heartbeats every 100 ms, that is not subscribed yet.
    pub async fn connect(place: Option<Position>) -> Self {
        let mut request = Request::get("/");
        if let Some(place) = place {
            request = request.header("last-event-id", place.to_string());
        }
        let layer = SseLayer::any_path().keep_alive(Duration::from_millis(100));
        let (sse, events) = connection_of(&layer, request.body(()).unwrap()).await;
        let events = events.time_limit(super::LIMIT);
        Self { sse, events }
    }

    /// A new client, live.
    pub async fn subscribe(broker: &Broker, topic: &str) -> Self {
        let client = Self::connect(None).await;
        let subscription = broker.subscribe(&client.sse, topic).await.unwrap();
        assert_eq!(resolved(&subscription).await, Outcome::Fresh);
        subscription.start();
        client
    }

    /// A client that comes back, live, and what becomes of its place.
    pub async fn resume(broker: &Broker, topic: &str, place: Position) -> (Self, Outcome) {
        let client = Self::connect(Some(place)).await;
        let subscription = broker.subscribe(&client.sse, topic).await.unwrap();
        let outcome = resolved(&subscription).await;
        subscription.start();
        (client, outcome)
    }

    /// The next event but `welcome` and `position`: of a message its data alone.
    pub async fn next(&mut self) -> String {
        self.next_with_place().await.0
    }

    /// The next event, and its place.
    pub async fn next_with_place(&mut self) -> (String, Option<Position>) {
        loop {
            // Heartbeats go on coming: the reader's own limit is for each of them.
            let event = super::within("an event", self.events.event())
                .await
                .unwrap();
            let place = Position::parse(event.last_event_id.as_bytes());
            match &*event.event_type {
                "welcome" | "position" => {}
                "message" => return (event.data, place),
                other => return (format!("{other} {}", event.data), place),
            }
        }
    }

    /// The next events, so many.
    pub async fn take(&mut self, count: usize) -> Vec<String> {
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            taken.push(self.next().await);
        }
        taken
    }

    /// Reads on until a gap is told, and gives its reason.
    pub async fn gap(&mut self) -> String {
        loop {
            let event = self.events.event().await.unwrap();
            if event.event_type == "gap" {
                let gap: serde_json::Value = serde_json::from_str(&event.data).unwrap();
                return gap["reason"].as_str().unwrap().to_owned();
            }
        }
    }

    /// The place with which it would come back.
    pub fn place(&self) -> Position {
        Position::parse(self.events.last_event_id().as_bytes()).unwrap()
    }
}

pub async fn resolved(subscription: &Subscription) -> Outcome {
    super::within("an outcome", subscription.resolved()).await
}

/// Publishes, and repeats appends that were not sent: on a busy machine the log may not be connected
/// yet.
pub async fn publish(broker: &Broker, topic: &str, text: &str) -> Position {
    let not_sent = BrokerErrorKind::Append(AppendErrorKind::NotSent);
    let published = async {
        loop {
            match try_publish(broker, topic, text).await {
                Ok(position) => return position,
                Err(error) if error.kind() == not_sent => sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{text}: {error:?}"),
            }
        }
    };
    super::within("the append", published).await
}

/// Checks that nothing can be published, and waits until the cause contains this text. It is known
/// after the first try to connect.
pub async fn is_not_sent_because(broker: &Broker, why: &str) {
    let not_sent = BrokerErrorKind::Append(AppendErrorKind::NotSent);
    let mut last = String::new();
    let start = Instant::now();
    while !last.contains(why) {
        assert!(start.elapsed() < super::LIMIT, "{why} is not in: {last}");
        let error = try_publish(broker, "a", "never").await.unwrap_err();
        assert_eq!(error.kind(), not_sent, "{error:?}");
        last = error.source().map(ToString::to_string).unwrap_or_default();
        sleep(Duration::from_millis(10)).await;
    }
}

pub async fn try_publish(
    broker: &Broker,
    topic: &str,
    text: &str,
) -> Result<Position, BrokerError> {
    broker.publish(topic, Event::message(text)).await
}
