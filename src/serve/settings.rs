//! What a server is set to.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct ServerSettings {
    pub(super) direct: bool,
    pub(super) header_read_timeout: Duration,
    pub(super) write_deadline: Option<Duration>,
    pub(super) max_concurrent_streams: u32,
    pub(super) http2_keep_alive: Option<Duration>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            direct: true,
            header_read_timeout: Duration::from_secs(75),
            write_deadline: Some(Duration::from_secs(30)),
            max_concurrent_streams: 10_000,
            http2_keep_alive: Some(Duration::from_secs(20)),
        }
    }
}
