//! kvstore: a distributed, persistent key/value store for JSON documents, gRPC first.
//!
//! The layers, from the outside in: `api` (gRPC and REST), `router` (key to shard), `shard` (one slice of the keys),
//! `storage` (engines). ARCHITECTURE.md tells a Put and a Get through them.

pub mod api;
pub mod backup;
pub mod bench;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod config;
pub mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod machine;
pub mod net;
pub mod proto;
pub mod raft;
pub mod router;
pub mod server;
pub mod shard;
pub mod storage;
pub mod telemetry;
pub mod ticket;
pub mod types;
pub mod util;
pub mod wal;
