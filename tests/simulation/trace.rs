//! The trace of a world, line by line.

use std::{collections::VecDeque, sync::Mutex};

use tokio::time::Instant;

/// The number of lines that are kept unless all are wanted.
pub(crate) const KEPT: usize = 60;

pub(crate) struct Trace {
    start: Instant,
    keeps_all: bool,
    lines: Mutex<VecDeque<String>>,
}

impl Trace {
    pub(crate) fn new(keeps_all: bool) -> Self {
        Self {
            start: Instant::now(),
            keeps_all,
            lines: Mutex::default(),
        }
    }

    pub(crate) fn note(&self, line: impl AsRef<str>) {
        let time = self.start.elapsed().as_millis();
        let mut lines = self.lines.lock().unwrap();
        if !self.keeps_all && lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(format!("{time:>7} ms  {}", line.as_ref()));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().iter().cloned().collect()
    }
}
