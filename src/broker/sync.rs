//! What `handshake` is written against: std's types here, loom's in the models of it.

pub(super) use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
