//! A deterministic executor for the actors of a world.
//!
//! All actors run in one task. A wake-up only sets a flag; woken actors are polled in the order of
//! their indices. The order in which the library calls wakers therefore cannot change a run (the
//! broker keeps its topics in a `HashMap` whose order differs between processes).

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

pub(crate) type Actor = Pin<Box<dyn Future<Output = ()>>>;

/// A future that completes when all actors have completed.
#[must_use = "actors do nothing until they are awaited"]
pub(crate) struct Actors {
    slots: Vec<Slot>,
    task: Arc<AtomicWaker>,
}

struct Slot {
    /// `None` once the actor has completed.
    actor: Option<Actor>,
    flag: Arc<Flag>,
}

struct Flag {
    is_woken: AtomicBool,
    task: Arc<AtomicWaker>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, SeqCst);
        self.task.wake();
    }
}

impl Actors {
    pub(crate) fn new(actors: Vec<Actor>) -> Self {
        let task = Arc::new(AtomicWaker::new());
        let slots = actors.into_iter().map(|actor| Slot {
            actor: Some(actor),
            flag: Arc::new(Flag {
                is_woken: AtomicBool::new(true),
                task: Arc::clone(&task),
            }),
        });
        Self {
            slots: slots.collect(),
            task,
        }
    }
}

impl Future for Actors {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.task.register(cx.waker());
        let mut is_done = true;
        for slot in &mut self.slots {
            let Some(actor) = &mut slot.actor else {
                continue;
            };
            if slot.flag.is_woken.swap(false, SeqCst) {
                let waker = Waker::from(Arc::clone(&slot.flag));
                if actor
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_ready()
                {
                    slot.actor = None;
                    continue;
                }
            }
            is_done = false;
        }
        if is_done {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
