//! What the options set of a stream, for the log that uses it.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct JetStreamSettings {
    pub(super) stream: String,
    pub(super) subject: Option<String>,
    pub(super) is_in_memory: bool,
    pub(super) replicas: usize,
    pub(super) window: usize,
    pub(super) max_bytes: u64,
    pub(super) max_record: usize,
    pub(super) append_timeout: Duration,
}

impl Default for JetStreamSettings {
    fn default() -> Self {
        Self {
            stream: "tower-sse".to_owned(),
            subject: None,
            is_in_memory: false,
            replicas: 1,
            window: 1 << 16,
            max_bytes: 64 << 20,
            max_record: 1 << 20,
            append_timeout: Duration::from_secs(5),
        }
    }
}

impl JetStreamSettings {
    pub(super) fn subject(&self) -> &str {
        self.subject.as_ref().unwrap_or(&self.stream)
    }
}
