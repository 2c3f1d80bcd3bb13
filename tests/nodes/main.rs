//! Several nodes on one log, with both engines.

mod rolling;
mod traced;
