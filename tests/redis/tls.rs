//! TLS to Redis: servers with a certificate of an authority of their own.

use std::{error::Error, fs};
use support::authority;
use support::nodes;
use support::redis as redis_server;

use tower_sse::{
    Broker,
    backplane::{
        AppendErrorKind,
        redis::{RedisOptions, RedisStreams},
    },
    broker::BrokerErrorKind,
};

use authority::Certified;
use nodes::{Client, LIMIT, publish, try_publish};
use redis_server::{RedisServer, free_port};

/// A server that speaks TLS too, at a port of its own, and asks for a certificate if it is to.
async fn server_for(name: &str, asks: bool) -> (RedisServer, Certified, u16) {
    let mut server = RedisServer::prepare(&["--save", ""]);
    let certified = Certified::new(server.folder(), name);
    let port = free_port();
    for (option, value) in [
        ("--tls-port", port.to_string()),
        (
            "--tls-cert-file",
            certified.certificate.display().to_string(),
        ),
        ("--tls-key-file", certified.key.display().to_string()),
        (
            "--tls-ca-cert-file",
            certified.authority.display().to_string(),
        ),
        (
            "--tls-auth-clients",
            if asks { "yes" } else { "no" }.to_owned(),
        ),
    ] {
        server.add_option(option, &value);
    }
    server.restart().await;
    (server, certified, port)
}

fn options(port: u16) -> RedisOptions {
    RedisOptions::new(format!("rediss://127.0.0.1:{port}/"))
}

/// Why nothing can be published, with all causes.
async fn why_not(options: RedisOptions) -> String {
    let log = options.connect().await.unwrap();
    let error = try_publish(&Broker::new(log.clone()), "never")
        .await
        .unwrap_err();
    let kind = BrokerErrorKind::Append(AppendErrorKind::NotSent);
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(!log.is_connected());
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn two_nodes_share_a_log_over_tls() {
    let (mut server, certified, port) = server_for("127.0.0.1", false).await;
    let node = async || {
        let options = options(port).root_certificates(&certified.authority);
        Broker::new(options.connect().await.unwrap())
    };
    let (here, there) = (node().await, node().await);
    let mut client = Client::join_now(&there, "a").await;
    publish(&here, "1").await;
    assert_eq!(client.next().await, "1");
    let large = "x".repeat(500_000);
    publish(&here, &large).await;
    assert_eq!(client.next().await, large);
    // As any other server, it is connected to again.
    server.restart().await;
    client.is_told().await;
    nodes::publish_at_last(&here, "2").await;
    client.reaches("2").await;
}

#[tokio::test]
async fn untrusted_certificate_is_refused_with_its_cause() {
    // A handshake may take seconds on a busy machine.
    let options = |port| options(port).connect_timeout(LIMIT).append_timeout(LIMIT);
    let (server, _, port) = server_for("127.0.0.1", false).await;
    let other = Certified::new(server.folder(), "other");
    let why = why_not(options(port).root_certificates(&other.authority)).await;
    assert!(why.contains("invalid peer certificate"), "{why}");
    // Nor do the authorities of the system know it.
    let why = why_not(options(port)).await;
    assert!(why.contains("certificate"), "{why}");

    let (_server, certified, port) = server_for("elsewhere.example", false).await;
    let why = why_not(options(port).root_certificates(&certified.authority)).await;
    assert!(why.contains("invalid peer certificate"), "{why}");
    assert!(why.contains("not valid for name"), "{why}");
}

#[tokio::test]
async fn no_command_is_sent_to_a_server_without_tls() {
    let server = RedisServer::start().await;
    let certified = Certified::new(server.folder(), "127.0.0.1");
    let before = server.calls().await;
    let why = why_not(options(server.port()).root_certificates(&certified.authority)).await;
    assert!(why.contains("record was not sent"), "{why}");
    let names = |calls: Vec<(String, u64)>| calls.into_iter().map(|it| it.0).collect::<Vec<_>>();
    let after = names(server.calls().await);
    let new = after
        .iter()
        .filter(|it| !names(before.clone()).contains(it));
    assert_eq!(new.count(), 0, "{after:?}");
}

#[tokio::test]
async fn client_certificate_is_sent_if_required() {
    let (_server, certified, port) = server_for("127.0.0.1", true).await;
    let trusting = options(port).root_certificates(&certified.authority);
    let why = why_not(trusting.clone()).await;
    assert!(why.contains("record was not sent"), "{why}");
    let options = trusting.client_certificate(&certified.certificate, &certified.key);
    let broker = Broker::new(options.connect().await.unwrap());
    publish(&broker, "0").await;
    let mut client = Client::join_now(&broker, "a").await;
    publish(&broker, "1").await;
    client.reaches("1").await;
}

#[tokio::test]
async fn invalid_certificate_files_fail_at_connect() {
    let server = RedisServer::start().await;
    let certified = Certified::new(server.folder(), "a");
    let missing = server.folder().join("missing.pem");
    for (options, file) in [
        (options(1).root_certificates(&missing), &missing),
        (options(1).root_certificates(&certified.key), &certified.key),
        (
            options(1).client_certificate(&certified.certificate, &certified.certificate),
            &certified.certificate,
        ),
    ] {
        let error = options.connect().await.unwrap_err();
        let name = file.display().to_string();
        assert!(error.to_string().contains(&name), "{error}");
        assert!(error.source().is_some());
    }
    let damaged = server.folder().join("damaged.pem");
    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(&damaged, text).unwrap();
    let error = options(1).root_certificates(&damaged).connect().await;
    let error = error.unwrap_err();
    assert_eq!(error.to_string(), "certificates or key will not do");
    // They are read where there is TLS alone.
    let log = RedisOptions::new("redis://127.0.0.1:1").root_certificates(&missing);
    assert!(log.connect().await.is_ok());
    assert!(RedisStreams::connect("rediss://127.0.0.1:1").await.is_ok());
}
