//! The log as a node keeps it: positions, one ring of frames for each topic, cursors into them.
//!
//! Pure: no clock, no tasks, no http.

mod position;
mod ring;
mod window;

pub use position::{Epoch, Position};

pub(crate) use ring::{Entry, Ring};
pub(crate) use window::Window;
