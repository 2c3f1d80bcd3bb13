//! A server in a process of its own, and how it is asked: a line in, a line out. So neither its
//! files nor its tasks have anything of the asking in them.

#![allow(dead_code)] // Each bench uses its part.

use std::{
    env, fs,
    future::Future,
    io::Write,
    process::Stdio,
    str::FromStr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{TcpListener, TcpSocket},
    process::{Child, ChildStdin, ChildStdout, Command},
    runtime::{Builder, Handle},
    sync::mpsc,
};

/// The name of the variable that makes a server of this program.
const ROLE: &str = "BENCH_SERVER";

/// Which part's server this process is to be, if it is one.
pub(crate) fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// A server that runs. It ends with this, and with the bench, whatever ends that.
pub(crate) struct Process {
    /// Killed when it is dropped.
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts a part's server. Gives the ports on which it listens, too.
    pub(crate) async fn start(part: &str) -> (Self, Vec<u16>) {
        let mut child = Command::new(env::current_exe().expect("the bench's own path"))
            .env(ROLE, part)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a server process");
        let input = child.stdin.take().expect("the server's input");
        let output = child.stdout.take().expect("the server's output");
        let mut process = Self {
            _child: child,
            input,
            output: BufReader::new(output).lines(),
        };
        let ports = process.answer().await;
        (process, ports)
    }

    /// Asks for something, and gives the numbers of the answer.
    pub(crate) async fn ask<T: FromStr>(&mut self, question: &str) -> Vec<T> {
        let line = format!("{question}\n");
        let sent = self.input.write_all(line.as_bytes()).await;
        sent.expect("a server that listens");
        self.answer().await
    }

    async fn answer<T: FromStr>(&mut self) -> Vec<T> {
        let line = self.output.next_line().await.expect("an answer");
        let line = line.expect("a server that runs");
        let numbers = line.split_whitespace().map(str::parse);
        numbers
            .collect::<Result<_, _>>()
            .unwrap_or_else(|_| panic!("not numbers: {line}"))
    }
}

/// What a server process does.
pub(crate) trait Serves: Sized {
    /// The answer to a question: numbers, with spaces between them.
    fn answer(&self, question: &str) -> impl Future<Output = String>;
}

/// Is the server that this function starts, until the bench has gone.
pub(crate) fn serve<S, F>(start: impl FnOnce() -> F)
where
    S: Serves,
    F: Future<Output = (S, Vec<u16>)>,
{
    let runtime = Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (questions, mut asked) = mpsc::channel(1);
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                let _ = questions.blocking_send(line);
            }
            std::process::exit(0);
        });
        let (server, ports) = start().await;
        say(&joined(ports));
        while let Some(question) = asked.recv().await {
            say(&server.answer(&question).await);
        }
    });
}

fn say(answer: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "{answer}").expect("a reader");
    output.flush().expect("a reader");
}

pub(crate) fn joined<T: ToString>(numbers: impl IntoIterator<Item = T>) -> String {
    let numbers: Vec<_> = numbers.into_iter().map(|it| it.to_string()).collect();
    numbers.join(" ")
}

/// A listener with a long queue, whose sockets hold this much on their way out; the system's own
/// choice without it.
pub(crate) fn listen(send_buffer: Option<u32>) -> (TcpListener, u16) {
    let socket = TcpSocket::new_v4().expect("a socket");
    if let Some(size) = send_buffer {
        // Sockets that are accepted have it from the one that listens.
        socket.set_send_buffer_size(size).expect("a size");
    }
    socket
        .bind(([127, 0, 0, 1], 0).into())
        .expect("a free port");
    let listener = socket.listen(4096).expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

/// What this process has in memory, in bytes.
pub(crate) fn resident() -> u64 {
    // `/proc/self/status` lags behind by some pages a thread.
    let sizes = fs::read_to_string("/proc/self/smaps_rollup").expect("Linux");
    let line = sizes.lines().find_map(|line| line.strip_prefix("Rss:"));
    let size = line.and_then(|line| line.split_whitespace().next());
    size.and_then(|size| size.parse::<u64>().ok())
        .expect("a size in KiB")
        * 1024
}

/// How many files this process has open.
pub(crate) fn open_files() -> usize {
    // One of them is what lists them.
    fs::read_dir("/proc/self/fd").expect("Linux").count() - 1
}

/// How many tasks this runtime has.
pub(crate) fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// The processor time of this process: user and system.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Asks again and again, until the answer is as wanted or the time is up. Gives the last answer.
pub(crate) async fn settled<T>(
    time: Duration,
    mut ask: impl AsyncFnMut() -> T,
    is_wanted: impl Fn(&T) -> bool,
) -> T {
    let start = Instant::now();
    loop {
        let answer = ask().await;
        if is_wanted(&answer) || start.elapsed() > time {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
