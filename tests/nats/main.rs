//! Logs in JetStream, on real servers.

mod appends;
mod cluster;
mod contract;
mod faults;
mod garbage;
mod secured;
mod stream_faults;
