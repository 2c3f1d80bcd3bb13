//! Event streams that the inner service has made by itself.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use pin_project_lite::pin_project;

use crate::{BoxError, connection::Reader, event::boundary::Boundaries};

/// How much of an event is held back until its end has come. What is larger goes out in pieces, and
/// nothing of the layer's own between them.
const MAX_HELD: usize = 1 << 20;

const BOM: &[u8] = b"\xef\xbb\xbf";

pin_project! {
    /// The body of an inner stream, and what the layer sends between its events.
    pub(super) struct Adopted<B> {
        // First, so that the connection ends for its own reason.
        reader: Reader,
        // None: it has ended.
        #[pin]
        body: Option<B>,
        boundaries: Boundaries,
        // The start of an event whose end has not come.
        held: BytesMut,
        // Nothing has gone out.
        is_first: bool,
        // The last piece that went out ended within an event.
        is_torn: bool,
    }
}

impl<B> Adopted<B> {
    pub(super) fn new(reader: Reader, body: B) -> Self {
        Self {
            reader,
            body: Some(body),
            boundaries: Boundaries::new(),
            held: BytesMut::new(),
            is_first: true,
            is_torn: false,
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.reader.is_ended()
    }
}

impl<B> Adopted<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    pub(super) fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BoxError>>> {
        let mut this = self.project();
        loop {
            // What is the layer's own goes out where an event has ended.
            let own = if *this.is_torn {
                this.reader.poll_cut(cx)
            } else {
                this.reader.poll_frame(cx)
            };
            if let Poll::Ready(own) = own {
                if this.reader.is_ended() {
                    this.body.set(None);
                }
                return Poll::Ready(own.map(|frame| frame.map_err(Into::into)));
            }
            let Some(body) = this.body.as_mut().as_pin_mut() else {
                return Poll::Pending;
            };
            let piece = match body.poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    this.body.set(None);
                    *this.is_torn = false;
                    this.reader.adopted_finished();
                    let rest = mem::take(this.held).freeze();
                    if !rest.is_empty() {
                        // An event without its end, which clients drop: it goes out as it came.
                        this.reader.gave(rest.len(), 0);
                        return Poll::Ready(Some(Ok(rest)));
                    }
                    continue;
                }
                Poll::Ready(Some(Err(error))) => {
                    this.body.set(None);
                    this.reader.end(crate::CloseReason::Failed);
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_trailers) => continue,
                },
            };
            let ended = this.boundaries.feed(&piece);
            let Some(mut frame) = whole_events(this.held, piece, ended.boundary) else {
                continue;
            };
            *this.is_torn = ended.boundary.is_none();
            if mem::take(this.is_first) && frame.starts_with(BOM) {
                // A heartbeat may have gone before it; and clients need none.
                frame = frame.slice(BOM.len()..);
            }
            if !frame.is_empty() {
                this.reader.gave(frame.len(), ended.events as u64);
                return Poll::Ready(Some(Ok(frame)));
            }
        }
    }
}

/// What may go out now that this piece has come: up to its last boundary, or all where that is too
/// much to hold. The rest is held.
fn whole_events(held: &mut BytesMut, mut piece: Bytes, boundary: Option<usize>) -> Option<Bytes> {
    let Some(length) = boundary else {
        held.extend_from_slice(&piece);
        let is_too_much = held.len() > MAX_HELD;
        return is_too_much.then(|| mem::take(held).freeze());
    };
    let rest = piece.split_off(length);
    let frame = if held.is_empty() {
        piece
    } else {
        held.extend_from_slice(&piece);
        mem::take(held).freeze()
    };
    held.extend_from_slice(&rest);
    Some(frame)
}
