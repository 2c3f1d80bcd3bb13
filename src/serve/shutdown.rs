//! How a server tells its connections to finish, and learns that they have.

use std::future::Future;

use tokio::sync::watch;

/// What connections are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Running,
    /// Finish what has begun, and take nothing new.
    Finishing,
    /// End now.
    Over,
}

/// The server's side. Dropped, it ends all connections.
pub(super) struct Shutdown(watch::Sender<Phase>);

/// A connection's side. The server waits until all are dropped.
#[derive(Clone)]
pub(super) struct Watcher(watch::Receiver<Phase>);

impl Shutdown {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Phase::Running))
    }

    pub(super) fn watcher(&self) -> Watcher {
        Watcher(self.0.subscribe())
    }

    pub(super) fn set(&self, phase: Phase) {
        self.0.send_replace(phase);
    }

    /// Waits until no connection is left.
    pub(super) async fn finished(&self) {
        self.0.closed().await;
    }
}

impl Watcher {
    pub(super) fn phase(&self) -> Phase {
        match self.0.has_changed() {
            // The server was dropped.
            Err(_) => Phase::Over,
            Ok(_) => *self.0.borrow(),
        }
    }

    /// Waits for a future, unless this phase comes first.
    pub(super) async fn unless<F: Future>(&mut self, phase: Phase, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.reached(phase) => None,
        }
    }

    /// Waits until this phase, or a later one, has come.
    pub(super) async fn reached(&mut self, phase: Phase) {
        // An error: the server was dropped, which is the last phase.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}
