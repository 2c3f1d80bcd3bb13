//! Which server has the log: the one at the URL, the primary that sentinels name, or the node of a
//! cluster that holds the slot.
//!
//! 1. Sentinels, and nodes of a cluster, that were cut off tell of how things were. So several are
//!    asked at once, and the one that knows the highest epoch is believed.
//! 2. What was found is asked itself: a server that is no primary is not used.
//! 3. Once another server is found to be the primary, nobody waits for the old one any longer.

use std::{
    collections::HashMap,
    future::{Future, pending},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisError, Value, aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::{
    ConnectError, RedisOptions,
    cluster::{self, Address, ClusterNode},
    options::Topology,
    tls,
};

/// How long others may take to answer, once one has.
const OTHERS: Duration = Duration::from_millis(100);

/// How many nodes of a cluster are asked at once.
const ASKED: usize = 5;

/// How often sentinels are asked again, who tell nobody by themselves; and a cluster, where its node
/// does not answer.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Discovery {
    /// Where the server is, unless others have to be asked; and how to sign in.
    base: ConnectionInfo,
    directory: Option<Directory>,
    /// The server that was found last.
    found: watch::Sender<Option<Address>>,
    connect_timeout: Duration,
}

enum Directory {
    Sentinels {
        servers: Vec<ConnectionInfo>,
        primary: String,
    },
    Cluster {
        key: String,
        /// The nodes that were named by the user.
        first: Vec<Address>,
        /// Guards the nodes that the cluster has named last.
        nodes: Mutex<Vec<Address>>,
    },
}

/// What somebody says who was asked: which server it is, and since which epoch.
struct DiscoveryReply {
    epoch: u64,
    address: Address,
    /// All nodes of the cluster, where it is one.
    nodes: Vec<Address>,
}

impl Discovery {
    pub(super) fn new(options: &RedisOptions, key: &str) -> Result<Self, ConnectError> {
        let base = info(&options.url, options)?;
        let directory = match &options.topology {
            Topology::Single => None,
            Topology::Sentinels(urls) => {
                let servers = urls.iter().map(|url| info(url, options));
                let servers = servers.collect::<Result<Vec<_>, _>>()?;
                let (primary, _) = address_of(&base).ok_or_else(ConnectError::no_host)?;
                if servers.is_empty() {
                    return Err(ConnectError::no_sentinel());
                }
                Some(Directory::Sentinels { servers, primary })
            }
            Topology::Cluster(urls) => {
                let others = urls.iter().map(|url| info(url, options));
                let others = others.collect::<Result<Vec<_>, _>>()?;
                let first = [&base].into_iter().chain(&others).map(address_of);
                let first = first.collect::<Option<Vec<_>>>();
                Some(Directory::Cluster {
                    key: key.to_owned(),
                    first: first.ok_or_else(ConnectError::no_host)?,
                    nodes: Mutex::default(),
                })
            }
        };
        Ok(Self {
            base,
            directory,
            found: watch::Sender::new(None),
            connect_timeout: options.connect_timeout,
        })
    }

    /// Connects to the server that has the log. Gives its address, if it was asked for.
    pub(super) async fn connect(
        &self,
        response_timeout: Duration,
    ) -> Result<(MultiplexedConnection, Option<Address>), RedisError> {
        let Some(directory) = &self.directory else {
            let connection = connect(&self.base, self.connect_timeout, response_timeout);
            return Ok((connection.await?, None));
        };
        let address = self.ask(directory).await?;
        let info = self.at(&address);
        let mut connection = connect(&info, self.connect_timeout, response_timeout).await?;
        let role: Vec<Value> = redis::cmd("ROLE").query_async(&mut connection).await?;
        if !matches!(role.first(), Some(Value::BulkString(role)) if role == b"master") {
            let (host, port) = address;
            let server = format!("{host}:{port}");
            return Err((ErrorKind::Client, "server is no primary", server).into());
        }
        self.settle(&address);
        Ok((connection, Some(address)))
    }

    /// Waits until another server than this one is known to be the primary.
    pub(super) async fn has_left(&self, address: Option<&Address>) {
        let Some(address) = address else {
            return pending().await;
        };
        let mut found = self.found.subscribe();
        // It fails only if the sender is dropped, and `self` has the sender.
        let _ = found.wait_for(|it| it.as_ref() != Some(address)).await;
    }

    /// Whether the server may become another one.
    pub(super) fn has_directory(&self) -> bool {
        self.directory.is_some()
    }

    /// Looks, again and again, for a server that has become the primary unasked.
    pub(super) async fn watch(&self, is_well: impl Fn() -> bool) {
        let Some(directory) = &self.directory else {
            return pending().await;
        };
        loop {
            sleep(CHECK_INTERVAL.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            // A node of a cluster that has lost its slot says so, if it says anything.
            let is_told = matches!(directory, Directory::Cluster { .. }) && is_well();
            // Before the first is found there is nobody to leave it.
            if !is_told && self.found.borrow().is_some() {
                if let Ok(address) = self.ask(directory).await {
                    self.settle(&address);
                }
            }
        }
    }

    fn settle(&self, address: &Address) {
        self.found.send_if_modified(|found| {
            let is_other = found.as_ref() != Some(address);
            if is_other {
                *found = Some(address.clone());
            }
            is_other
        });
    }

    /// How to connect to a server at this address.
    fn at(&self, address: &Address) -> ConnectionInfo {
        let (host, port) = address.clone();
        let address = match self.base.addr() {
            ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.base.clone().set_addr(address)
    }

    async fn ask(&self, directory: &Directory) -> Result<Address, RedisError> {
        let time = self.connect_timeout;
        match directory {
            Directory::Sentinels { servers, primary } => {
                let asked = servers
                    .iter()
                    .map(|it| ask_sentinel(it.clone(), primary.clone(), time));
                Ok(best(asked, time).await?.address)
            }
            Directory::Cluster { key, first, nodes } => {
                let mut asked: Vec<_> = lock(nodes).iter().chain(first).cloned().collect();
                asked.sort();
                asked.dedup();
                fastrand::shuffle(&mut asked);
                let has_tls = matches!(self.base.addr(), ConnectionAddr::TcpTls { .. });
                let asked = asked
                    .iter()
                    .take(ASKED)
                    .map(|it| ask_node(self.at(it), it.0.clone(), key.clone(), has_tls, time));
                let answer = best(asked, time).await?;
                *lock(nodes) = answer.nodes;
                Ok(answer.address)
            }
        }
    }
}

fn lock(nodes: &Mutex<Vec<Address>>) -> MutexGuard<'_, Vec<Address>> {
    nodes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn info(url: &str, options: &RedisOptions) -> Result<ConnectionInfo, ConnectError> {
    tls::is_spoken(url, cfg!(feature = "redis-tls"))?;
    let info = url.into_connection_info().map_err(ConnectError::url)?;
    // Else small commands wait for the answers to earlier ones.
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    tls::with_certificates(info, options)
}

fn address_of(info: &ConnectionInfo) -> Option<Address> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host.clone(), *port))
        }
        _ => None,
    }
}

async fn connect(
    info: &ConnectionInfo,
    connect_timeout: Duration,
    response_timeout: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(connect_timeout))
        .set_response_timeout(Some(response_timeout));
    let client = Client::open(info.clone())?;
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

// ===== asking =====

/// What the best informed of those who are asked say within this time.
async fn best<F>(
    asked: impl Iterator<Item = F>,
    time: Duration,
) -> Result<DiscoveryReply, RedisError>
where
    F: Future<Output = Result<DiscoveryReply, RedisError>> + Send + 'static,
{
    let mut until = Instant::now() + time;
    // With this future, the questions end.
    let mut asking: JoinSet<_> = asked.collect();
    let mut best: Option<DiscoveryReply> = None;
    let mut trouble = None;
    while let Ok(Some(answer)) = timeout_at(until, asking.join_next()).await {
        match answer {
            Ok(Ok(answer)) => {
                until = until.min(Instant::now() + OTHERS);
                best = best
                    .filter(|best| best.epoch >= answer.epoch)
                    .or(Some(answer));
            }
            Ok(Err(error)) => trouble = Some(error),
            // The runtime is being shut down.
            Err(_) => {}
        }
    }
    let nobody = || RedisError::from((ErrorKind::Io, "nobody says which server is the primary"));
    best.ok_or_else(|| trouble.unwrap_or_else(nobody))
}

async fn ask_sentinel(
    sentinel: ConnectionInfo,
    primary: String,
    time: Duration,
) -> Result<DiscoveryReply, RedisError> {
    let mut connection = connect(&sentinel, time, time).await?;
    let mut questions = redis::pipe();
    questions
        .cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(&primary)
        .cmd("SENTINEL")
        .arg("MASTER")
        .arg(&primary);
    let (address, master): (Option<Address>, HashMap<String, String>) =
        questions.query_async(&mut connection).await?;
    let kind = ErrorKind::MasterNameNotFoundBySentinel;
    let unknown = || RedisError::from((kind, "primary is not known by this name"));
    Ok(DiscoveryReply {
        epoch: master
            .get("config-epoch")
            .and_then(|it| it.parse().ok())
            .unwrap_or(0),
        address: address.ok_or_else(unknown)?,
        nodes: Vec::new(),
    })
}

async fn ask_node(
    node: ConnectionInfo,
    host: String,
    key: String,
    has_tls: bool,
    time: Duration,
) -> Result<DiscoveryReply, RedisError> {
    let mut connection = connect(&node, time, time).await?;
    let mut questions = redis::pipe();
    questions
        .cmd("CLUSTER")
        .arg("KEYSLOT")
        .arg(&key)
        .cmd("CLUSTER")
        .arg("NODES");
    let (slot, nodes): (u16, String) = questions.query_async(&mut connection).await?;
    let nodes = cluster::nodes(&nodes, &host, has_tls);
    let owner = nodes.iter().find(|node| node.has(slot));
    let kind = ErrorKind::ClusterConnectionNotFound;
    let nobody = || RedisError::from((kind, "no node of the cluster has the slot"));
    let ClusterNode { epoch, address, .. } = owner.ok_or_else(nobody)?;
    Ok(DiscoveryReply {
        epoch: *epoch,
        address: address.clone(),
        nodes: nodes.iter().map(|node| node.address.clone()).collect(),
    })
}
