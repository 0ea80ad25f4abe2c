//! This node among its peers: who it is, how far it is with its cluster, where the others are. Shared by both directions.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::handshake::{Secret, Who};
use super::refusal::{Reason, Refusal};
use crate::cluster::{Formed, NodeName, Standing};
use crate::net::Endpoint;

/// Where nodes are reached.
pub type Addresses = BTreeMap<NodeName, Endpoint>;

/// This node among its peers.
#[derive(Debug)]
pub struct Local {
    pub(super) who: Who,
    pub(super) secret: Secret,
    standing: watch::Sender<Standing>,
    addresses: watch::Sender<Arc<Addresses>>,
    expelled: watch::Sender<bool>,
}

impl Local {
    /// The node `who`, whose peers are at `addresses`.
    pub fn new(who: Who, secret: Secret, standing: Standing, addresses: Addresses) -> Arc<Self> {
        Arc::new(Self {
            who,
            secret,
            standing: watch::Sender::new(standing),
            addresses: watch::Sender::new(Arc::new(addresses)),
            expelled: watch::Sender::new(false),
        })
    }

    /// Who this node is.
    pub fn who(&self) -> &Who {
        &self.who
    }

    /// How far it is with its cluster.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Its cluster exists, or has other members now: from here on its members are told so, and may open streams. Call it when that is durable.
    pub fn set_formed(&self, formed: Formed) {
        self.standing.send_replace(Standing::Formed(formed));
    }

    /// Nodes are reached elsewhere now. Connections to an address that changed are made again.
    pub fn set_addresses(&self, addresses: Addresses) {
        self.addresses.send_replace(Arc::new(addresses));
    }

    /// Where nodes are reached.
    pub fn addresses(&self) -> Arc<Addresses> {
        Arc::clone(&self.addresses.borrow())
    }

    /// Whether a member has said that this node was removed while it was away. It stays so: a removed node never comes back.
    pub fn is_expelled(&self) -> bool {
        *self.expelled.borrow()
    }

    /// Returns when [`Self::is_expelled`].
    pub async fn expelled(&self) {
        // The sender is in `self`.
        let _ = self.expelled.subscribe().wait_for(|expelled| *expelled).await;
    }

    /// Takes note of what a peer refused. A peer whose list of members is older than the one here lets this node in, so one that does not know a member as a
    /// member has a newer list, without it.
    pub(super) fn heed(&self, refusal: &Refusal) {
        let removed = matches!(refusal.reason, Reason::NotAMember | Reason::AnotherIncarnation);
        if removed && matches!(&*self.standing.borrow(), Standing::Formed(_)) {
            self.expelled.send_if_modified(|expelled| !std::mem::replace(expelled, true));
        }
    }

    /// Where `node` is reached.
    pub(super) fn address(&self, node: &NodeName) -> Option<Endpoint> {
        self.addresses.borrow().get(node).cloned()
    }

    /// Returns when `node` is reached elsewhere than at `endpoint`.
    pub(super) async fn moved(&self, node: &NodeName, endpoint: &Endpoint) {
        let mut addresses = self.addresses.subscribe();
        // The sender is in `self`.
        let _ = addresses.wait_for(|now| now.get(node) != Some(endpoint)).await;
    }

    pub(super) fn watch_standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }
}
