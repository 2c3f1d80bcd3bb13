//! Bodies that layers outside put around a stream's body, and what goes through them.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::Frame;
use tokio::time::{Sleep, sleep};
use tower_sse::BoxError;

type Polled<E> = Poll<Option<Result<Frame<Bytes>, E>>>;

/// What a body does to the frames of the body inside.
#[derive(Clone, Copy, Debug)]
pub enum Wrap {
    /// Replaces some bytes.
    Mask,
    /// Appends how many bytes each frame has.
    Count,
    /// Returns `Pending` before each frame, and wakes its task.
    Yield,
    /// Returns each frame this many milliseconds late.
    Sleep(u64),
    /// Returns each frame when the next one is there, or the end.
    Hold,
    /// Fails instead of returning more bytes than this.
    Limit(usize),
    /// Adds a frame at a clean end.
    Append,
    /// Ends after this many frames. It may report so by `is_end_stream`.
    EndAfter { frames: usize, reports: bool },
    /// Returns empty frames before and after each frame.
    Empty { before: usize, after: usize },
    /// Adds trailers at a clean end.
    Trailers,
    /// Returns `Pending` between a frame and an error, and wakes its task. hyper drops a frame that it
    /// has not written when the body fails.
    Settle,
}

/// What a wrapper returns at its next polls.
enum Item {
    Frame(Frame<Bytes>),
    Yield,
    Sleep(Duration),
    Fail(BoxError),
    End,
}

/// A body around another.
pub struct Wrapped {
    inner: Body,
    wrap: Wrap,
    items: VecDeque<Item>,
    held: Option<Frame<Bytes>>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Frames, or bytes.
    count: usize,
    is_over: bool,
}

impl Wrapped {
    pub fn new(inner: Body, wrap: Wrap) -> Self {
        Self {
            inner,
            wrap,
            items: VecDeque::new(),
            held: None,
            sleep: None,
            count: 0,
            is_over: false,
        }
    }

    fn data(&mut self, data: &Bytes) {
        let frame = Frame::data(data.clone());
        match self.wrap {
            Wrap::Mask => {
                let masked = |byte: &u8| if *byte == b'x' { b'y' } else { *byte };
                let data: Vec<u8> = data.iter().map(masked).collect();
                self.items.push_back(Item::Frame(Frame::data(data.into())));
            }
            Wrap::Count => {
                self.items.push_back(Item::Frame(frame));
                let text = format!(": {}\n", data.len());
                self.items.push_back(Item::Frame(Frame::data(text.into())));
            }
            Wrap::Yield => self.items.extend([Item::Yield, Item::Frame(frame)]),
            Wrap::Sleep(millis) => {
                let sleep = Item::Sleep(Duration::from_millis(millis));
                self.items.extend([sleep, Item::Frame(frame)]);
            }
            Wrap::Hold => {
                let before = self.held.replace(frame);
                self.items.extend(before.map(Item::Frame));
            }
            Wrap::Limit(most) => {
                self.count += data.len();
                if self.count > most {
                    self.fail("more than the limit".into());
                } else {
                    self.items.push_back(Item::Frame(frame));
                }
            }
            Wrap::EndAfter { frames, .. } => {
                self.items.push_back(Item::Frame(frame));
                self.count += 1;
                if self.count == frames {
                    self.items.push_back(Item::End);
                }
            }
            Wrap::Empty { before, after } => {
                let empty = || Item::Frame(Frame::data(Bytes::new()));
                self.items.extend((0..before).map(|_| empty()));
                self.items.push_back(Item::Frame(frame));
                self.items.extend((0..after).map(|_| empty()));
            }
            Wrap::Append | Wrap::Trailers | Wrap::Settle => {
                self.items.push_back(Item::Frame(frame));
            }
        }
    }

    fn fail(&mut self, error: BoxError) {
        self.items.extend(self.held.take().map(Item::Frame));
        if matches!(self.wrap, Wrap::Settle) {
            self.items.push_back(Item::Yield);
        }
        self.items.push_back(Item::Fail(error));
    }

    fn end(&mut self) {
        self.items.extend(self.held.take().map(Item::Frame));
        if matches!(self.wrap, Wrap::Append) {
            let frame = Frame::data("data: appended\n\n".into());
            self.items.push_back(Item::Frame(frame));
        }
        if matches!(self.wrap, Wrap::Trailers) {
            let name = HeaderName::from_static("x-end");
            let trailers = HeaderMap::from_iter([(name, "1".parse().unwrap())]);
            self.items.push_back(Item::Frame(Frame::trailers(trailers)));
        }
        self.items.push_back(Item::End);
    }
}

impl http_body::Body for Wrapped {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<BoxError> {
        loop {
            if let Some(sleep) = &mut self.sleep {
                ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            }
            match self.items.pop_front() {
                Some(Item::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Some(Item::Yield) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Item::Sleep(time)) => {
                    self.sleep = Some(Box::pin(sleep(time)));
                    continue;
                }
                Some(Item::Fail(error)) => {
                    self.is_over = true;
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Item::End) => self.is_over = true,
                None => {}
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.data(&data),
                    Err(trailers) => self.items.push_back(Item::Frame(trailers)),
                },
                Some(Err(error)) => self.fail(error.into()),
                None => self.end(),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_end = match self.wrap {
            Wrap::EndAfter { reports, .. } => {
                reports && matches!(self.items.front(), Some(Item::End))
            }
            // Something of its own comes at the end.
            Wrap::Append | Wrap::Trailers | Wrap::Hold => false,
            _ => self.items.is_empty() && self.sleep.is_none() && self.inner.is_end_stream(),
        };
        is_end || self.is_over
    }
}

// ===== watched bodies =====

/// What comes out of an innermost body.
#[derive(Default)]
pub struct Pulled {
    events: AtomicUsize,
    is_dropped: AtomicBool,
}

impl Pulled {
    /// Returns how many events have ended.
    pub fn events(&self) -> usize {
        self.events.load(SeqCst)
    }

    pub fn is_dropped(&self) -> bool {
        self.is_dropped.load(SeqCst)
    }
}

/// A body that reports what comes out of it.
pub struct Innermost {
    pub body: Body,
    pub pulled: Arc<Pulled>,
}

impl http_body::Body for Innermost {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<axum::Error> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let ends = |data: &Bytes| data.windows(2).filter(|two| two == b"\n\n").count();
            let events = frame.data_ref().map_or(0, ends);
            self.pulled.events.fetch_add(events, SeqCst);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Drop for Innermost {
    fn drop(&mut self) {
        self.pulled.is_dropped.store(true, SeqCst);
    }
}

/// What a server gets of an outermost body.
#[derive(Debug, Default)]
pub struct Given {
    was_polled: bool,
    /// The first poll has not ended the body.
    pub is_stream: bool,
    /// Frames, errors and the end.
    pub items: Vec<String>,
}

/// A body that reports what a server gets of it.
pub struct Outermost {
    pub body: Body,
    pub given: Arc<Mutex<Given>>,
}

impl http_body::Body for Outermost {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<axum::Error> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let mut given = self.given.lock().unwrap();
        let goes_on = match &polled {
            Poll::Pending => true,
            Poll::Ready(Some(Ok(frame))) => frame.is_data() && !self.body.is_end_stream(),
            Poll::Ready(_) => false,
        };
        given.is_stream |= goes_on && !given.was_polled;
        given.was_polled = true;
        if let Poll::Ready(item) = &polled {
            given.items.push(format!("{item:?}"));
        }
        drop(given);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
