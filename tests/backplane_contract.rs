//! The laws of a backplane, for each that there is.

#[macro_use]
mod contract;
mod support;

#[path = "support/redis.rs"]
mod redis_server;

mod memory {
    use super::contract;
    use futures_util::StreamExt;
    use tower_sse::backplane::{Backplane, Memory, Read, Record, Start};

    async fn log(retained: usize) -> Memory {
        Memory::with_window(retained)
    }

    contract!(log);

    #[tokio::test]
    async fn loss_carries_the_position_of_the_last_lost_record() {
        let log = Memory::with_window(1);
        let mut places = Vec::new();
        for _ in 0..3 {
            let record = Record::new("a".try_into().unwrap(), "data: x\n");
            places.push(log.append(record).await.unwrap());
        }
        let mut stream = log.read(Start::Window).await.unwrap();
        let first = stream.next().await.unwrap().unwrap();
        assert!(matches!(first, Read::Lost(place) if place == places[1]));
    }
}

mod nats {
    use std::sync::Arc;

    use tower_sse::{
        backplane::{
            AppendError, Backplane, BoxFuture, ReadError, Record, RecordStream, Start,
            nats::JetStream,
        },
        broker::Position,
    };

    use super::{contract, support::nats::NatsServer};

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

    contract!(log);
}

mod redis {
    use super::{contract, redis_server::RedisServer};
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

    contract!(log);
}
