//! Connections to other processes: the only place of this crate that opens any.
//!
//! Callers: `cli` (a client of the public API), `bench` (load), later the peers of a cluster.

mod client;
mod endpoint;

pub use self::client::{Client, Failure, Scan};
pub use self::endpoint::{Endpoint, connect};
