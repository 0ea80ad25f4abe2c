//! Nodes that ask to be put on the list of members: those that join, and members that are to be reached elsewhere. The side that is called.
//!
//! What a node says of itself is checked here, who it is was proven by its handshake. Whether the cluster takes it, and the list of members, is somebody else's
//! ([`Admits`]).
//!
//! Called by `service`; the side that calls is `join`.

use std::collections::BTreeMap;

use futures::future::BoxFuture;

use super::handshake::{MEMBERS_MAX, write_member};
use super::refusal::{Reason, Refusal};
use super::sessions::Session;
use crate::cluster::{Incarnation, NAME_BYTES_MAX, NodeName, Standing, Weight, is_name};
use crate::net::Endpoint;
use crate::proto::raft::{JoinRequest, JoinResponse, MemberAddress};

/// Longest address: a host name, a colon and a port.
const ADDRESS_BYTES_MAX: usize = 253 + 6;

/// A node that wants to be a member, or is one: as it proved to be, and as it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub node: NodeName,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Where others reach it, `host:port`.
    pub address: String,
    /// What it is to carry compared with others: 1 to 1000.
    pub weight: u16,
    /// What it fails together with.
    pub zone: Option<String>,
}

/// The cluster with a candidate in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Which list of members this is: see [`revision`](crate::cluster::Formed::revision). Larger than that of the list before, on which the candidate was not.
    pub revision: u64,
    /// All members, the candidate among them, and where they are reached.
    pub members: BTreeMap<NodeName, (Incarnation, String)>,
    /// The number of the candidate's replica in the group that keeps the list.
    pub meta_replica: u64,
}

/// Who puts nodes on the list of members.
///
/// # Contract
///
/// * The candidate has proven its name and its incarnation, and that it knows the secret; what it says of itself is within its limits. No member of the
///   list that this node knows has its name with another incarnation. A newer list, and nodes that were removed, are to be checked here.
/// * It answers once the list is durable in the cluster, here or through another node. A candidate that is a member already is answered the same as before; what else
///   it says of itself is taken over.
/// * [`Reason::NotAdmitted`] and [`Reason::AnotherIncarnation`] end the node that asks with the sentence. [`Reason::NotReady`] and [`Reason::Busy`] make it ask again, here or elsewhere.
/// * Called on a runtime; dropped when the caller leaves or it takes too long. What it began may be done all the same.
pub trait Admits: Send + Sync + 'static {
    /// Puts `candidate` on the list, or says why not.
    fn admit(&self, candidate: Candidate) -> BoxFuture<'static, Result<Admitted, Refusal>>;
}

/// Who is at the other end of `session` and says `request` of itself, if it may be a member as far as this node knows.
pub(super) fn candidate(
    session: Session,
    standing: &Standing,
    request: JoinRequest,
) -> Result<Candidate, Refusal> {
    session.check(standing)?;
    let refuse = |why: String| {
        let message = format!("node {} is not taken in: {why}", session.node);
        Err(Refusal::new(Reason::NotAdmitted, message))
    };
    if let Standing::Formed(ours) = standing
        && ours.members.len() >= MEMBERS_MAX
        && !ours.members.contains_key(&session.node)
    {
        return refuse(format!("the cluster has {MEMBERS_MAX} members, as many as it can have"));
    }
    let JoinRequest { address, weight, zone } = request;
    if address.len() > ADDRESS_BYTES_MAX {
        return refuse(format!(
            "its address has {} bytes, at most {ADDRESS_BYTES_MAX} are allowed; correct kvstore.node.host",
            address.len()
        ));
    }
    let address = match address.parse::<Endpoint>() {
        Ok(endpoint) => endpoint.to_string(),
        Err(why) => {
            return refuse(format!("its address is {address:?}, {why}; correct kvstore.node.host"));
        }
    };
    let most = Weight::MAX.0;
    let Some(weight) = u16::try_from(weight).ok().filter(|weight| (1..=most).contains(weight))
    else {
        return refuse(format!("kvstore.node.weight is {weight}, 1 to {most} are allowed"));
    };
    if !zone.is_empty() && !is_name(&zone) {
        let shown: String = zone.chars().take(NAME_BYTES_MAX).collect();
        return refuse(format!(
            "kvstore.node.zone is {shown:?}; a zone has 1 to {NAME_BYTES_MAX} characters of A-Z a-z 0-9 . _ -"
        ));
    }
    let zone = (!zone.is_empty()).then_some(zone);
    let Session { node, incarnation, .. } = session;
    Ok(Candidate { node, incarnation, address, weight, zone })
}

impl Admitted {
    pub(super) fn into_response(self) -> JoinResponse {
        let members = self.members.into_iter().map(|(name, (incarnation, address))| {
            MemberAddress { member: Some(write_member(&name, incarnation)), address }
        });
        JoinResponse {
            members: members.collect(),
            revision: self.revision,
            meta_replica: self.meta_replica,
        }
    }
}
