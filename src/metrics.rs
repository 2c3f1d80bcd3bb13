//! The figures of connections and brokers, for the [`metrics`] facade.
//!
//! [`ConnectionStats::record`] and [`BrokerStats::record`] set what an exporter then shows. Call
//! them before each scrape of a pull exporter, or every few seconds for a push exporter. Sending an
//! event costs the same with this feature as without it.
//!
//! | name | kind | what |
//! | --- | --- | --- |
//! | `sse_connections_open` | gauge | open streams |
//! | `sse_connections_pending` | gauge | connections whose handler has not answered yet |
//! | `sse_connections_opened_total` | counter | opened connections |
//! | `sse_connections_closed_total` | counter | closed connections; the label `reason` has the names of [`CloseReason::as_str`](crate::CloseReason::as_str) |
//! | `sse_requests_refused_total` | counter | refused requests |
//! | `sse_events_sent_total` | counter | events sent |
//! | `sse_bytes_sent_total` | counter | bytes sent |
//! | `sse_events_queued` | gauge | events waiting in outboxes |
//! | `sse_bytes_queued` | gauge | bytes waiting in outboxes |
//! | `sse_topics` | gauge | topics held in memory |
//! | `sse_subscriptions` | gauge | subscriptions of connections to topics |
//! | `sse_published_total` | counter | events published on this node |
//! | `sse_records_total` | counter | events read from the log by this node |
//! | `sse_gaps_total` | counter | gaps announced to clients |
//! | `sse_events_lagged_total` | counter | events missed by slow subscribers |
//! | `sse_records_unreadable_total` | counter | records of the log that cannot be sent to clients |
//!
//! A later call overwrites the values of an earlier one. A process with several registries or
//! brokers has to add up their figures itself.
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
    /// Records the figures with the [`metrics`] recorder of the process: see [`crate::metrics`].
    pub fn record(&self) {
        gauge!("sse_connections_open").set(self.open as f64);
        gauge!("sse_connections_pending").set(self.pending as f64);
        counter!("sse_connections_opened_total").absolute(self.opened);
        for (reason, count) in self.closed_by_reason() {
            counter!("sse_connections_closed_total", "reason" => reason.as_str()).absolute(count);
        }
        counter!("sse_requests_refused_total").absolute(self.refused);
        counter!("sse_events_sent_total").absolute(self.events_sent);
        counter!("sse_bytes_sent_total").absolute(self.bytes_sent);
        gauge!("sse_events_queued").set(self.queued_events as f64);
        gauge!("sse_bytes_queued").set(self.queued_bytes as f64);
    }
}

impl BrokerStats {
    /// Records the figures with the [`metrics`] recorder of the process: see [`crate::metrics`].
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
