//! A client of event streams, as thin as can be.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};
use tower_sse::event::{Decoded, Decoder};

/// No wait takes this long, unless something is broken.
const LONG: Duration = Duration::from_secs(60);

pub(crate) fn request(path: &str, last_event_id: Option<&str>) -> String {
    let place = last_event_id.map_or_else(String::new, |id| format!("last-event-id: {id}\r\n"));
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n{place}\r\n")
}

/// Connects. Where the system has no port left, it waits for one.
pub(crate) async fn connect(port: u16, receive_buffer: Option<u32>) -> TcpStream {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let connected = async {
        loop {
            let socket = TcpSocket::new_v4().expect("a socket");
            if let Some(size) = receive_buffer {
                socket.set_recv_buffer_size(size).expect("a size");
            }
            match socket.connect(address).await {
                Ok(socket) => return socket,
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("no connection: {error}"),
            }
        }
    };
    timeout(LONG, connected)
        .await
        .expect("a connection in time")
}

/// An open stream.
pub(crate) struct Stream {
    socket: TcpStream,
    /// The beginning of a chunk that is not complete.
    rest: Vec<u8>,
    decoder: Decoder,
    is_ended: bool,
}

impl Stream {
    pub(crate) async fn open(port: u16, path: &str, last_event_id: Option<&str>) -> Self {
        let mut socket = connect(port, None).await;
        let request = request(path, last_event_id);
        let sent = socket.write_all(request.as_bytes()).await;
        sent.expect("a request");
        let mut stream = Self {
            socket,
            rest: Vec::new(),
            decoder: Decoder::new(),
            is_ended: false,
        };
        let end = loop {
            stream.fill().await;
            if let Some(end) = memchr::memmem::find(&stream.rest, b"\r\n\r\n") {
                break end + 4;
            }
        };
        assert!(stream.rest.starts_with(b"HTTP/1.1 200 "), "no stream");
        stream.rest.drain(..end);
        stream.take_chunks();
        stream
    }

    /// What comes next; nothing at a clean end.
    pub(crate) async fn next(&mut self) -> Option<Decoded> {
        loop {
            if let Some(decoded) = self.decoder.next() {
                return Some(decoded);
            }
            if self.is_ended {
                return None;
            }
            self.fill().await;
            self.take_chunks();
        }
    }

    pub(crate) fn last_event_id(&self) -> &str {
        self.decoder.last_event_id()
    }

    async fn fill(&mut self) {
        self.rest.reserve(4096);
        let read = timeout(LONG, self.socket.read_buf(&mut self.rest)).await;
        let read = read.expect("something in time").expect("a socket");
        assert!(read > 0, "a stream was cut");
    }

    /// Takes the chunks that are complete.
    fn take_chunks(&mut self) {
        let mut at = 0;
        while let Some(line) = memchr::memmem::find(&self.rest[at..], b"\r\n") {
            let size = std::str::from_utf8(&self.rest[at..at + line]).expect("a size");
            let size = usize::from_str_radix(size, 16).expect("a size");
            let start = at + line + 2;
            let Some(chunk) = self.rest.get(start..start + size + 2) else {
                break;
            };
            self.is_ended |= size == 0;
            self.decoder.feed(&chunk[..size]).expect("short events");
            at = start + size + 2;
        }
        self.rest.drain(..at);
    }
}
