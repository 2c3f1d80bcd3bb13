//! The structure of the crate, its names, its manifest, and its test servers.

mod areas;
mod auto_traits;
mod floors;
mod manifest;
mod names;
mod servers_end;
