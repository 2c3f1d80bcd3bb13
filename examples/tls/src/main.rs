//! An event stream over TLS, with HTTP/2 for clients that can, and HTTP/1.1 for the others.
//!
//! `cargo run -p tower-sse-example-tls` makes a certificate to try it with:
//! `curl --insecure --no-buffer https://localhost:3443/events`. With the paths of a certificate
//! chain and of its key as arguments, both in PEM, it takes those.

use std::{env, error::Error, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::time::interval;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use tower_sse::{
    Connections, Event, SseConnection, SseLayer,
    serve::{TcpListener, serve, with_handshake},
};

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = env::args().skip(1);
    let (chain, key) = match (paths.next(), paths.next()) {
        (Some(chain), Some(key)) => (
            CertificateDer::pem_file_iter(chain)?.collect::<Result<_, _>>()?,
            PrivateKeyDer::from_pem_file(key)?,
        ),
        _ => self_made()?,
    };
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // Browsers have six connections to a host at most over HTTP/1.1, so six streams.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));

    let listener = TcpListener::bind("127.0.0.1:3443").await?;
    println!("https://localhost:{}/events", listener.local_addr()?.port());
    let listener = with_handshake(listener, move |socket| acceptor.accept(socket));
    let connections = Connections::new();
    serve(listener, app(&connections))
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .drain(connections.drain().over(Duration::from_secs(1)))
        .await?;
    Ok(())
}

fn app(connections: &Connections) -> Router {
    Router::new()
        .route("/events", get(seconds))
        .layer(SseLayer::new("/events").registry(connections))
}

async fn seconds(sse: SseConnection) -> Result<(), tower_sse::Error> {
    let mut seconds = interval(Duration::from_secs(1));
    for number in 0_u64.. {
        tokio::select! {
            _ = seconds.tick() => {}
            _ = sse.ending() => break,
        }
        sse.send(Event::message(number.to_string())).await?;
    }
    Ok(())
}

fn self_made() -> Result<Pair, rcgen::Error> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    Ok((vec![cert.der().clone()], key))
}
