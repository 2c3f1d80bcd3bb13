//! Both ends of TLS, with a certificate of their own.

use std::{net::SocketAddr, sync::Arc};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer},
};

use super::within;

#[derive(Clone)]
pub struct Tls {
    pub acceptor: TlsAcceptor,
    roots: RootCertStore,
}

impl Tls {
    pub fn new() -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            roots,
        }
    }

    /// A client's socket, for which these protocols would do.
    pub async fn connect(&self, address: SocketAddr, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(address).await.unwrap();
        self.over(socket, alpn).await
    }

    /// One whose kernel's buffer is as small as it gets, and so are its segments.
    pub async fn connect_small(&self, address: SocketAddr) -> TlsStream<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        SockRef::from(&socket).set_tcp_mss(536).unwrap();
        self.over(socket.connect(address).await.unwrap(), &[]).await
    }

    async fn over(&self, socket: TcpStream, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let mut config = ClientConfig::builder()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let connector = TlsConnector::from(Arc::new(config));
        let name = "localhost".try_into().unwrap();
        within("TLS", connector.connect(name, socket))
            .await
            .unwrap()
    }
}
