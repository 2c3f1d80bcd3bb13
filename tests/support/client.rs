//! hyper's clients: one connection over which requests go, to read event streams with.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpSocket, task::JoinHandle};
use tower_sse::test_util::EventReader;

use super::{LIMIT, within};

/// A client with one connection. Dropping it closes the socket.
pub struct Client {
    address: SocketAddr,
    sender: Sender,
    driver: JoinHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub async fn connect(address: SocketAddr, version: Version) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // A kernel that sizes it by itself may take tens of megabytes ahead of a slow reader.
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let socket = TokioIo::new(socket.connect(address).await.unwrap());
        let (sender, driver) = if version == Version::HTTP_2 {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), socket)
                .await
                .unwrap();
            let driver = tokio::spawn(async { drop(driver.await) });
            (Sender::Http2(sender), driver)
        } else {
            let (sender, driver) = http1::handshake(socket).await.unwrap();
            let driver = tokio::spawn(async { drop(driver.await) });
            (Sender::Http1(sender), driver)
        };
        Self {
            address,
            sender,
            driver,
        }
    }

    /// A request for a path, as this connection's version wants it.
    pub fn request(&self, method: Method, path: &str) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method);
        let request = match &self.sender {
            Sender::Http1(_) => request
                .uri(path)
                .header(header::HOST, self.address.to_string()),
            Sender::Http2(_) => request.uri(format!("http://{}{path}", self.address)),
        };
        request.body(Full::default()).unwrap()
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        within("an answer", self.send_any(request)).await.unwrap()
    }

    /// The same, without a limit in time, and where there may be none.
    pub async fn send_any(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Sends a request, and reads the answer as an event stream.
    pub async fn events(&mut self, request: Request<Full<Bytes>>) -> Response<EventReader> {
        let response = self.send(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let content_type = &response.headers()[header::CONTENT_TYPE];
        assert_eq!(content_type, "text/event-stream");
        response.map(|body| EventReader::new(body).time_limit(LIMIT))
    }

    /// Opens the event stream at a path, and reads its welcome.
    pub async fn open(&mut self, path: &str) -> EventReader {
        let request = self.request(Method::GET, path);
        let mut events = self.events(request).await.into_body();
        assert_eq!(events.event().await.unwrap().event_type, "welcome");
        events
    }

    /// Gets what is at a path: all of it.
    pub async fn get(&mut self, path: &str) -> (StatusCode, HeaderMap, Bytes) {
        let request = self.request(Method::GET, path);
        self.whole(request).await
    }

    /// Sends a request, and reads all of the answer.
    pub async fn whole(&mut self, request: Request<Full<Bytes>>) -> (StatusCode, HeaderMap, Bytes) {
        let (head, body) = self.send(request).await.into_parts();
        let body = within("the body", body.collect()).await.unwrap();
        (head.status, head.headers, body.to_bytes())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
