//! NATS servers with JetStream, on ports of their own, which end with the test.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio, id},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_nats::jetstream::{self, stream};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tower_sse::backplane::nats::{JetStream, JetStreamOptions};

pub use super::ports::free_port;
use super::watched::Watched;

/// A server with a folder of its own. It is killed when this is dropped.
pub struct NatsServer {
    process: Option<Watched>,
    folder: PathBuf,
    port: u16,
    monitor: u16,
    max_payload: usize,
    /// More of its configuration.
    pub more: String,
}

/// How long a server may take to start: generous, because machines are busy.
const LIMIT: Duration = Duration::from_secs(60);

const MISSING: &str = "nats-server cannot be started: install it, `apt-get install nats-server`";

impl NatsServer {
    pub async fn start() -> Self {
        Self::with_max_payload(1 << 20).await
    }

    /// A server that takes messages of this size.
    pub async fn with_max_payload(max_payload: usize) -> Self {
        let mut server = Self::stopped();
        server.max_payload = max_payload;
        server.restart().await;
        server
    }

    /// One that is not there yet.
    pub fn stopped() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let folder = std::env::temp_dir().join(format!("tower-sse-nats-{}-{count}", id()));
        fs::create_dir_all(&folder).unwrap();
        let [port, monitor] = [free_port(), free_port()];
        Self {
            process: None,
            folder,
            port,
            monitor,
            max_payload: 1 << 20,
            more: String::new(),
        }
    }

    /// Where it keeps its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub async fn log(&self) -> JetStream {
        self.options().connect().await.unwrap()
    }

    pub fn options(&self) -> JetStreamOptions {
        JetStreamOptions::new(self.url())
    }

    /// A client that is none of the crate's.
    pub async fn admin(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(self.url()).await.unwrap())
    }

    /// The stream, as such a client has it.
    pub async fn stream(&self) -> stream::Stream {
        let admin = self.admin().await;
        admin.get_stream(STREAM).await.unwrap()
    }

    /// Starts it, again, on the same port and in the same folder.
    pub async fn restart(&mut self) {
        self.kill();
        let config = self.folder.join("config");
        let text = format!(
            "listen: 127.0.0.1:{}\nhttp: 127.0.0.1:{}\nmax_payload: {}\njetstream {{ store_dir: {:?} }}\n{}\n",
            self.port, self.monitor, self.max_payload, self.folder, self.more
        );
        fs::write(&config, text).unwrap();
        let until = Instant::now() + LIMIT;
        while let Err(said) = self.try_start(&config).await {
            // Somebody has taken a port meanwhile.
            let may_pass = said.contains("address already in use") && Instant::now() < until;
            assert!(may_pass, "nats-server has ended: {said}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts it. An error: what it has said, and ended.
    async fn try_start(&mut self, config: &Path) -> Result<(), String> {
        let log = fs::File::create(self.folder.join("log")).unwrap();
        // Debian has servers where a user's path may not look.
        let programs = ["nats-server", "/usr/sbin/nats-server"];
        let start = |program| {
            let mut command = Command::new(program);
            command
                .arg("-c")
                .arg(config)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log.try_clone().unwrap());
            Watched::spawn(&mut command, &self.folder)
        };
        let process = programs.into_iter().find_map(|program| start(program).ok());
        self.process = Some(process.expect(MISSING));
        let answers = async {
            while self.try_monitor("/healthz").await.is_none() {
                if self.process.as_mut().unwrap().has_ended() {
                    return Err(fs::read_to_string(self.folder.join("log")).unwrap());
                }
                sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        let answers = timeout(LIMIT, answers).await;
        answers.expect("the NATS server answers")
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Loses all that it has stored. It has to be killed first.
    pub fn wipe(&self) {
        fs::remove_dir_all(self.folder.join("jetstream")).unwrap();
    }

    /// Sets aside what it has stored. It has to be killed first.
    pub fn set_aside(&self) {
        copy_all(&self.folder.join("jetstream"), &self.folder.join("aside"));
    }

    /// Has again what was set aside, and nothing else. It has to be killed first.
    pub fn put_back(&self) {
        self.wipe();
        copy_all(&self.folder.join("aside"), &self.folder.join("jetstream"));
    }

    pub fn freeze(&self) {
        self.process.as_ref().unwrap().freeze();
    }

    pub fn thaw(&self) {
        self.process.as_ref().unwrap().thaw();
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// Waits until the server has this number of clients and of consumers.
    pub async fn has_clients_and_consumers(&self, wanted: (u64, u64)) {
        let until = Instant::now() + LIMIT;
        loop {
            let found = self.clients_and_consumers().await;
            if found == wanted {
                return;
            }
            assert!(Instant::now() < until, "{found:?}, not {wanted:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many clients are connected, and how many consumers there are.
    pub async fn clients_and_consumers(&self) -> (u64, u64) {
        let connections = self.try_monitor("/connz").await.unwrap();
        let streams = self.try_monitor("/jsz").await.unwrap();
        let number = |of: &Value| of.as_u64().unwrap();
        (
            number(&connections["num_connections"]),
            number(&streams["consumers"]),
        )
    }

    /// How many clients have connected ever.
    pub async fn connections_ever(&self) -> u64 {
        let figures = self.try_monitor("/varz").await.unwrap();
        figures["total_connections"].as_u64().unwrap()
    }

    async fn try_monitor(&self, path: &str) -> Option<Value> {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.monitor))
            .await
            .ok()?;
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        socket.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ")
            .then(|| serde_json::from_str(body).ok())?
    }
}

/// The name that a log has by default.
pub const STREAM: &str = "tower-sse";

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (
            entry.as_ref().unwrap().path(),
            to.join(entry.unwrap().file_name()),
        );
        if from.is_dir() {
            copy_all(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}
