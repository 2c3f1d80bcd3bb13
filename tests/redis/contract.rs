//! The laws of a backplane, for Redis Streams.

use support::redis::RedisServer;
use tower_sse::{
    backplane::{
        AppendError, Backplane, BoxFuture, ReadError, Record, RecordStream, Start,
        redis::{RedisOptions, RedisStreams},
    },
    broker::Position,
};

/// A log with the server that it is on.
struct Served {
    log: RedisStreams,
    _server: RedisServer,
}

async fn log(retained: usize) -> Served {
    let server = RedisServer::start().await;
    let log = RedisOptions::new(server.url()).window(retained);
    Served {
        log: log.connect().await.unwrap(),
        _server: server,
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
