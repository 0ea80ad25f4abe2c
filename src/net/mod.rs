//! Connections to other processes: the only place of this crate that opens any.
//!
//! Callers: `cli` (a client of the public API), `bench` (load), `raft/peers` (the nodes of a cluster).

mod channel;
mod client;
mod endpoint;

pub use self::channel::{KeepAlive, open};
pub use self::client::{Client, Failure, Scan};
pub use self::endpoint::{Endpoint, connect};
