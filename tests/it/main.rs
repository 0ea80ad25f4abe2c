//! The public surface, end to end: real connections to a node in this process, or to the built program.
//!
//! `tests/README.md` maps each promise to its test.

mod bad_input;
mod batch;
mod bench;
mod cli;
mod client;
mod engine;
mod metrics;
mod node;
mod process;
mod session;
mod storage;
mod streams;
mod transport;
