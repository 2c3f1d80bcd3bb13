//! NATS servers that have to be signed in to, and that speak TLS.

use std::{error::Error, fs};
use support::authority;

use authority::Certified;
use support::{
    nats::{NatsServer, free_port},
    nodes::publish_at_last,
    topics::{Client, is_not_sent_because, publish},
};
use tower_sse::{Broker, backplane::nats::JetStreamOptions};

/// A server with more in its configuration.
async fn server_with(more: String) -> NatsServer {
    let mut server = NatsServer::stopped();
    server.more = more;
    server.restart().await;
    server
}

/// A server of this name that speaks TLS alone, and asks for a certificate if it is to.
async fn server_for(name: &str, asks: bool) -> (NatsServer, Certified) {
    let mut server = NatsServer::stopped();
    let certified = Certified::new(server.folder(), name);
    server.more = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: {asks} }}",
        certified.certificate, certified.key, certified.authority
    );
    server.restart().await;
    (server, certified)
}

/// Two nodes with these options share a log.
async fn are_one(options: JetStreamOptions) {
    let nodes = [
        Broker::new(options.clone().connect().await.unwrap()),
        Broker::new(options.connect().await.unwrap()),
    ];
    let mut client = Client::subscribe(&nodes[1], "a").await;
    publish(&nodes[0], "a", "1").await;
    assert_eq!(client.next().await, "1");
}

/// Nothing can be published with these options, and the cause says this.
async fn is_refused(options: JetStreamOptions, why: &str) {
    let log = options.connect().await.unwrap();
    is_not_sent_because(&Broker::new(log.clone()), why).await;
    assert!(!log.is_connected());
}

#[tokio::test]
async fn nodes_share_a_log_over_tls_with_a_trusted_authority() {
    let (mut server, certified) = server_for("127.0.0.1", false).await;
    let trusting = server.options().root_certificates(&certified.authority);
    are_one(trusting.clone()).await;
    let tls = server.url().replace("nats:", "tls:");
    let by_url = JetStreamOptions::new(tls).root_certificates(&certified.authority);
    are_one(by_url).await;
    // As any other server, it is connected to again.
    let broker = Broker::new(trusting.connect().await.unwrap());
    let mut client = Client::subscribe(&broker, "a").await;
    server.restart().await;
    publish_at_last(&broker, "2").await;
    assert_eq!(client.next().await, "2");
}

#[tokio::test]
async fn untrusted_certificate_is_refused_with_its_cause() {
    let (server, _) = server_for("127.0.0.1", false).await;
    let other = Certified::new(server.folder(), "other");
    is_refused(
        server.options().root_certificates(&other.authority),
        "invalid peer certificate",
    )
    .await;
    // The authorities of the system do not know it either.
    is_refused(server.options(), "invalid peer certificate").await;

    let (server, certified) = server_for("elsewhere.example", false).await;
    is_refused(
        server.options().root_certificates(&certified.authority),
        "not valid for name",
    )
    .await;
}

#[tokio::test]
async fn no_password_is_sent_to_a_server_without_tls() {
    let server = NatsServer::start().await;
    let certified = Certified::new(server.folder(), "127.0.0.1");
    let options = server.options().root_certificates(&certified.authority);
    is_refused(options.user_and_password("me", "secret"), "connection").await;
    server.has_clients_and_consumers((0, 0)).await;
}

#[tokio::test]
async fn client_certificate_is_sent_if_required() {
    let (server, certified) = server_for("127.0.0.1", true).await;
    let trusting = server.options().root_certificates(&certified.authority);
    is_refused(trusting.clone(), "connection").await;
    are_one(trusting.client_certificate(&certified.certificate, &certified.key)).await;
}

#[tokio::test]
async fn token_nkey_and_credentials_file_authenticate() {
    let server = server_with("authorization { token: \"s3cr3t\" }".to_owned()).await;
    is_refused(server.options().token("other"), "authorization violation").await;
    are_one(server.options().token("s3cr3t")).await;

    // A key of the documentation of NATS.
    let (public, seed) = (
        "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
        "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
    );
    let users = format!("authorization {{ users: [ {{ nkey: {public} }} ] }}");
    let server = server_with(users).await;
    is_refused(server.options().token("other"), "authorization violation").await;
    are_one(server.options().nkey(seed)).await;
    is_refused(server.options().nkey("SU-no-seed"), "connection").await;
}

#[tokio::test]
async fn missing_files_fail_at_connect() {
    let server = NatsServer::start().await;
    let certified = Certified::new(server.folder(), "a");
    let missing = server.folder().join("missing");
    let options = || server.options();
    for options in [
        options().root_certificates(&missing),
        options().client_certificate(&certified.certificate, &missing),
        options().client_certificate(&missing, &certified.key),
        options().credentials_file(&missing),
    ] {
        let error = options.connect().await.unwrap_err();
        let file = missing.display().to_string();
        assert!(error.to_string().contains(&file), "{error}");
        assert!(error.source().is_some());
    }
    let empty = server.folder().join("empty");
    fs::write(&empty, "").unwrap();
    assert!(options().credentials_file(&empty).connect().await.is_err());
}

#[tokio::test]
async fn one_reachable_server_of_several_suffices() {
    let server = NatsServer::start().await;
    let away = free_port();
    let urls = format!("nats://127.0.0.1:{away}, {}", server.url());
    are_one(JetStreamOptions::new(urls)).await;
}
