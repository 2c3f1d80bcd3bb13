//! The servers of the tests end with them, also when a test's process is killed.

use std::{
    env, fs,
    io::{self, BufRead, BufReader},
    process::{Command, Stdio},
};
use support::nats as nats_server;
use support::redis as redis_server;

use nats_server::NatsServer;
use redis_server::RedisServer;
use rustix::process::{Pid, test_kill_process};
use support::within;
use tokio::time::{Duration, sleep};

const BY_ITSELF: &str = "TOWER_SSE_SERVERS_LEFT_ALONE";

/// What is killed below, with its servers. By itself it does nothing.
#[tokio::test]
async fn a_process_with_servers() {
    if env::var_os(BY_ITSELF).is_none() {
        return;
    }
    let (redis, nats) = (RedisServer::start().await, NatsServer::start().await);
    println!("\nservers: {} {}", redis.id(), nats.id());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn killed_test_leaves_no_server_running() {
    let name = support::own_process::test_name(module_path!(), "a_process_with_servers");
    let mut process = Command::new(env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env(BY_ITSELF, "")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let line = lines.find_map(|line| line.strip_prefix("servers: ").map(str::to_owned));
    let servers: Vec<_> = line.unwrap().split(' ').map(pid).collect();
    // One that nobody has waited for is not there any more.
    let is_zombie = |pid: &Pid| {
        let state = fs::read_to_string(format!("/proc/{pid}/stat"));
        state.is_ok_and(|state| state.contains(") Z "))
    };
    let live = |pid: &&Pid| test_kill_process(**pid).is_ok() && !is_zombie(pid);
    assert_eq!(servers.iter().filter(live).count(), 2);
    process.kill().unwrap();
    process.wait().unwrap();
    let is_its = |entry: io::Result<fs::DirEntry>| {
        let name = entry.unwrap().file_name();
        let id = format!("-{}-", process.id());
        name.to_str()
            .is_some_and(|name| name.starts_with("tower-sse-") && name.contains(&id))
    };
    let has_files = || fs::read_dir(env::temp_dir()).unwrap().any(is_its);
    let gone = async {
        while servers.iter().any(|pid| live(&pid)) || has_files() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    within("the servers to end, and their files to go", gone).await;
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap()).unwrap()
}
