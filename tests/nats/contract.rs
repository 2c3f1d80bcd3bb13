//! The laws of a backplane, for JetStream.

use std::sync::Arc;

use tower_sse::{
    backplane::{
        AppendError, Backplane, BoxFuture, ReadError, Record, RecordStream, Start, nats::JetStream,
    },
    broker::Position,
};

use support::nats::NatsServer;

/// A log with a server of its own.
#[derive(Clone)]
struct Served {
    log: JetStream,
    _server: Arc<NatsServer>,
}

async fn log(retained: usize) -> Served {
    let server = NatsServer::start().await;
    let options = server.options().window(retained);
    Served {
        log: options.connect().await.unwrap(),
        _server: Arc::new(server),
    }
}

impl Backplane for Served {
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        self.log.append(record)
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        self.log.read(start)
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.log.head()
    }
}

support::contract!(log);
