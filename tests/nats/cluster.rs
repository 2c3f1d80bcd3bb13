//! A cluster of three NATS servers, which keep the stream three times: one may be killed.
//!
//! Until the others have agreed on a leader, which takes them 4 to 9 seconds, nothing goes on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};
use support::nats as nats_server;
use support::nodes;
use support::traffic;

use nats_server::{NatsServer, free_port};
use nodes::{Client, LIMIT, publish, try_publish, within};
use tokio::{
    sync::Mutex,
    time::{Instant, interval, sleep},
};
use tower_sse::backplane::nats::JetStreamOptions;

struct Cluster {
    servers: Vec<NatsServer>,
}

impl Cluster {
    async fn start() -> Self {
        let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
        let routes: Vec<_> = ports
            .iter()
            .map(|port| format!("\"nats://127.0.0.1:{port}\""))
            .collect();
        let mut servers = Vec::new();
        for (number, port) in ports.iter().enumerate() {
            let mut server = NatsServer::stopped();
            server.more = format!(
                "server_name: server-{number}\n\
                 cluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{}] }}",
                routes.join(", ")
            );
            servers.push(server);
        }
        // None of them is well without another.
        let starts = servers.iter_mut().map(NatsServer::restart);
        futures_util::future::join_all(starts).await;
        Self { servers }
    }

    fn urls(&self) -> String {
        let urls: Vec<_> = self.servers.iter().map(NatsServer::url).collect();
        urls.join(",")
    }

    fn options(&self) -> JetStreamOptions {
        JetStreamOptions::new(self.urls())
            .replicas(3)
            .append_timeout(LIMIT)
    }

    /// Which server leads the stream.
    async fn leader(&self) -> usize {
        let stream = self.servers[0].stream().await;
        let info = stream.cached_info().cluster.clone();
        let leader = info.unwrap().leader.unwrap();
        leader.strip_prefix("server-").unwrap().parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_leader_causes_no_loss() {
    let mut cluster = Cluster::start().await;
    let nodes = [
        traffic::node(cluster.options().connect().await.unwrap()),
        traffic::node(cluster.options().connect().await.unwrap()),
    ];
    let mut clients = Vec::new();
    for node in &nodes {
        clients.push(Client::join_now(node, "a").await);
    }
    publish(&nodes[0], "first").await;
    let stream = cluster.servers[0].stream().await;
    assert_eq!(stream.cached_info().config.num_replicas, 3);

    let acknowledged = Arc::<Mutex<BTreeMap<u64, String>>>::default();
    let (publisher, noted) = (nodes[0].clone(), Arc::clone(&acknowledged));
    let publishing = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(5));
        for number in 0..1500 {
            ticks.tick().await;
            let (publisher, noted) = (publisher.clone(), Arc::clone(&noted));
            tokio::spawn(async move {
                let text = number.to_string();
                // Whoever is not connected just now tries again.
                while let Err(error) = try_publish(&publisher, &text).await {
                    println!("{error:?}");
                    sleep(Duration::from_millis(50)).await;
                }
                noted.lock().await.insert(number, text);
            });
        }
    });
    let reading: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let (mut got, mut longest) = (Vec::new(), Duration::ZERO);
                let mut last = Instant::now();
                assert_eq!(client.next().await, "first");
                loop {
                    let text = client.next().await;
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                    if text == "end" {
                        return (got, longest);
                    }
                    got.push(text);
                }
            })
        })
        .collect();
    sleep(Duration::from_secs(2)).await;
    let leader = cluster.leader().await;
    cluster.servers[leader].kill();
    within("the publisher", publishing).await.unwrap();
    within("the acknowledgements", async {
        while acknowledged.lock().await.len() < 1500 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    publish(&nodes[0], "end").await;
    let mut all = Vec::new();
    for reading in reading {
        let (got, longest) = within("a client", reading).await.unwrap();
        println!("{} events, longest pause {longest:?}", got.len());
        // Neither a gap, nor anything twice.
        let mut numbers: Vec<u64> = got.iter().map(|text| text.parse().unwrap()).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..1500));
        all.push(got);
    }
    assert!(all[0] == all[1], "in one order");
    // The one that was away comes back, and goes along.
    cluster.servers[leader].restart().await;
    let mut client = Client::join_now(&nodes[1], "a").await;
    publish(&nodes[0], "more").await;
    assert_eq!(client.next().await, "more");
}
