//! Replication: log, replicate, commit, apply. openraft decides; this module gives it a log (`log/`, kept in `wal/`), a state machine
//! (`machine/` of the crate on a storage engine) and peers (`transport.rs`), and is the only seam between async code and blocking storage.

#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the log and the state machine, which come next, use the rest")
)]
mod encoding;
pub mod message;
pub mod peers;
pub mod transport;
pub mod types;
