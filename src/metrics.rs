//! The figures of connections and brokers, for the [`metrics`] facade.
//!
//! [`ConnectionStats::record`] and [`BrokerStats::record`] set what an exporter then shows. They are
//! called as often as figures are wanted: before each scrape where the exporter is asked, every few
//! seconds where it pushes. Between the calls nothing is done: sending an event costs the same with
//! this feature as without.
//!
//! | name | kind | what |
//! | --- | --- | --- |
//! | `sse_connections_open` | gauge | connections that are open |
//! | `sse_connections_opened_total` | counter | connections that were ever opened |
//! | `sse_connections_closed_total` | counter | connections that have closed, by `reason`, a label with the names of [`CloseReason::as_str`](crate::CloseReason::as_str) |
//! | `sse_requests_refused_total` | counter | requests that were refused a stream |
//! | `sse_events_taken_total` | counter | events that servers have taken |
//! | `sse_bytes_taken_total` | counter | bytes that servers have taken |
//! | `sse_events_queued` | gauge | events that wait in outboxes |
//! | `sse_bytes_queued` | gauge | bytes that wait in outboxes |
//! | `sse_topics` | gauge | topics that are held in memory |
//! | `sse_subscriptions` | gauge | subscriptions of connections to topics |
//! | `sse_published_total` | counter | events that were published on this node |
//! | `sse_records_total` | counter | events that this node has read from its log |
//! | `sse_gaps_total` | counter | gaps that were announced to clients |
//! | `sse_events_lagged_total` | counter | events that slow subscribers have missed |
//! | `sse_records_unreadable_total` | counter | records of its log that cannot be given to clients |
//!
//! A process with several registries or brokers records the sum under one name only if it adds them
//! up itself: a later call sets what an earlier one has set.
//!
//! # Example
//!
//! ```
//! use tower_sse::{Broker, Connections};
//!
//! fn before_each_scrape(connections: &Connections, broker: &Broker) {
//!     connections.stats().record();
//!     broker.stats().record();
//! }
//! # before_each_scrape(&Connections::new(), &Broker::in_memory());
//! ```

use metrics::{counter, gauge};

use crate::{broker::BrokerStats, connection::ConnectionStats};

impl ConnectionStats {
    /// Gives the figures to the [`metrics`] recorder of the process: see [`crate::metrics`].
    pub fn record(&self) {
        gauge!("sse_connections_open").set(self.open as f64);
        counter!("sse_connections_opened_total").absolute(self.opened);
        for (reason, count) in self.closed_by_reason() {
            counter!("sse_connections_closed_total", "reason" => reason.as_str()).absolute(count);
        }
        counter!("sse_requests_refused_total").absolute(self.refused);
        counter!("sse_events_taken_total").absolute(self.events);
        counter!("sse_bytes_taken_total").absolute(self.bytes);
        gauge!("sse_events_queued").set(self.queued_events as f64);
        gauge!("sse_bytes_queued").set(self.queued_bytes as f64);
    }
}

impl BrokerStats {
    /// Gives the figures to the [`metrics`] recorder of the process: see [`crate::metrics`].
    pub fn record(&self) {
        gauge!("sse_topics").set(self.topics as f64);
        gauge!("sse_subscriptions").set(self.subscriptions as f64);
        counter!("sse_published_total").absolute(self.published);
        counter!("sse_records_total").absolute(self.records);
        counter!("sse_gaps_total").absolute(self.gaps);
        counter!("sse_events_lagged_total").absolute(self.lagged);
        counter!("sse_records_unreadable_total").absolute(self.unreadable);
    }
}
