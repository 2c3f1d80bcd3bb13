//! What the setters of a layer set, for its services to read.

use std::{fmt, sync::Arc};

use http::{Request, request};

use super::{handler::AcceptFuture, matcher::Rule, origin::Guard};
use crate::{
    SseConnection,
    connection::{Config, Connections, KeyMaker, LimitKey},
};

/// Behind one `Arc`, which each service shares: axum clones services with every request.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) rule: Rule,
    pub(super) guard: Guard,
    pub(super) config: Arc<Config>,
    pub(super) connections: Connections,
    pub(super) accept: Option<AcceptFn>,
    /// What connections are counted by.
    pub(super) keys: Vec<KeyFn>,
}

pub(super) type AcceptFn = Arc<dyn Fn(SseConnection, request::Parts) -> AcceptFuture + Send + Sync>;

/// The key of a request, and how many connections may have the same.
pub(super) type KeyFn =
    Arc<dyn Fn(&request::Parts, &KeyMaker) -> Option<(LimitKey, usize)> + Send + Sync>;

impl Settings {
    pub(super) fn new(rule: Rule) -> Self {
        Self {
            rule,
            guard: Guard::default(),
            config: Arc::default(),
            connections: Connections::new(),
            accept: None,
            keys: Vec::new(),
        }
    }

    /// The keys under which a request is to be counted.
    pub(super) fn keys_of<B>(&self, request: Request<B>) -> (Vec<(LimitKey, usize)>, Request<B>) {
        if self.keys.is_empty() {
            return (Vec::new(), request);
        }
        let (parts, body) = request.into_parts();
        let maker = self.connections.key_maker();
        let mut keys: Vec<(LimitKey, usize)> = Vec::with_capacity(self.keys.len());
        for (key, most) in self.keys.iter().filter_map(|key| key(&parts, maker)) {
            // Two bounds of one key: the connection counts once, and both hold.
            match keys.iter_mut().find(|(it, _)| *it == key) {
                Some((_, bound)) => *bound = most.min(*bound),
                None => keys.push((key, most)),
            }
        }
        (keys, Request::from_parts(parts, body))
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("rule", &self.rule)
            .field("guard", &self.guard)
            .field("config", &self.config)
            .field("connections", &self.connections)
            .field("has_accept", &self.accept.is_some())
            .finish()
    }
}
