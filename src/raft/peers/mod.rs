//! The nodes of a cluster over gRPC: who may speak to whom, and how messages and files travel. The other side of `raft/transport.rs`.
//!
//! | file | what |
//! |---|---|
//! | `handshake` | what both sides prove, and what they make of it: pure |
//! | `refusal` | why a node does not speak to another |
//! | `local` | this node: who it is, its cluster, where the others are |
//! | `dial`, `link`, `transport` | the side that sends: [`GrpcTransport`] |
//! | `sessions`, `exchange`, `service` | the side that is called: [`PeerService`] |
//! | `files/` | files from one node to another |
//! | `form` | how the members of a cluster that is to be meet: [`form()`] |
//! | `join` | how a node becomes a member of a cluster that exists: [`join()`] |
//! | `admit` | the side that is asked for that: [`Admits`] |
//! | `batch` | frames that travel together |
//!
//! # A stream, step by step
//!
//! A connection for each node and lane; a handshake over it, which ends with a token; a stream with the token in its metadata. On the stream both sides know
//! who the other is, so messages need no proof. They are opaque here (`raft/message.rs`) and checked once more by the receiver: each names cluster, group,
//! sender and receiver.
//!
//! # Wiring
//!
//! [`Local`] first, from the data directory's identity and the configuration; [`PeerService`] on the gRPC port; then [`form()`] or [`join()`], if the node
//! belongs to no cluster yet, and the result on disk; then [`Local::set_formed`], the groups with a [`GrpcTransport`], [`PeerService::receive_with`] and
//! [`PeerService::admit_with`]. Whenever the list of members changes: disk, then [`Local::set_formed`] and [`Local::set_addresses`].

mod admit;
mod batch;
mod dial;
mod exchange;
mod files;
mod form;
mod handshake;
mod join;
mod link;
mod local;
mod refusal;
mod service;
mod sessions;
mod transport;

pub use self::admit::{Admits, Admitted, Candidate};
pub use self::form::form;
pub use self::handshake::{Secret, Who};
pub use self::join::{About, Joined, join};
pub use self::local::{Addresses, Local};
pub use self::refusal::{Reason, Refusal};
pub use self::service::{PeerServer, PeerService};
pub use self::transport::{GrpcTransport, Sent};
use super::transport::IN_FLIGHT_BYTES_MAX;

/// Largest message on the wire: the largest one that may be in flight, and what is around it.
const MESSAGE_BYTES_MAX: usize = IN_FLIGHT_BYTES_MAX + (1 << 20);

/// Largest message of a handshake, in which each member of a cluster takes less than a hundred bytes.
const HANDSHAKE_BYTES_MAX: usize = 128 << 10;

/// Where a stream carries its token.
const TOKEN_HEADER: &str = "kvstore-peer-token-bin";

#[cfg(test)]
mod tests;
