//! What a replica holds of its log, under one lock: the index of topics, and the totals that are
//! limited.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{stats::BrokerStats, topic::Topic};
use crate::{
    backplane::TopicName,
    log::{Position, Window},
};

pub(super) struct Store {
    /// None until something of the log has been read.
    pub(super) head: Option<Position>,
    /// The position up to which the log has to be read before outcomes can be resolved.
    pub(super) window_end: Option<Position>,
    pub(super) is_window_read: bool,
    pub(super) window: Window,
    pub(super) floor: u64,
    pub(super) topics: HashMap<TopicName, Arc<Topic>>,
    /// All entries, in the order in which they came: the oldest is dropped first. Entries that
    /// their own topics have dropped stay here for a while.
    pub(super) order: VecDeque<(Arc<Topic>, u64)>,
    pub(super) entries: usize,
    pub(super) bytes: usize,
    /// Topics whose subscribers are to be woken.
    pub(super) dirty: Vec<Arc<Topic>>,
    /// The offset at which all subscribers' positions were checked last.
    pub(super) last_sweep: u64,
}

impl Store {
    pub(super) fn new(window: Window) -> Self {
        Self {
            head: None,
            window_end: None,
            is_window_read: false,
            window,
            floor: 0,
            topics: HashMap::new(),
            order: VecDeque::new(),
            entries: 0,
            bytes: 0,
            dirty: Vec::new(),
            last_sweep: 0,
        }
    }

    /// The topic of this name, made if there is none.
    pub(super) fn topic_or_new(&mut self, name: &TopicName) -> Arc<Topic> {
        if let Some(topic) = self.topics.get(name.as_str()) {
            return Arc::clone(topic);
        }
        let topic = Arc::new(Topic::new(name.clone()));
        self.topics.insert(name.clone(), Arc::clone(&topic));
        topic
    }

    pub(super) fn count(&self, stats: &mut BrokerStats) {
        let subscriptions = self.topics.values().map(|topic| topic.subscriber_count());
        stats.topics = self.topics.len() as u64;
        stats.subscriptions = subscriptions.sum::<usize>() as u64;
        stats.history_events = self.entries as u64;
        stats.history_bytes = self.bytes as u64;
    }

    /// The offset up to which a topic may have lost something.
    pub(super) fn lost(&self, topic: &Topic) -> u64 {
        topic.ring().lost().max(self.floor)
    }

    /// Lets go of a topic that has neither entries nor subscribers.
    pub(super) fn forget_if_idle(&mut self, topic: &Arc<Topic>) {
        let ring = topic.ring();
        if ring.len() > 0 || topic.subscriber_count() > 0 {
            return;
        }
        let lost = ring.lost();
        drop(ring);
        let is_it = self
            .topics
            .get(topic.name.as_str())
            .is_some_and(|it| Arc::ptr_eq(it, topic));
        if is_it {
            self.floor = self.floor.max(lost);
            self.topics.remove(topic.name.as_str());
            if self.topics.len() < self.topics.capacity() / 4 && self.topics.capacity() > 64 {
                self.topics.shrink_to_fit();
            }
        }
    }
}
