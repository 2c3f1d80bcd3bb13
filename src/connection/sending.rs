//! Putting events into the outbox, at once or in turn.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use super::{
    SendError, TrySendError,
    outbox::Ticket,
    shared::Shared,
    state::{ConnectionState, Woken},
};
use crate::Event;

impl Shared {
    /// Sends the event, if there is room and nobody waits for it.
    pub(super) fn try_send(&self, event: Event) -> Result<(), TrySendError> {
        let mut state = self.lock();
        if let Some(reason) = state.closing {
            drop(state);
            return Err(SendError::Closed(event, reason).into());
        }
        if state.refuses(&event) {
            drop(state);
            return Err(SendError::HasId(event).into());
        }
        if !state.outbox.admits(event.size(), None) {
            drop(state);
            return Err(TrySendError::Full(event));
        }
        let woken = self.push(&mut state, event);
        drop(state);
        woken.wake();
        Ok(())
    }

    /// Sends the event and empties its place; or, where there is no room, enters the queue of
    /// waiting senders.
    pub(super) fn poll_send(
        &self,
        place: &mut Option<Event>,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
    ) -> Poll<Result<(), SendError>> {
        let Some(event) = place else {
            return Poll::Ready(Ok(()));
        };
        let mut state = self.lock();
        let may_wait = state.closing.is_none() && !state.refuses(event);
        if may_wait && !state.outbox.admits(event.size(), *ticket) {
            let (entered, replaced) = state.outbox.wait(*ticket, waker);
            *ticket = Some(entered);
            drop(state);
            drop(replaced);
            return Poll::Pending;
        }
        let left = ticket.take().and_then(|ticket| state.outbox.leave(ticket));
        let Some(event) = place.take() else {
            return Poll::Ready(Ok(()));
        };
        let result = match state.closing {
            Some(reason) => {
                drop(state);
                Err(SendError::Closed(event, reason))
            }
            None if state.refuses(&event) => {
                drop(state);
                Err(SendError::HasId(event))
            }
            None => {
                let woken = self.push(&mut state, event);
                drop(state);
                woken.wake();
                Ok(())
            }
        };
        drop(left);
        Poll::Ready(result)
    }

    /// Gives a waiting sender's place up.
    pub(super) fn cancel_send(&self, ticket: Ticket) {
        let mut state = self.lock();
        let left = state.outbox.leave(ticket);
        let sender = state.outbox.next_waiter();
        drop(state);
        drop(left);
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    #[inline]
    pub(super) fn push(&self, state: &mut ConnectionState, event: Event) -> Woken {
        self.push_last(state, event);
        state.is_started = true;
        state.note_waiting(Instant::now);
        Woken {
            reader: state.reader.take(),
            sender: state.outbox.next_waiter(),
        }
    }

    /// Queues an event, whoever is to be told of it.
    #[inline]
    pub(super) fn push_last(&self, state: &mut ConnectionState, event: Event) {
        let mut number = None;
        if self.config.numbered && event.has_data() && !event.has_id() {
            number = Some(state.next_number);
            state.next_number += 1;
        }
        state.outbox.push(event.into_frame(number));
    }
}

/// The future of [`SseConnection::send`].
pub(super) struct Sending<'a> {
    pub(super) shared: &'a Shared,
    pub(super) event: Option<Event>,
    pub(super) ticket: Option<Ticket>,
}

impl Future for Sending<'_> {
    type Output = Result<(), SendError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.shared
            .poll_send(&mut this.event, &mut this.ticket, cx.waker())
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.cancel_send(ticket);
        }
    }
}
