//! What the machine can do: one thread, one epoll, and for each subscriber one write of all that was
//! published at once. It knows just as much HTTP as the load speaks.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
};

use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, EventData, EventFlags},
};

use crate::server::{cpu_time, now};

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    transfer-encoding: chunked\r\n\r\n";

#[derive(Default)]
struct Sockets {
    all: HashMap<u64, (TcpStream, Vec<u8>)>,
    subscribers: Vec<u64>,
    number: u64,
}

/// Serves for ever.
pub(crate) fn serve(listener: &TcpListener) {
    listener.set_nonblocking(true).expect("a socket");
    let epoll = epoll::create(CreateFlags::CLOEXEC).expect("an epoll");
    let listening = EventData::new_u64(0);
    epoll::add(&epoll, listener, listening, EventFlags::IN).expect("a socket");
    let mut sockets = Sockets::default();
    let mut next = 1;
    let mut events = Vec::with_capacity(1024);
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None).expect("events");
        for event in events.drain(..) {
            let key = event.data.u64();
            if key != 0 {
                sockets.read(key);
                continue;
            }
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).expect("a socket");
                stream.set_nodelay(true).expect("a socket");
                let data = EventData::new_u64(next);
                epoll::add(&epoll, &stream, data, EventFlags::IN).expect("a socket");
                sockets.all.insert(next, (stream, Vec::new()));
                next += 1;
            }
        }
    }
}

impl Sockets {
    fn read(&mut self, key: u64) {
        let Some((stream, request)) = self.all.get_mut(&key) else {
            return;
        };
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) => self.remove(key),
            Ok(read) => {
                request.extend_from_slice(&bytes[..read]);
                if request.ends_with(b"\r\n\r\n") {
                    let request = std::mem::take(request);
                    self.answer(key, &String::from_utf8_lossy(&request));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.remove(key),
        }
    }

    fn remove(&mut self, key: u64) {
        self.all.remove(&key);
        self.subscribers.retain(|it| *it != key);
    }

    fn answer(&mut self, key: u64, request: &str) {
        let of = |name: &str| -> usize {
            let value = request.split(name).nth(1).expect("a parameter");
            let digits = value.split(|it: char| !it.is_ascii_digit()).next();
            digits.and_then(|it| it.parse().ok()).expect("a number")
        };
        let text = if request.starts_with("GET /events") {
            self.subscribers.push(key);
            self.write(key, HEAD);
            return;
        } else if request.starts_with("POST /publish") {
            self.publish(of("n="), of("size="));
            String::new()
        } else {
            cpu_time().to_string()
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
        self.write(key, (head + &text).as_bytes());
    }

    fn publish(&mut self, count: usize, size: usize) {
        let mut chunk = String::new();
        for _ in 0..count {
            let start = format!("{:012} {:020} ", self.number, now());
            let padding = "x".repeat(size - start.len());
            chunk += &format!("event: tick\ndata: {start}{padding}\n\n");
            self.number += 1;
        }
        let chunk = format!("{:x}\r\n{chunk}\r\n", chunk.len());
        for key in std::mem::take(&mut self.subscribers) {
            self.write(key, chunk.as_bytes());
            self.subscribers.push(key);
        }
    }

    /// Whole, since the load reads all that it is sent: a full socket would be a fault of the bench.
    fn write(&mut self, key: u64, bytes: &[u8]) {
        if let Some((stream, _)) = self.all.get_mut(&key) {
            stream.write_all(bytes).expect("room in the socket");
        }
    }
}
