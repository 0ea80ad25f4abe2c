//! How a cluster comes to be: its members meet, one of them decides.
//!
//! Every node is started with the same list of members, in any order. In rounds it shakes hands with all others.
//!
//! * **The member whose name sorts first decides**: when all others answered in one round and wait as well, the cluster is those data directories.
//! * The others take over what a node says whose cluster is formed. So there is one decision, and no two nodes can come to different ones.
//! * A cluster exists only after all its members have met once. From then on any of them may be down.
//! * A node that finds its name taken by another data directory, or another list of members, ends with what it was told.
//!
//! The result has to be durable before [`Local::set_formed`] tells others: what somebody took over must not be forgotten. A node that ends before that, and
//! the one that decides, too, just begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::sleep;

use super::dial::{DialError, dial};
use super::handshake::{Claim, Peer, check};
use super::local::Local;
use super::refusal::{Reason, Refusal};
use crate::cluster::{Formed, NodeName, Standing};

/// Wait between two rounds, at most; at least half of it.
const ROUND_WAIT: Duration = Duration::from_millis(300);

/// Meets the other members until the cluster is formed, however long that takes. Cancelled by dropping.
///
/// # Errors
///
/// What another node said, when this one cannot become a member as it is set up.
pub async fn form(local: &Local) -> Result<Formed, Refusal> {
    let members = match local.standing() {
        Standing::Forming(members) => members,
        Standing::Formed(formed) => return Ok(formed),
        Standing::Joining => {
            let message = format!("node {} joins a cluster and founds none", local.who.node);
            return Err(Refusal::new(Reason::NotReady, message));
        }
    };
    let mut told = String::new();
    loop {
        let round = meet(local, &members).await;
        if let Some(formed) = conclude(local, &members, &round)? {
            return Ok(formed);
        }
        let waits = waits_for(&round);
        if waits != told {
            tracing::info!("the cluster is not formed yet: {waits}");
            told = waits;
        }
        sleep(ROUND_WAIT.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}

/// What each other member answered.
type Round = BTreeMap<NodeName, Result<Peer, DialError>>;

async fn meet(local: &Local, members: &BTreeSet<NodeName>) -> Round {
    let others = members.iter().filter(|member| **member != local.who.node);
    join_all(others.map(async |node| {
        let answer = match local.address(node) {
            Some(endpoint) => dial(local, Some(node), &endpoint).await.map(|dialled| dialled.peer),
            None => Err(DialError::Unreachable("its address is not known".to_owned())),
        };
        (node.clone(), answer)
    }))
    .await
    .into_iter()
    .collect()
}

/// The cluster, if the round says which.
fn conclude(
    local: &Local,
    members: &BTreeSet<NodeName>,
    round: &Round,
) -> Result<Option<Formed>, Refusal> {
    let mut met = BTreeMap::from([(local.who.node.clone(), local.who.incarnation)]);
    let mut found: Option<(&NodeName, &Formed)> = None;
    for (node, answer) in round {
        match answer {
            Err(DialError::Refused(refusal)) if refusal.reason.is_final() => {
                return Err(refusal.clone());
            }
            Err(_) => {}
            Ok(Peer { formed: None, incarnation, .. }) => {
                met.insert(node.clone(), *incarnation);
            }
            Ok(Peer { formed: Some(formed), .. }) => {
                check(formed, &local.who.node, local.who.incarnation, Claim::Founder)?;
                if let Some((other, first)) = found
                    && first.cluster != formed.cluster
                {
                    return Err(Refusal::new(
                        Reason::AnotherCluster,
                        format!(
                            "node {other} belongs to cluster {}, node {node} to cluster {}; correct kvstore.cluster.members",
                            first.cluster, formed.cluster
                        ),
                    ));
                }
                found = Some((node, formed));
            }
        }
    }
    if let Some((_, formed)) = found {
        return Ok(Some(formed.clone()));
    }
    let decides = members.first() == Some(&local.who.node);
    let all_met = met.len() == members.len();
    Ok((decides && all_met).then(|| Formed::new(met, local.who.shards)))
}

/// Who keeps the cluster from being formed, and why.
fn waits_for(round: &Round) -> String {
    let missing: Vec<String> = round
        .iter()
        .filter_map(|(node, answer)| Some(format!("node {node}: {}", answer.as_ref().err()?)))
        .collect();
    if missing.is_empty() {
        return "all members are there; the first one by name decides".to_owned();
    }
    missing.join("; ")
}
