//! A way to a server that the test can cut, or turn to another server.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// To the server at this port of the loopback.
    To(u16),
    /// The same, but answers are forwarded in small pieces, a thousand of them a second.
    Slowly(u16),
    /// What is said reaches the server at this port, what it answers goes nowhere.
    Unheard(u16),
    /// Connections break off.
    Cut,
}

pub struct Proxy {
    port: u16,
    /// The way, and how often connections had to break off.
    way: watch::Sender<(Way, u64)>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(way: Way) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = watch::Sender::new((way, 0));
        let ways = way.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(carry(client, ways.subscribe()));
            }
        });
        Self {
            port,
            way,
            accepting,
        }
    }

    /// Sets the way of connections to come. Those that are there break off, but for those that
    /// become one-way.
    pub fn set(&self, way: Way) {
        self.way.send_modify(|(it, breaks)| {
            *it = way;
            *breaks += u64::from(!matches!(way, Way::Unheard(_)));
        });
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set(Way::Cut);
    }
}

async fn carry(mut client: TcpStream, mut ways: watch::Receiver<(Way, u64)>) {
    let (way, breaks) = *ways.borrow_and_update();
    let port = match way {
        Way::To(port) | Way::Slowly(port) | Way::Unheard(port) => port,
        Way::Cut => return,
    };
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        let is_slow = matches!(way, Way::Slowly(_));
        let mut buffer = vec![0; if is_slow { 8 } else { 64 } * 1024];
        let mut next = Instant::now();
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            if is_slow {
                // A sleep may take much longer on a busy machine. Later pieces make up for it, so that
                // the average rate stays the same.
                let least = Instant::now() - Duration::from_millis(200);
                next = (next + Duration::from_millis(1)).max(least);
                sleep_until(next).await;
            }
            let answers = !matches!(ways.borrow().0, Way::Unheard(_));
            if answers && to_client.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    let mut changes = ways.clone();
    let turned = changes.wait_for(|it| it.1 != breaks);
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        () = answers => {}
        _ = turned => {}
    }
}
