//! Logs in Redis Streams, on real servers.

mod cluster;
mod contract;
mod faults;
mod garbage;
mod losses;
mod sentinel;
mod tls;
