//! Servers that end with the test, also when that is killed.

use std::{
    io,
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// A server, and what kills it when this process is gone.
pub struct Watched {
    server: Child,
    /// Waits for the end of a pipe, of which this process has the other one.
    watchdog: Child,
}

impl Watched {
    /// Starts a server that has its files in this folder: that goes with it where the test is killed.
    pub fn spawn(server: &mut Command, folder: &Path) -> io::Result<Self> {
        let mut server = server.spawn()?;
        let watchdog = Command::new("sh")
            .args(["-c", "read _; kill -9 \"$0\"; sleep 0.2; rm -rf \"$1\""])
            .arg(server.id().to_string())
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .inspect_err(|_| drop(server.kill()))?;
        Ok(Self { server, watchdog })
    }

    pub fn has_ended(&mut self) -> bool {
        self.server.try_wait().expect("a child").is_some()
    }

    pub fn id(&self) -> u32 {
        self.server.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.server)
    }

    /// Stops it in its tracks: it keeps its connections, and answers nothing.
    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).expect("a signal");
        // Its threads stop one after the other.
        waitpid(Some(self.pid()), WaitOptions::UNTRACED).expect("a child");
    }

    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).expect("a signal");
    }
}

/// Kills it, as `kill -9` does.
impl Drop for Watched {
    fn drop(&mut self) {
        // First: later the server's number may be another process's.
        for process in [&mut self.watchdog, &mut self.server] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
