//! Nodes and clients, in one process: brokers on a log of their own each, and streams that are read
//! as a client would.

use std::time::Duration;

use http::Request;
use tokio::time::{Instant, sleep};
use tower_sse::{
    Broker, BrokerError, Event, SseConnection, SseLayer,
    broker::{Outcome, Position},
    event::{Decoded, MessageEvent},
    test_util::{EventReader, connection_of},
};

pub use super::{LIMIT, within};

/// How soon a loss has to be announced to clients. The promise is about two seconds; a busy machine
/// has several times as long. Nothing is published meanwhile, so a loss that only the next record
/// reveals is not announced at all.
pub const TOLD: Duration = Duration::from_secs(15);

/// A client with its stream, which subscribes to one topic.
pub struct Client {
    pub sse: SseConnection,
    pub events: EventReader,
    /// What the broker has made of its place.
    pub outcome: Outcome,
    /// The place that it would come back with, after the last event that it has taken.
    id: String,
}

impl Client {
    /// Comes to this node with the id that it has, if any, and is welcomed.
    pub async fn join(broker: &Broker, topic: &str, id: Option<&str>) -> Self {
        let mut request = Request::get("/");
        if let Some(id) = id {
            request = request.header("last-event-id", id);
        }
        let layer = SseLayer::any_path().keep_alive(Duration::from_millis(500));
        let (sse, events) = connection_of(&layer, request.body(()).unwrap()).await;
        let subscription = broker.subscribe(&sse, topic).await.unwrap();
        let outcome = subscription.outcome();
        subscription.start();
        let events = events.time_limit(LIMIT);
        let mut client = Self {
            sse,
            events,
            outcome,
            id: id.unwrap_or_default().to_owned(),
        };
        assert_eq!(client.event().await.event_type, "welcome");
        client
    }

    /// Comes without a place, and waits until it has been given one: the log has been read.
    pub async fn join_now(broker: &Broker, topic: &str) -> Self {
        let mut client = Self::join(broker, topic, None).await;
        // It rides on the welcome, if the log has been read by then.
        if client.id.is_empty() {
            assert_eq!(client.next().await, "position:{}");
        }
        client
    }

    /// The place that it would come back with.
    pub fn id(&self) -> String {
        self.id.clone()
    }

    pub async fn event(&mut self) -> MessageEvent {
        // Heartbeats go on coming: the reader's own limit is for each of them.
        let event = within("an event", self.events.event()).await.unwrap();
        if !event.last_event_id.is_empty() {
            self.id.clone_from(&event.last_event_id);
        }
        event
    }

    /// The next event: the data of a message, the type and data of another.
    pub async fn next(&mut self) -> String {
        let event = self.event().await;
        match &*event.event_type {
            "message" => event.data,
            other => format!("{other}:{}", event.data),
        }
    }

    /// The data of the next messages. Nothing else may come between them.
    pub async fn messages(&mut self, count: usize) -> Vec<String> {
        let mut got = Vec::new();
        while got.len() < count {
            got.push(self.next().await);
        }
        got
    }

    /// Waits for a gap, and gives its reason and how long it took. Messages may come before.
    pub async fn gap(&mut self) -> (String, Duration) {
        let start = Instant::now();
        loop {
            let event = self.event().await;
            if event.event_type == "gap" {
                let data: serde_json::Value = serde_json::from_str(&event.data).unwrap();
                let reason = data["reason"].as_str().unwrap().to_owned();
                return (reason, start.elapsed());
            }
        }
    }

    /// Waits for a gap, which has to come in time.
    pub async fn is_told(&mut self) {
        let (_, time) = self.gap().await;
        assert!(time < TOLD, "told after {time:?}");
    }

    /// Waits for this message. Others may come before, and what is no message.
    pub async fn reaches(&mut self, message: &str) {
        while self.next().await != message {}
    }

    /// Checks that nothing but heartbeats is received for this long, up to the first one after it.
    pub async fn hears_nothing_but_heartbeats(&mut self, time: Duration) {
        let until = Instant::now() + time;
        let mut is_over = false;
        while !is_over {
            is_over = Instant::now() >= until;
            match self.events.decoded().await {
                Ok(Decoded::Comment(text)) if text.is_empty() => {}
                other => panic!("{other:?} where only heartbeats were to come"),
            }
        }
    }
}

pub async fn publish(broker: &Broker, text: &str) -> Position {
    let published = try_publish(broker, text).await;
    published.unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

pub async fn try_publish(broker: &Broker, text: &str) -> Result<Position, BrokerError> {
    broker.publish("a", Event::message(text)).await
}

/// Publishes until it succeeds.
pub async fn publish_at_last(broker: &Broker, text: &str) {
    within(text, async {
        while try_publish(broker, text).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}
