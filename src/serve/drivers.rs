//! Tasks that drive many streams each.
//!
//! A task of its own for each stream means, for each event, as many wakes and switches as there are
//! subscribers. Here a publisher that wakes all streams of a group wakes one task, which drives them
//! one after the other.

use std::{
    future::{Future, poll_fn},
    num::NonZero,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::ready,
    thread,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::{unconstrained, yield_now},
};

use super::shutdown::{Phase, Watcher};

/// How many streams a group has at most: enough to save most wakes, few enough that other tasks get
/// their turn between two drivers.
const GROUP: usize = 256;

pub(super) type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The drivers of a server. Dropped, they take no new streams; each ends with its last one, or with
/// the server.
#[derive(Default)]
pub(super) struct Drivers {
    /// Guards the list of drivers. Nothing is awaited under it, and no stream dropped.
    all: Mutex<List>,
}

#[derive(Default)]
struct List {
    drivers: Vec<Driver>,
    /// Where the next stream is tried first.
    next: usize,
}

struct Driver {
    /// How many streams it has, those included that are on their way to it.
    count: Arc<AtomicUsize>,
    streams: mpsc::Sender<Stream>,
}

impl Drivers {
    /// Has a stream driven until it ends. At the end of the server, it is dropped.
    pub(super) fn drive(&self, stream: Stream, watcher: &Watcher) {
        let mut list = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = list.pass_on(stream);
        if let Some(stream) = left.take() {
            list.drivers.push(Driver::start(watcher.clone()));
            list.next = list.drivers.len() - 1;
            left = list.pass_on(stream);
        }
        // What it drops is the application's too.
        drop(list);
        drop(left);
    }
}

impl List {
    /// Hands a stream to a group with room; back, if there is none, or if there are to be more
    /// drivers.
    ///
    /// The first streams are spread over as many drivers as there may be threads to drive them. From
    /// then on a group is filled before the next one is begun.
    fn pass_on(&mut self, mut stream: Stream) -> Option<Stream> {
        let mut tries = self.drivers.len();
        let is_spreading = tries <= width();
        if tries < width() && self.next >= tries {
            return Some(stream);
        }
        while tries > 0 {
            tries -= 1;
            let at = self.next % self.drivers.len();
            match self.drivers[at].take(stream) {
                Ok(()) => {
                    self.next = if is_spreading { at + 1 } else { at };
                    return None;
                }
                Err(TrySendError::Full(it)) => {
                    stream = it;
                    self.next = at + 1;
                }
                // Its task is gone, with the runtime that it was on.
                Err(TrySendError::Closed(it)) => {
                    stream = it;
                    self.drivers.swap_remove(at);
                }
            }
        }
        Some(stream)
    }
}

/// How many drivers there are at least, once there are as many streams.
fn width() -> usize {
    static WIDTH: OnceLock<usize> = OnceLock::new();
    *WIDTH.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}

impl Driver {
    fn start(mut watcher: Watcher) -> Self {
        let (sender, streams) = mpsc::channel(GROUP);
        let count = Arc::new(AtomicUsize::new(0));
        // What a stream writes is bounded by what is ready for it: a budget over all streams of a
        // group would only stop those that come last.
        let driving = passes(drive(streams, Arc::clone(&count)));
        tokio::spawn(unconstrained(async move {
            watcher.unless(Phase::Over, driving).await;
        }));
        Self {
            count,
            streams: sender,
        }
    }

    /// Takes a stream, if there is room.
    fn take(&self, stream: Stream) -> Result<(), TrySendError<Stream>> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= GROUP {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(TrySendError::Full(stream));
        }
        // There is a place in the channel for each stream of a group.
        self.streams.try_send(stream).inspect_err(|_| {
            self.count.fetch_sub(1, Ordering::Relaxed);
        })
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

/// Yields before each pass over the streams that are ready: publishers that are ready run first, and
/// their events share a write.
async fn passes(streams: impl Future<Output = ()>) {
    let mut streams = pin!(streams);
    let mut turn = None;
    poll_fn(|cx| {
        let turn_comes = turn.get_or_insert_with(|| Box::pin(yield_now()));
        ready!(turn_comes.as_mut().poll(cx));
        turn = None;
        streams.as_mut().poll(cx)
    })
    .await;
}
