//! The load: subscribers that count what they get and check its order, and a connection that tells
//! the server to publish.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
};

use crate::server::now;

/// What all subscribers write to.
#[derive(Default)]
pub(crate) struct Deliveries {
    count: Cell<usize>,
    wanted: Cell<usize>,
    reached: Notify,
    size: Cell<usize>,
    pub(crate) latencies: RefCell<Vec<u32>>,
}

impl Deliveries {
    /// Events of this many bytes are wanted, so many of them.
    pub(crate) fn expect(&self, wanted: usize, size: usize) {
        self.count.set(0);
        self.wanted.set(wanted);
        self.size.set(size);
    }

    pub(crate) async fn all(&self) {
        while self.count.get() < self.wanted.get() {
            self.reached.notified().await;
        }
        assert_eq!(self.count.get(), self.wanted.get(), "too many deliveries");
    }

    fn add(&self, sent: u64, received: u64) {
        let micros = received.saturating_sub(sent) / 1000;
        self.latencies.borrow_mut().push(micros as u32);
        self.count.set(self.count.get() + 1);
        if self.count.get() == self.wanted.get() {
            self.reached.notify_one();
        }
    }
}

/// Open streams, each read by a task of its own. They end with this.
pub(crate) struct Subscribers(#[allow(dead_code, reason = "held for its drop")] JoinSet<()>);

impl Subscribers {
    pub(crate) async fn connect(port: u16, count: usize, deliveries: &Rc<Deliveries>) -> Self {
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(("127.0.0.1", port))
                .await
                .expect("a connection");
            let request = b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n";
            stream.write_all(request).await.expect("a request");
            let mut subscriber = Subscriber {
                deliveries: Rc::clone(deliveries),
                rest: Vec::new(),
                next: None,
            };
            subscriber.head(&mut stream).await;
            tasks.spawn_local(subscriber.read(stream));
        }
        Self(tasks)
    }
}

struct Subscriber {
    deliveries: Rc<Deliveries>,
    /// The beginning of a chunk that is not complete.
    rest: Vec<u8>,
    /// The number of the event that has to come.
    next: Option<u64>,
}

impl Subscriber {
    /// Reads the head. The subscription is made when it has come.
    async fn head(&mut self, stream: &mut TcpStream) {
        loop {
            let read = stream.read_buf(&mut self.rest).await.expect("a head");
            assert!(read > 0, "no answer");
            if let Some(end) = memchr::memmem::find(&self.rest, b"\r\n\r\n") {
                assert!(self.rest.starts_with(b"HTTP/1.1 200 "), "no stream");
                self.rest.drain(..end + 4);
                return;
            }
        }
    }

    async fn read(mut self, stream: TcpStream) {
        // On the heap for the time of a read only: ten thousand tasks share it.
        thread_local!(static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 1 << 16]));
        loop {
            stream.readable().await.expect("a socket");
            BUFFER.with_borrow_mut(|buffer| match stream.try_read(buffer) {
                Ok(0) => panic!("a stream has ended"),
                Ok(read) if self.rest.is_empty() => {
                    let used = self.chunks(&buffer[..read]);
                    self.rest.extend_from_slice(&buffer[used..read]);
                }
                Ok(read) => {
                    let mut rest = std::mem::take(&mut self.rest);
                    rest.extend_from_slice(&buffer[..read]);
                    rest.drain(..self.chunks(&rest));
                    self.rest = rest;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("a stream has failed: {error}"),
            });
        }
    }

    /// Takes the chunks that are complete. Gives their size.
    fn chunks(&mut self, bytes: &[u8]) -> usize {
        let received = now();
        let mut at = 0;
        while let Some(line) = memchr::memmem::find(&bytes[at..], b"\r\n") {
            let size = std::str::from_utf8(&bytes[at..at + line]).expect("the size of a chunk");
            let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
            let start = at + line + 2;
            let Some(chunk) = bytes.get(start..start + size + 2) else {
                break;
            };
            self.events(&chunk[..size], received);
            at = start + size + 2;
        }
        at
    }

    /// Counts the events of a chunk.
    fn events(&mut self, chunk: &[u8], received: u64) {
        for at in memchr::memmem::find_iter(chunk, b"data: ") {
            let data = &chunk[at + 6..];
            let end = memchr::memchr(b'\n', data).expect("a whole line");
            // What the server tells by itself is JSON.
            if data[0] == b'{' {
                continue;
            }
            assert_eq!(end, self.deliveries.size.get(), "not the data");
            let number = decimal(&data[..12]);
            let next = self.next.replace(number + 1);
            assert_eq!(next.unwrap_or(number), number, "out of order");
            self.deliveries.add(decimal(&data[13..33]), received);
        }
    }
}

fn decimal(digits: &[u8]) -> u64 {
    let add = |value, digit: &u8| value * 10 + u64::from(digit - b'0');
    digits.iter().fold(0, add)
}

/// A connection to ask the server with.
pub(crate) struct Control(TcpStream);

impl Control {
    pub(crate) async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        let stream = stream.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        Self(stream)
    }

    pub(crate) async fn publish(&mut self, events: usize, size: usize) {
        let path = format!("POST /publish?n={events}&size={size}");
        self.ask(&path).await;
    }

    /// The server's processor time in nanoseconds.
    pub(crate) async fn cpu_time(&mut self) -> u64 {
        let answer = self.ask("GET /cpu").await;
        answer.parse().expect("a number")
    }

    async fn ask(&mut self, line: &str) -> String {
        let request = format!("{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
        let sent = self.0.write_all(request.as_bytes()).await;
        sent.expect("a request");
        let mut answer = Vec::new();
        loop {
            let read = self.0.read_buf(&mut answer).await.expect("an answer");
            assert!(read > 0, "no answer");
            let text = String::from_utf8_lossy(&answer);
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            let length = head
                .split("content-length: ")
                .nth(1)
                .map_or("0", |it| it.split("\r\n").next().unwrap_or("0"));
            if length.parse() == Ok(body.len()) {
                return body.to_owned();
            }
        }
    }
}
