//! Whole clusters in one thread, on a virtual clock, from a seed: simulated disks that lose power, a simulated network that loses and delays messages,
//! clocks that are wrong, clients whose histories are judged.
//!
//! The layers above put themselves on these nodes to test what concerns several of them (`router/tests`).

mod access;
mod clients;
mod cluster;
mod invariants;
mod moves;
mod nemesis;
mod network;
mod operators;
mod places;
mod record;
mod run;
mod stories;
mod tests;

pub(crate) use self::cluster::{Cluster, Shape};
pub(crate) use self::network::{NodeIndex, Weather};
pub(crate) use self::run::simulate;
pub(crate) use self::stories::{PATIENCE, shape, wait};
use crate::error::{Error, Reason};

fn io_error(error: std::io::Error) -> Error {
    Error::new(Reason::Internal, error.to_string())
}
