//! Tasks that drive many streams each.
//!
//! A task of its own for each stream means, for each event, as many wakes and switches as there are
//! subscribers. Here a publisher that wakes all streams of a group wakes one task, which drives them
//! one after the other.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{sync::mpsc, task::unconstrained};

use super::shutdown::{Phase, Watcher};

/// How many streams a group has at most: enough to save most wakes, few enough that other tasks get
/// their turn between two groups.
const GROUP: usize = 256;

pub(super) type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The groups of a server. Dropped, they take no new streams; each ends with its last one, or with
/// the server.
#[derive(Default)]
pub(super) struct Groups {
    /// Guards the list of groups. Nothing is awaited under it.
    all: Mutex<Vec<Group>>,
}

struct Group {
    /// How many streams it has, those included that are on their way to it.
    count: Arc<AtomicUsize>,
    streams: mpsc::Sender<Stream>,
}

impl Groups {
    /// Has a stream driven until it ends.
    pub(super) fn drive(&self, stream: Stream, watcher: &Watcher) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let with_room = all
            .iter()
            .find(|group| group.count.load(Ordering::Relaxed) < GROUP);
        let group = match with_room {
            Some(group) => group,
            None => {
                let group = Group::start(watcher.clone());
                all.push(group);
                &all[all.len() - 1]
            }
        };
        group.count.fetch_add(1, Ordering::Relaxed);
        // There is a place in the channel for each stream of a group.
        if group.streams.try_send(stream).is_err() {
            group.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Group {
    fn start(mut watcher: Watcher) -> Self {
        let (sender, streams) = mpsc::channel(GROUP);
        let count = Arc::new(AtomicUsize::new(0));
        // What a stream writes is bounded by what is ready for it: a budget over all streams of a
        // group would only stop those that come last.
        let driving = drive(streams, Arc::clone(&count));
        tokio::spawn(unconstrained(async move {
            watcher.unless(Phase::Over, driving).await;
        }));
        Self {
            count,
            streams: sender,
        }
    }
}

async fn drive(mut new: mpsc::Receiver<Stream>, count: Arc<AtomicUsize>) {
    let mut streams = FuturesUnordered::new();
    loop {
        tokio::select! {
            stream = new.recv() => match stream {
                // A panic is one stream's own.
                Some(stream) => streams.push(AssertUnwindSafe(stream).catch_unwind()),
                None => break,
            },
            Some(_) = streams.next() => {
                count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
    while streams.next().await.is_some() {}
}
