//! How a node becomes a member of a cluster that exists: it asks the nodes that it was told of (seeds), one after the other, until one says that it is.
//!
//! * Nothing is decided here: the answer comes once the list of members with this node on it is durable in the cluster. Asked again, the answer is the same, so a node
//!   that ends at any point in between just begins anew.
//! * A node that does not fit is told so by the first seed that it reaches, and ends with that.
//! * A member asks in the same way when it is to be reached elsewhere than before, or has forgotten what it was told.
//!
//! The result has to be durable before [`Local::set_formed`], as with `form`.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::dial::{DialError, dial};
use super::handshake::{MEMBERS_MAX, Who, read_member};
use super::local::{Addresses, Local};
use super::refusal::{Reason, Refusal};
use super::service::ADMIT_TIMEOUT;
use crate::cluster::{Formed, NodeName, Standing};
use crate::net::Endpoint;
use crate::proto::raft::{JoinRequest, JoinResponse};

/// Wait between two rounds, at most; at least half of it.
const ROUND_WAIT: Duration = Duration::from_millis(500);

/// Wait for an answer: what the other side takes at most, and its way.
const ANSWER_TIMEOUT: Duration = ADMIT_TIMEOUT.saturating_add(Duration::from_secs(1));

/// What a node tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Where others reach it, `host:port`.
    pub address: String,
    /// What it is to carry compared with others: 1 to 1000.
    pub weight: u16,
    /// What it fails together with.
    pub zone: Option<String>,
}

/// What a node is told that is a member now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The cluster and its members, this node among them.
    pub formed: Formed,
    /// Where they are reached.
    pub addresses: Addresses,
    /// The number of this node's replica in the group that keeps the list of members.
    pub meta_replica: u64,
    /// Who told it.
    pub via: NodeName,
}

/// Asks the other members whose addresses are known, then `seeds`, to put this node on the list of members, again and again until one of them has. Nodes that join know no members yet. Cancelled
/// by dropping.
///
/// # Errors
///
/// What another node said, when this one cannot be a member as it is set up.
pub async fn join(local: &Local, seeds: &[Endpoint], about: &About) -> Result<Joined, Refusal> {
    let mut told = String::new();
    loop {
        let mut waits = Vec::new();
        for endpoint in endpoints(local, seeds) {
            match ask(local, &endpoint, about).await {
                Ok(joined) => return Ok(joined),
                Err(DialError::Refused(refusal)) if ends(local, &refusal) => return Err(refusal),
                Err(error) => waits.push(format!("{endpoint}: {error}")),
            }
        }
        let waits = waits.join("; ");
        if waits != told {
            if matches!(local.standing(), Standing::Formed(_)) {
                tracing::info!("no member knows yet where this one is reached now: {waits}");
            } else {
                tracing::info!("this node has not joined the cluster yet: {waits}");
            }
            told = waits;
        }
        sleep(ROUND_WAIT.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}

/// Whom to ask, each once.
fn endpoints(local: &Local, seeds: &[Endpoint]) -> Vec<Endpoint> {
    let addresses = local.addresses();
    let others = addresses.iter().filter(|(node, _)| **node != local.who.node);
    let mut endpoints = Vec::new();
    for endpoint in others.map(|(_, endpoint)| endpoint).chain(seeds) {
        if !endpoints.contains(endpoint) {
            endpoints.push(endpoint.clone());
        }
    }
    endpoints
}

/// Whether there is no use in asking anybody else. A seed may lead a member to another cluster: that is the seed's fault.
fn ends(local: &Local, refusal: &Refusal) -> bool {
    let strays =
        refusal.reason == Reason::AnotherCluster && matches!(local.standing(), Standing::Formed(_));
    refusal.reason.is_final() && !strays
}

/// Asks whoever is at `endpoint`.
async fn ask(local: &Local, endpoint: &Endpoint, about: &About) -> Result<Joined, DialError> {
    let dialled = dial(local, None, endpoint).await?;
    let request = dialled.request(JoinRequest {
        address: about.address.clone(),
        weight: about.weight.into(),
        zone: about.zone.clone().unwrap_or_default(),
    });
    let (mut client, peer) = (dialled.client, dialled.peer);
    let answer = timeout(ANSWER_TIMEOUT, client.join(request)).await.map_err(|_| {
        DialError::Unreachable(format!("node {} did not answer in {ANSWER_TIMEOUT:?}", peer.node))
    })?;
    let malformed = || Refusal::malformed("the list of members");
    let cluster = peer.formed.ok_or_else(malformed)?.cluster;
    let joined = read(&local.who, cluster, peer.node, answer?.into_inner());
    Ok(joined.ok_or_else(malformed)?)
}

/// What `via` says to `who`; `None` when that is no list with `who` on it.
fn read(who: &Who, cluster: Uuid, via: NodeName, response: JoinResponse) -> Option<Joined> {
    let JoinResponse { members, revision, meta_replica } = response;
    if members.len() > MEMBERS_MAX {
        return None;
    }
    let mut formed = Formed { cluster, revision, members: [].into() };
    let mut addresses = Addresses::new();
    for one in members {
        let (name, incarnation) = read_member(&one.member?)?;
        addresses.insert(name.clone(), one.address.parse().ok()?);
        formed.members.insert(name, incarnation);
    }
    (formed.members.get(&who.node) == Some(&who.incarnation)).then_some(Joined {
        formed,
        addresses,
        meta_replica,
        via,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Incarnation;
    use crate::proto::raft::{Member, MemberAddress};
    use crate::raft::peers::handshake::write_member;

    fn incarnation(number: u128) -> Incarnation {
        Incarnation(Uuid::from_u128(number))
    }

    fn one(name: &str, number: u128, address: &str) -> MemberAddress {
        let member = write_member(&name.into(), incarnation(number));
        MemberAddress { member: Some(member), address: address.to_owned() }
    }

    #[test]
    fn a_list_without_this_node_or_with_unknown_places_is_none() {
        let who = Who { node: "n2".into(), incarnation: incarnation(2), shards: 4 };
        let read = |members| {
            let response = JoinResponse { members, revision: 5, meta_replica: 9 };
            read(&who, Uuid::nil(), "n1".into(), response)
        };
        let (first, own) = (one("n1", 1, "a:1"), one("n2", 2, "[::1]:2"));
        let joined = read(vec![first.clone(), own.clone()]).expect("a list");
        assert_eq!((joined.formed.revision, joined.meta_replica), (5, 9));
        assert_eq!(joined.addresses[&who.node].to_string(), "[::1]:2");
        let member = |node: &str, bytes: &'static [u8]| Member {
            node: node.to_owned(),
            incarnation: bytes.into(),
        };
        for members in [
            vec![],
            vec![first.clone()],
            vec![first.clone(), one("n2", 3, "a:2")],
            vec![one("n1", 1, ""), own.clone()],
            vec![MemberAddress { member: None, ..first.clone() }, own.clone()],
            vec![MemberAddress { member: Some(member("n1", b"short")), ..first }, own.clone()],
            vec![one("n 1", 1, "a:1"), own.clone()],
            vec![own; MEMBERS_MAX + 1],
        ] {
            assert_eq!(read(members.clone()), None, "{members:?}");
        }
    }
}
