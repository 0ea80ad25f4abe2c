//! Replication: log, replicate, commit, apply. openraft decides; this module gives it a log (`log/`, kept in `wal/`), a state machine
//! (`state/`: `machine/` of the crate on a storage engine) and peers (`transport.rs`), and is the only seam between async code and blocking storage.

mod blocking;
mod encoding;
pub mod log;
pub mod message;
pub mod state;
pub mod transport;
pub mod types;
