//! The structure of the crate, its manifest, and its test servers.

mod areas;
mod auto_traits;
mod floors;
mod manifest;
mod servers_end;
