//! Replication: log, replicate, commit, apply. openraft decides; this module gives it a log (`log/`, kept in `wal/`), a state machine
//! (`state/`: `machine/` of the crate on a storage engine) and peers (`transport.rs`), and is the only seam between async code and blocking storage.

mod blocking;
mod commits;
mod controller;
mod encoding;
mod files;
mod group;
pub mod log;
pub mod message;
mod meta;
mod network;
mod node;
mod pace;
pub mod peers;
mod place;
mod planted;
mod progress;
mod proposals;
mod reads;
mod replicas;
mod room;
#[cfg(test)]
pub(crate) mod sim;
pub mod state;
pub mod transport;
pub mod types;

pub use self::group::{Group, Settings, Status};
pub use self::meta::Meta;
pub use self::node::{Inbound, LogLimits, Node, Origin, Parts};
pub use self::place::Place;
pub use self::progress::{Copied, Progress};
pub use self::proposals::Budget;
pub use self::room::Room;
pub use self::transport::Answers;
