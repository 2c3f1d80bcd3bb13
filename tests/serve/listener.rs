//! How the listener sets up its sockets.

use std::{net::SocketAddr, time::Duration};

use socket2::SockRef;
use support::within;
use tokio::net::{TcpSocket, TcpStream};
use tower_sse::serve::{Listener, TcpListener};

/// A client's connection, and what the listener makes of it.
async fn accepted(listener: &mut TcpListener) -> (TcpStream, TcpStream) {
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).await.unwrap();
    let (handshake, peer) = listener.accept().await.unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    (client, handshake.await.unwrap())
}

async fn bound() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

#[tokio::test]
async fn accepted_socket_has_nodelay_set() {
    let (_client, socket) = accepted(&mut bound().await).await;
    assert!(socket.nodelay().unwrap());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn accepted_socket_has_user_timeout_and_notsent_lowat() {
    let (_client, socket) = accepted(&mut bound().await).await;
    let socket = SockRef::from(&socket);
    let user_timeout = socket.tcp_user_timeout().unwrap();
    assert_eq!(user_timeout, Some(Duration::from_secs(30)));
    assert_eq!(socket.tcp_notsent_lowat().unwrap(), 16 * 1024);
    assert!(!socket.keepalive().unwrap());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn listener_options_apply_to_accepted_sockets() {
    let listener = bound().await.user_timeout(Some(Duration::from_secs(7)));
    let mut listener = listener.keep_alive(Some(Duration::from_secs(11)));
    let (_client, socket) = accepted(&mut listener).await;
    let socket = SockRef::from(&socket);
    let user_timeout = socket.tcp_user_timeout().unwrap();
    assert_eq!(user_timeout, Some(Duration::from_secs(7)));
    assert!(socket.keepalive().unwrap());
    assert_eq!(
        socket.tcp_keepalive_time().unwrap(),
        Duration::from_secs(11)
    );

    let listener = bound().await.keep_alive(Some(Duration::from_secs(11)));
    let mut listener = listener.keep_alive(None);
    let (_client, socket) = accepted(&mut listener).await;
    assert!(!SockRef::from(&socket).keepalive().unwrap());

    let mut listener = bound().await.user_timeout(None);
    let (_client, socket) = accepted(&mut listener).await;
    assert_eq!(SockRef::from(&socket).tcp_user_timeout().unwrap(), None);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn sockets_of_a_converted_listener_are_configured() {
    let listener = bound().await;
    let listener = listener.user_timeout(Some(Duration::from_secs(9)));
    let listener = listener.into_tokio();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    let (_client, (socket, _)) = (client.unwrap(), accepted.unwrap());
    assert!(socket.nodelay().unwrap());
    let user_timeout = SockRef::from(&socket).tcp_user_timeout().unwrap();
    assert_eq!(user_timeout, Some(Duration::from_secs(9)));
}

/// Nobody accepts, and the backlog has room for all of them. With tokio's 128 the later ones would
/// repeat their SYN, and never be connected.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn connection_burst_fits_into_the_backlog() {
    let listener = bound().await;
    let address: SocketAddr = listener.local_addr().unwrap();
    let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let room: usize = somaxconn.trim().parse().unwrap();
    assert!(
        room >= 400,
        "net.core.somaxconn is {room}: this needs 400 at least"
    );
    let mut clients = Vec::new();
    for _ in 0..400 {
        let socket = TcpSocket::new_v4().unwrap();
        clients.push(tokio::spawn(socket.connect(address)));
    }
    let connected = async {
        for client in clients {
            client.await.unwrap().unwrap();
        }
    };
    within("400 connections in the backlog", connected).await;
}

#[tokio::test]
async fn address_in_use_is_an_error() {
    let listener = bound().await;
    let address = listener.local_addr().unwrap();
    let error = TcpListener::bind(address).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let error = TcpListener::bind(&[][..] as &[SocketAddr])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}
