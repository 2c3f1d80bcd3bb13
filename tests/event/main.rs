//! Events on the wire, and the decoder.

mod data;
mod decoder;
mod fields;
mod properties;
