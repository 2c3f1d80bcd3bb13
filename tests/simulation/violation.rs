//! The ways in which a promise can be broken.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Violation {
    /// An event between two positions of a client was not sent, and no gap was announced.
    Missed,
    /// An event after the return of `subscribe` was not sent, and no gap was announced.
    MissedAtStart,
    /// An event was sent that had been appended before a subscription that begins now.
    Old,
    /// A client received an event twice.
    Twice,
    /// Ids or events of one log ran backwards.
    Backwards,
    /// A position was passed over another log, or a rewritten one, without a gap.
    Rewritten,
    /// An id names nothing that was ever in the log.
    UnknownId,
    /// An event does not carry its own position, or its own text.
    WrongEvent,
    /// An event of a topic that the client is not subscribed to.
    NotSubscribed,
    /// A topic event or a position came before an event that was sent before `live`.
    TooEarly,
    /// Events that were sent directly came in another order, or not at all.
    Direct,
    /// The outcome is not one that the client's id allows.
    Outcome,
    /// A gap was announced where nothing can have been lost.
    PointlessGap,
    /// A `gap` or `position` event is malformed, or its count is wrong.
    BadGap,
    /// A subscriber that reads at once was announced a lag.
    Lagged,
    /// An event that was visible at `close` was not delivered.
    NotDelivered,
    /// An event was sent that came after `close`.
    AfterClose,
    /// An event came late to a client that waited for it.
    Late,
    /// A broker did not read its log, although nothing was wrong with the way there.
    Unread,
    /// An event had not come at the end of the world.
    Stalled,
    /// The answer to `publish` does not agree with the log.
    Published,
    /// A stream ended for a reason that it did not have, or in the wrong way.
    Ended,
    /// Something in the world panicked.
    Panicked,
}
