//! A client that reads HTTP/1 off the socket itself, for what libraries do not show.

use std::{io, net::SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tower_sse::event::{Decoded, Decoder, MessageEvent};

use super::within;

pub struct Raw<S = TcpStream> {
    socket: S,
    /// What was read and not taken yet.
    read: Vec<u8>,
    decoder: Decoder,
}

#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
}

/// How a body ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// With its last chunk: the connection can be used again.
    LastChunk,
    /// With the connection, in the middle.
    Cut,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    /// One that takes little ahead, as over a real network: its kernel's buffer is as small as it
    /// gets, and so are the segments.
    pub async fn connect_small(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        SockRef::from(&socket).set_tcp_mss(536).unwrap();
        Self::over(socket.connect(address).await.unwrap())
    }

    /// Connects, and sends a request: its first line and headers, each ended by `\r\n`.
    pub async fn request(address: SocketAddr, request: &str) -> Self {
        let mut client = Self::connect(address).await;
        client.send(request).await;
        client
    }

    /// Leaves with an RST instead of a FIN.
    pub fn reset(self) {
        self.socket.set_zero_linger().unwrap();
    }

    pub fn local_address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub fn over(socket: S) -> Self {
        Self {
            socket,
            read: Vec::new(),
            decoder: Decoder::new(),
        }
    }

    /// Sends a request as above, with an empty line after it.
    pub async fn send(&mut self, request: &str) {
        self.send_bytes(format!("{request}\r\n").as_bytes()).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        within("the socket to take a request", self.socket.write_all(bytes))
            .await
            .unwrap();
    }

    /// The same, without a limit in time.
    pub async fn try_send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await
    }

    pub async fn head(&mut self) -> Head {
        let end = loop {
            if let Some(at) = find(&self.read, b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.fill().await, "the connection ended in the head");
        };
        let head: Vec<u8> = self.read.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            let name: HeaderName = name.parse().unwrap();
            let value: HeaderValue = value.parse().unwrap();
            (name, value)
        });
        Head {
            status: status.parse().unwrap(),
            headers: headers.collect(),
        }
    }

    /// The head of an event stream.
    pub async fn stream_head(&mut self) -> Head {
        let head = self.head().await;
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.headers[header::CONTENT_TYPE], "text/event-stream");
        head
    }

    /// The next chunk of a chunked body.
    pub async fn chunk(&mut self) -> Result<Vec<u8>, End> {
        loop {
            if let Some(at) = find(&self.read, b"\r\n") {
                let size = std::str::from_utf8(&self.read[..at]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                let end = at + 2 + size + 2;
                if self.read.len() >= end {
                    let mut chunk: Vec<u8> = self.read.drain(..end).collect();
                    assert!(chunk.ends_with(b"\r\n"), "a chunk is longer than it says");
                    if size == 0 {
                        return Err(End::LastChunk);
                    }
                    chunk.truncate(end - 2);
                    return Ok(chunk.split_off(at + 2));
                }
            }
            if !self.fill().await {
                return Err(End::Cut);
            }
        }
    }

    /// The next event of a chunked body.
    pub async fn event(&mut self) -> Result<MessageEvent, End> {
        loop {
            if let Some(decoded) = self.decoder.next() {
                let Decoded::Event(event) = decoded else {
                    continue;
                };
                return Ok(event);
            }
            let chunk = self.chunk().await?;
            self.decoder.feed(&chunk).unwrap();
        }
    }

    /// Reads all that comes until the server closes the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.read)
    }

    /// What comes next, whatever it is; nothing at the end.
    pub async fn more(&mut self) -> Vec<u8> {
        if self.read.is_empty() {
            self.fill().await;
        }
        std::mem::take(&mut self.read)
    }

    /// This many bytes.
    pub async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(self.fill().await, "the connection ended");
        }
        self.read.drain(..count).collect()
    }

    /// Reads this much off the socket, and no byte more, as one who is slow.
    pub async fn sip(&mut self, count: usize) -> bool {
        let mut piece = vec![0; count];
        let read = within("the server to send", self.socket.read_exact(&mut piece)).await;
        self.read.append(&mut piece);
        read.is_ok()
    }

    /// Sends nothing more, and reads on.
    pub async fn half_close(&mut self) {
        self.socket.shutdown().await.unwrap();
    }

    /// Reads on. Tells whether there was something.
    async fn fill(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        match within("the server to send", self.socket.read(&mut piece)).await {
            Ok(size) => {
                self.read.extend_from_slice(&piece[..size]);
                size > 0
            }
            Err(_) => false,
        }
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}
