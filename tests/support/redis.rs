//! A Redis server of the test's own, which ends with it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use redis::{FromRedisValue, RedisError, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep};

pub use super::ports::free_port;
use super::watched::Watched;

/// How long a server may take to start, on a machine that is busy.
const START: Duration = Duration::from_secs(60);

const MISSING: &str = "these tests need redis-server (7.0 or later), which was not found: \
                       apt-get install redis-server, or see https://redis.io/docs/latest/get-started/";

static FOLDERS: AtomicUsize = AtomicUsize::new(0);

/// A server on a free port, with a folder of its own. Both are gone when this is dropped.
pub struct RedisServer {
    process: Option<Watched>,
    port: u16,
    folder: PathBuf,
    options: Vec<String>,
    /// The configuration of a sentinel.
    sentinel: Option<String>,
}

impl RedisServer {
    /// Starts a server that forgets everything when it ends.
    pub async fn start() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "no"]).await
    }

    /// Starts a server that has handed each command to the system before it answers, so that it
    /// survives `kill -9`. The default, `everysec`, puts the handing over off for up to two seconds
    /// while the disk is busy with an earlier one.
    pub async fn start_persistent() -> Self {
        let options = ["--save", "", "--appendonly", "yes", "--appendfsync", "no"];
        Self::start_with(&options).await
    }

    pub async fn start_with(options: &[&str]) -> Self {
        let mut server = Self::prepare(options);
        server.restart().await;
        server
    }

    /// A sentinel, with this configuration.
    pub async fn start_sentinel(config: String) -> Self {
        let mut server = Self::prepare(&[]);
        server.sentinel = Some(config);
        server.restart().await;
        server
    }

    /// Has a port and a folder, and does not run yet.
    pub fn prepare(options: &[&str]) -> Self {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("tower-sse-redis-{}-{number}", std::process::id());
        let folder = env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a temporary folder");
        Self {
            process: None,
            port: free_port(),
            folder,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            sentinel: None,
        }
    }

    /// Where it keeps its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// For its next start.
    pub fn add_option(&mut self, name: &str, value: &str) {
        self.options.extend([name.to_owned(), value.to_owned()]);
    }

    /// Starts the server again, on the same port, with what is in its folder.
    pub async fn restart(&mut self) {
        self.kill();
        let until = Instant::now() + START;
        loop {
            let log = fs::File::create(self.folder.join("stdout")).expect("a file");
            let mut command = Command::new("redis-server");
            if let Some(config) = &self.sentinel {
                let file = self.folder.join("sentinel");
                fs::write(&file, config).expect("a file");
                command.arg(file).arg("--sentinel");
            }
            command
                .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
                .args(["--daemonize", "no", "--dir"])
                .arg(&self.folder)
                .args(&self.options)
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(Stdio::null());
            let process = Watched::spawn(&mut command, &self.folder);
            self.process = Some(process.unwrap_or_else(|error| panic!("{MISSING} ({error})")));
            // It ends at once if another process has taken the port meanwhile, which may be a server too.
            let own = format!("process_id:{}\r\n", self.id());
            while !self.has_ended() {
                if let Ok(answer) = self.try_query::<String>(&["PING"]).await {
                    assert_eq!(answer, "PONG");
                    let info = self.try_query::<String>(&["INFO", "server"]).await;
                    if info.is_ok_and(|info| info.contains(&own)) {
                        return;
                    }
                }
                assert!(Instant::now() < until, "{}", self.output());
                sleep(Duration::from_millis(5)).await;
            }
            assert!(Instant::now() < until, "{}", self.output());
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn has_ended(&mut self) -> bool {
        self.process.as_mut().expect("it was started").has_ended()
    }

    fn output(&self) -> String {
        let output = fs::read_to_string(self.folder.join("stdout"));
        format!("redis-server has not started: {output:?}")
    }

    /// Kills the server, as `kill -9` does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops the server in its tracks: it keeps its connections, and answers nothing.
    pub fn freeze(&self) {
        self.process().freeze();
    }

    pub fn thaw(&self) {
        self.process().thaw();
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.process().id()
    }

    fn process(&self) -> &Watched {
        self.process.as_ref().expect("it runs")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// A connection of the test's own.
    pub async fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(START))
            .set_response_timeout(Some(START));
        let client = redis::Client::open(self.url())?;
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    pub async fn try_query<T: FromRedisValue>(&self, command: &[&str]) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        let mut query = redis::cmd(command[0]);
        query.arg(&command[1..]);
        query.query_async(&mut connection).await
    }

    /// Sends a command, in words.
    pub async fn query<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let answer = self.try_query(command).await;
        answer.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// How often the server has been asked for each command.
    pub async fn calls(&self) -> Vec<(String, u64)> {
        let stats: String = self.query(&["INFO", "commandstats"]).await;
        let lines = stats.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let calls = rest.strip_prefix("calls=")?.split(',').next()?;
            Some((name.to_owned(), calls.parse().ok()?))
        });
        lines.collect()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
