//! Connections to Redis, and what they say of its health.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, Value, aio::MultiplexedConnection};
use tokio::{sync::watch, time::timeout};

use super::{
    ConnectError, RedisOptions, cluster::Address, discovery::Discovery, error::Unexpected,
};
use crate::{
    BoxError,
    log::{Epoch, Position},
};

const APPEND: &str = concat!(include_str!("log.lua"), include_str!("append.lua"));
const STATE: &str = concat!(include_str!("log.lua"), include_str!("state.lua"));

/// Where the log is, and how to get there.
pub(super) struct LogLocation {
    pub(super) discovery: Arc<Discovery>,
    pub(super) options: RedisOptions,
    /// The stream's key.
    pub(super) stream: String,
    /// The key of what is known of the log.
    pub(super) state: String,
}

impl LogLocation {
    pub(super) fn new(options: RedisOptions) -> Result<Self, ConnectError> {
        let stream = format!("{{{}}}:log", options.name);
        Ok(Self {
            discovery: Arc::new(Discovery::new(&options, &stream)?),
            stream,
            state: format!("{{{}}}:state", options.name),
            options,
        })
    }

    /// Connects, under this name in the server's list of clients.
    pub(super) async fn connect(
        &self,
        name: &str,
        response_timeout: Duration,
    ) -> Result<Connection, RedisError> {
        let (mut inner, server) = self.discovery.connect(response_timeout).await?;
        let mut setup = redis::pipe();
        setup
            .cmd("CLIENT")
            .arg("SETNAME")
            .arg(name)
            .ignore()
            .cmd("SCRIPT")
            .arg("LOAD")
            .arg(APPEND)
            .cmd("SCRIPT")
            .arg("LOAD")
            .arg(STATE);
        let loaded = timeout(self.options.connect_timeout, setup.query_async(&mut inner));
        let late =
            |_| RedisError::from((ErrorKind::Io, "server has not answered while connecting"));
        let (append, state) = loaded.await.map_err(late)??;
        Ok(Connection {
            inner,
            discovery: Arc::clone(&self.discovery),
            server,
            append,
            state,
        })
    }
}

#[derive(Clone)]
pub(super) struct Connection {
    inner: MultiplexedConnection,
    discovery: Arc<Discovery>,
    /// The server, where it may become another one.
    server: Option<Address>,
    /// The names of the scripts, as the server gives them.
    append: String,
    state: String,
}

impl Connection {
    pub(super) async fn query<T: FromRedisValue>(
        &mut self,
        command: &Cmd,
    ) -> Result<T, RedisError> {
        tokio::select! {
            biased;
            answer = command.query_async(&mut self.inner) => answer,
            () = self.discovery.has_left(self.server.as_ref()) => {
                Err((ErrorKind::Io, "another server is the primary now").into())
            }
        }
    }

    /// The script that appends, to be given its arguments.
    pub(super) fn append(&self, location: &LogLocation) -> Cmd {
        script(&self.append, location)
    }

    /// The log as it stands. It is made if there is none.
    pub(super) async fn state(&mut self, location: &LogLocation) -> Result<LogState, ReadFailure> {
        let mut command = script(&self.state, location);
        command.arg(&fastrand::u64(..).to_be_bytes()[..]);
        let (epoch, base, last, tag): (Vec<u8>, u64, u64, Vec<u8>) = self.query(&command).await?;
        let found = epoch.try_into().ok().zip(tag.try_into().ok());
        let (epoch, tag) = found.ok_or_else(|| Unexpected("no epoch".to_owned()))?;
        Ok(LogState {
            epoch: Epoch::new(u64::from_be_bytes(epoch)),
            base,
            last,
            tag: u32::from_be_bytes(tag),
        })
    }
}

fn script(name: &str, location: &LogLocation) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command
        .arg(name)
        .arg(2)
        .arg(&location.stream)
        .arg(&location.state);
    command
}

/// What is known of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogState {
    pub(super) epoch: Epoch,
    /// Ids up to here are not of this log.
    pub(super) base: u64,
    last: u64,
    tag: u32,
}

impl LogState {
    #[cfg(test)]
    pub(super) fn new(epoch: Epoch, base: u64, last: u64, tag: u32) -> Self {
        Self {
            epoch,
            base,
            last,
            tag,
        }
    }

    /// The position of the last record.
    pub(super) fn head(&self) -> Position {
        if self.last == self.base {
            Position::new(self.epoch, 0, 0)
        } else {
            Position::new(self.epoch, self.last, self.tag)
        }
    }
}

/// Why something could not be read.
#[derive(Debug)]
pub(super) enum ReadFailure {
    Redis(RedisError),
    Unexpected(Unexpected),
}

impl ReadFailure {
    /// Whether something else stands where the log was.
    pub(super) fn is_wrong_type(&self) -> bool {
        matches!(self, Self::Redis(error) if error.code() == Some("WRONGTYPE"))
    }

    /// Whether the server has answered: it can be reached, at least.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            Self::Redis(error) => is_answer(error),
            Self::Unexpected(_) => true,
        }
    }

    pub(super) fn into_cause(self) -> BoxError {
        match self {
            Self::Redis(error) => error.into(),
            Self::Unexpected(error) => error.into(),
        }
    }
}

impl From<RedisError> for ReadFailure {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

impl From<Unexpected> for ReadFailure {
    fn from(error: Unexpected) -> Self {
        Self::Unexpected(error)
    }
}

/// Whether an error is one that the server has sent.
pub(super) fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

// ===== the connection for commands =====

/// The one connection of a handle for everything but reading.
pub(super) struct SharedConnection {
    /// Guards the connection, and that only one is made at a time.
    connection: tokio::sync::Mutex<Option<Connection>>,
}

impl SharedConnection {
    pub(super) fn new() -> Self {
        Self {
            connection: tokio::sync::Mutex::new(None),
        }
    }

    /// The connection, made if there is none.
    pub(super) async fn get(
        &self,
        location: &LogLocation,
        health: &Health,
    ) -> Result<Connection, RedisError> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        // A response is waited for as long as an append may take: nobody wants it later.
        let made = location
            .connect("tower-sse-append", location.options.append_timeout)
            .await;
        health.set(Side::Append, Some(made.is_ok()));
        Ok(connection.insert(made?).clone())
    }

    /// Gives the connection up: it has failed, or what it says is of no use.
    pub(super) async fn drop_connection(&self) {
        *self.connection.lock().await = None;
    }
}

// ===== health =====

/// Whether the server answers, as far as the connections know.
pub(super) struct Health {
    /// Guards what each side has found last: None where it knows nothing.
    found: Mutex<[Option<bool>; 2]>,
    connected: watch::Sender<bool>,
}

#[derive(Clone, Copy)]
pub(super) enum Side {
    Append,
    Read,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            found: Mutex::new([None; 2]),
            connected: watch::Sender::new(false),
        }
    }

    pub(super) fn set(&self, side: Side, answers: Option<bool>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found[side as usize] == answers {
            return;
        }
        found[side as usize] = answers;
        let connected = found.contains(&Some(true)) && !found.contains(&Some(false));
        // Under the lock, so that the last word is the latest.
        self.connected.send_if_modified(|it| {
            let is_other = *it != connected;
            *it = connected;
            is_other
        });
    }

    /// A side is not there any more. What it has found wrong holds until there is another one.
    pub(super) fn left(&self, side: Side) {
        let found = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found[side as usize] == Some(true) {
            self.set(side, None);
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    pub(super) fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }
}

/// The text of a value, where it is one.
pub(super) fn bytes_of(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}
