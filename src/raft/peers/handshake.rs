//! The handshake: what each side says and proves, and what the other makes of it. Pure: messages in, messages or a [`Refusal`] out.
//!
//! ```text
//! caller                                            callee
//!   hello: who, to whom, cluster, 32 random bytes ->
//!                                                 <- challenge: 32 random bytes
//!   proof: HMAC(secret, "caller", hello, challenge) ->
//!                                                 <- welcome: who, cluster, members, token,
//!                                                    HMAC(secret, "callee", hello, challenge, welcome)
//! ```
//!
//! * Nobody is told anything, not even who is a member, before it has proven that it knows the secret.
//! * Both proofs are over random bytes of both sides, so that none serves twice, and begin with the side, so that none can be sent back.
//! * Proofs are compared in constant time. Without a secret the same is done with an empty one.
//! * The secret keeps strangers out. Who can read or change what travels between the nodes needs no proof: against those, encrypt the network.
//!
//! # What is proven
//!
//! HMAC-SHA256 of: `kvstore peer 1 caller` or `kvstore peer 1 callee`; of hello: version, node, incarnation, to, nonce, cluster, number of members,
//! the members, shards; nonce of the challenge; for the callee, of welcome: node, incarnation, cluster, number of members, name and incarnation of
//! each, token, age. Texts and bytes are slices, numbers varints (`util/coding`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use uuid::Uuid;

use super::refusal::{Reason, Refusal};
use crate::cluster::{Formed, Incarnation, NodeName, Standing, list};
use crate::proto::raft::{Challenge, Hello, Member, Proof, Welcome};
use crate::util::coding::{put_slice, put_varint};

const VERSION: u32 = 1;

/// Length of nonces and tokens.
const RANDOM_BYTES: usize = 32;

/// Most members that a hello may name.
const MEMBERS_MAX: usize = 1_024;

/// Longest name in a hello; what the configuration allows as `kvstore.node.id`.
const NAME_BYTES_MAX: usize = 64;

const CALLER: &[u8] = b"kvstore peer 1 caller";
const CALLEE: &[u8] = b"kvstore peer 1 callee";

/// Who a node is. Fixed for as long as it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its name.
    pub node: NodeName,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Number of shards of its cluster.
    pub shards: u32,
}

/// What all nodes of a cluster know, and nobody else. Shown nowhere.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// `text`; empty means that there is none.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn mac(&self, side: &[u8], hello: &Hello, challenge: &Challenge) -> Hmac<Sha256> {
        let mut said = side.to_vec();
        put_varint(&mut said, hello.version.into());
        for part in [hello.node.as_bytes(), &hello.incarnation, hello.to.as_bytes(), &hello.nonce] {
            put_slice(&mut said, part);
        }
        put_slice(&mut said, &hello.cluster);
        put_varint(&mut said, hello.members.len() as u64);
        for member in &hello.members {
            put_slice(&mut said, member.as_bytes());
        }
        put_varint(&mut said, hello.shards.into());
        put_slice(&mut said, &challenge.nonce);
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("a key may have any length");
        mac.update(&said);
        mac
    }

    fn caller(&self, hello: &Hello, challenge: &Challenge) -> Hmac<Sha256> {
        self.mac(CALLER, hello, challenge)
    }

    fn callee(&self, hello: &Hello, challenge: &Challenge, welcome: &Welcome) -> Hmac<Sha256> {
        let mut said = Vec::new();
        for part in [welcome.node.as_bytes(), &welcome.incarnation, &welcome.cluster] {
            put_slice(&mut said, part);
        }
        put_varint(&mut said, welcome.members.len() as u64);
        for member in &welcome.members {
            put_slice(&mut said, member.node.as_bytes());
            put_slice(&mut said, &member.incarnation);
        }
        put_slice(&mut said, &welcome.token);
        put_varint(&mut said, welcome.stream_age_ms);
        let mut mac = self.mac(CALLEE, hello, challenge);
        mac.update(&said);
        mac
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "Secret(none)" } else { "Secret(******)" })
    }
}

/// The caller's side of one handshake.
pub(super) struct Calling {
    hello: Hello,
}

/// Who was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) incarnation: Incarnation,
    /// Its cluster, once that is formed.
    pub(super) formed: Option<Formed>,
    /// Opens one stream.
    pub(super) token: Bytes,
    /// How long the stream may last.
    pub(super) stream_age: Option<Duration>,
}

impl Calling {
    /// `who`, in `standing`, calls the node `to`.
    pub(super) fn new(who: &Who, standing: &Standing, to: &NodeName) -> Self {
        let (cluster, members) = match standing {
            Standing::Forming(members) => {
                (Bytes::new(), members.iter().map(|m| m.0.clone()).collect())
            }
            Standing::Formed(formed) => (uuid_bytes(formed.cluster), Vec::new()),
        };
        let hello = Hello {
            version: VERSION,
            node: who.node.0.clone(),
            incarnation: uuid_bytes(who.incarnation.0),
            to: to.0.clone(),
            nonce: random_bytes(),
            cluster,
            members,
            shards: who.shards,
        };
        Self { hello }
    }

    pub(super) fn hello(&self) -> Hello {
        self.hello.clone()
    }

    /// The second step.
    pub(super) fn prove(&self, secret: &Secret, challenge: &Challenge) -> Result<Proof, Refusal> {
        if challenge.nonce.len() != RANDOM_BYTES {
            return Err(Refusal::malformed("the challenge"));
        }
        let proof = secret.caller(&self.hello, challenge).finalize().into_bytes();
        Ok(Proof { proof: Bytes::copy_from_slice(&proof) })
    }

    /// Who was reached, if it proved that it is of this cluster and the node that was meant.
    pub(super) fn check(
        &self,
        secret: &Secret,
        standing: &Standing,
        challenge: &Challenge,
        welcome: &Welcome,
    ) -> Result<Peer, Refusal> {
        let mac = secret.callee(&self.hello, challenge, welcome);
        mac.verify_slice(&welcome.proof).map_err(|_| secrets_differ())?;
        let node = NodeName(welcome.node.clone());
        if welcome.node != self.hello.to {
            return Err(another_node(&node, &NodeName(self.hello.to.clone())));
        }
        let malformed = || Refusal::malformed("the welcome");
        let incarnation = Incarnation(read_uuid(&welcome.incarnation).ok_or_else(malformed)?);
        let formed = read_formed(welcome).ok_or_else(malformed)?;
        if let Standing::Formed(ours) = standing {
            let Some(theirs) = &formed else { return Err(not_formed(&node)) };
            if theirs.cluster != ours.cluster {
                let this = NodeName(self.hello.node.clone());
                return Err(another_cluster(&node, theirs.cluster, &this, ours.cluster));
            }
            check_member(&ours.members, &node, incarnation)?;
        }
        let stream_age = Some(Duration::from_millis(welcome.stream_age_ms));
        Ok(Peer {
            incarnation,
            formed,
            token: welcome.token.clone(),
            stream_age: stream_age.filter(|age| !age.is_zero()),
        })
    }
}

/// The callee's side of one handshake.
#[derive(Debug)]
pub(super) struct Called {
    hello: Hello,
    challenge: Challenge,
    pub(super) node: NodeName,
    pub(super) incarnation: Incarnation,
    claims: Claims,
}

/// What a caller says of its cluster.
#[derive(Debug)]
enum Claims {
    Forming(BTreeSet<NodeName>),
    Formed(Uuid),
}

impl Called {
    /// Reads the first step.
    pub(super) fn new(hello: Hello) -> Result<Self, Refusal> {
        let malformed = || Refusal::malformed("the hello");
        if hello.version != VERSION || hello.nonce.len() != RANDOM_BYTES {
            return Err(malformed());
        }
        let mut names = hello.members.iter().chain([&hello.node, &hello.to]);
        if hello.members.len() > MEMBERS_MAX || names.any(|name| name.len() > NAME_BYTES_MAX) {
            return Err(malformed());
        }
        drop(names);
        let node = NodeName(hello.node.clone());
        let incarnation = Incarnation(read_uuid(&hello.incarnation).ok_or_else(malformed)?);
        let claims = if hello.cluster.is_empty() {
            let members: BTreeSet<_> = hello.members.iter().cloned().map(NodeName).collect();
            if !members.contains(&node) {
                return Err(malformed());
            }
            Claims::Forming(members)
        } else {
            Claims::Formed(read_uuid(&hello.cluster).ok_or_else(malformed)?)
        };
        let challenge = Challenge { nonce: random_bytes() };
        Ok(Self { hello, challenge, node, incarnation, claims })
    }

    pub(super) fn challenge(&self) -> Challenge {
        self.challenge.clone()
    }

    /// Whether the caller knows the secret, means this node, and may speak to it.
    pub(super) fn check(
        &self,
        secret: &Secret,
        who: &Who,
        standing: &Standing,
        proof: &Proof,
    ) -> Result<(), Refusal> {
        let mac = secret.caller(&self.hello, &self.challenge);
        mac.verify_slice(&proof.proof).map_err(|_| secrets_differ())?;
        if self.hello.to != who.node.0 {
            return Err(another_node(&who.node, &NodeName(self.hello.to.clone())));
        }
        match (&self.claims, standing) {
            (Claims::Forming(theirs), Standing::Forming(ours)) => {
                if theirs == ours && self.hello.shards == who.shards {
                    return Ok(());
                }
                Err(Refusal::new(
                    Reason::MembersDiffer,
                    format!(
                        "node {} wants to form a cluster of {} with {} shards, node {} one of {} with {} shards; set the same kvstore.cluster.members and kvstore.hash-ring.shards on all nodes",
                        self.node,
                        list(theirs),
                        self.hello.shards,
                        who.node,
                        list(ours),
                        who.shards
                    ),
                ))
            }
            (Claims::Formed(_), Standing::Forming(_)) => Err(not_formed(&who.node)),
            (Claims::Formed(theirs), Standing::Formed(ours)) if *theirs != ours.cluster => {
                Err(another_cluster(&self.node, *theirs, &who.node, ours.cluster))
            }
            (Claims::Forming(_) | Claims::Formed(_), Standing::Formed(ours)) => {
                check_member(&ours.members, &self.node, self.incarnation)
            }
        }
    }

    /// Whether the caller can be given a stream: it belongs to the cluster and knows it.
    pub(super) const fn is_formed(&self) -> bool {
        matches!(self.claims, Claims::Formed(_))
    }

    /// The last step.
    pub(super) fn welcome(
        &self,
        secret: &Secret,
        who: &Who,
        standing: &Standing,
        token: Bytes,
        stream_age: Option<Duration>,
    ) -> Welcome {
        let (cluster, members) = match standing {
            Standing::Forming(_) => (Bytes::new(), Vec::new()),
            Standing::Formed(formed) => {
                let member = |(name, incarnation): (&NodeName, &Incarnation)| Member {
                    node: name.0.clone(),
                    incarnation: uuid_bytes(incarnation.0),
                };
                (uuid_bytes(formed.cluster), formed.members.iter().map(member).collect())
            }
        };
        // 0 says never; so short an age is none that a stream could have.
        let age = stream_age.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(0).max(1));
        let mut welcome = Welcome {
            node: who.node.0.clone(),
            incarnation: uuid_bytes(who.incarnation.0),
            cluster,
            members,
            token,
            stream_age_ms: age,
            proof: Bytes::new(),
        };
        let proof = secret.callee(&self.hello, &self.challenge, &welcome).finalize();
        welcome.proof = Bytes::copy_from_slice(&proof.into_bytes());
        welcome
    }
}

/// Whether the cluster of `members` has `node`, with this data directory.
pub(super) fn check_member(
    members: &BTreeMap<NodeName, Incarnation>,
    node: &NodeName,
    incarnation: Incarnation,
) -> Result<(), Refusal> {
    match members.get(node) {
        None => Err(Refusal::new(
            Reason::NotAMember,
            format!(
                "node {node} is not a member of this cluster (members: {})",
                list(members.keys())
            ),
        )),
        Some(known) if *known != incarnation => Err(Refusal::new(
            Reason::AnotherIncarnation,
            format!(
                "node {node} presents incarnation {incarnation} but this cluster knows it as {known}: its data directory was wiped or replaced; remove it and add it under a new name"
            ),
        )),
        Some(_) => Ok(()),
    }
}

fn secrets_differ() -> Refusal {
    let message = "the cluster secrets differ; set the same kvstore.cluster.secret on all nodes";
    Refusal::new(Reason::SecretsDiffer, message)
}

fn another_node(reached: &NodeName, meant: &NodeName) -> Refusal {
    let message = format!(
        "this is node {reached}, not {meant}; correct the address of {meant} in kvstore.cluster.members"
    );
    Refusal::new(Reason::AnotherNode, message)
}

fn another_cluster(node: &NodeName, its: Uuid, this: &NodeName, ours: Uuid) -> Refusal {
    let message = format!(
        "node {node} belongs to cluster {its}, node {this} to cluster {ours}; correct kvstore.cluster.members, or kvstore.storage.data-dir of the node that is wrong here"
    );
    Refusal::new(Reason::AnotherCluster, message)
}

fn not_formed(node: &NodeName) -> Refusal {
    let message = format!("node {node} has not formed its cluster yet");
    Refusal::new(Reason::NotReady, message)
}

/// The cluster of the node that answered, if it is formed; `None` outside when the message is none.
#[expect(clippy::option_option, reason = "malformed, absent, there")]
fn read_formed(welcome: &Welcome) -> Option<Option<Formed>> {
    if welcome.cluster.is_empty() {
        return welcome.members.is_empty().then_some(None);
    }
    let mut members = BTreeMap::new();
    for member in &welcome.members {
        let incarnation = Incarnation(read_uuid(&member.incarnation)?);
        members.insert(NodeName(member.node.clone()), incarnation);
    }
    Some(Some(Formed { cluster: read_uuid(&welcome.cluster)?, members }))
}

fn read_uuid(bytes: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(bytes).ok()
}

fn uuid_bytes(uuid: Uuid) -> Bytes {
    Bytes::copy_from_slice(uuid.as_bytes())
}

/// Random bytes that nobody can guess.
pub(super) fn random_bytes() -> Bytes {
    Bytes::copy_from_slice(&rand::random::<[u8; RANDOM_BYTES]>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn who(node: &str, incarnation: u128) -> Who {
        let incarnation = Incarnation(Uuid::from_u128(incarnation));
        Who { node: node.into(), incarnation, shards: 4 }
    }

    fn formed() -> Standing {
        let members = [("n1", 1), ("n2", 2)];
        let members =
            members.map(|(node, number)| (node.into(), Incarnation(Uuid::from_u128(number))));
        Standing::Formed(Formed::new(members.into(), 4))
    }

    /// Every field that is proven, changed on its way to the callee or back.
    #[test]
    fn what_was_said_cannot_be_changed_on_its_way() {
        let (n1, n2, secret, standing) = (who("n1", 1), who("n2", 2), Secret::new("s"), formed());
        let calling = Calling::new(&n1, &standing, &n2.node);
        let id = || uuid_bytes(Uuid::from_u128(9));
        let heard = |change: &dyn Fn(&mut Hello)| {
            let mut hello = calling.hello();
            change(&mut hello);
            let called = Called::new(hello).expect("well formed");
            let proof = calling.prove(&secret, &called.challenge()).expect("a challenge");
            called.check(&secret, &n2, &standing, &proof).map(|()| called)
        };
        let changes: [&dyn Fn(&mut Hello); 7] = [
            &|hello| hello.node = "n2".into(),
            &|hello| hello.incarnation = id(),
            &|hello| hello.to = "n1".into(),
            &|hello| hello.nonce = random_bytes(),
            &|hello| hello.cluster = id(),
            &|hello| hello.members.push("n1".into()),
            &|hello| hello.shards = 5,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let refusal = heard(change).map(drop).expect_err("it was changed");
            assert_eq!(refusal, secrets_differ(), "change {number}");
        }

        let called = heard(&|_| {}).expect("nothing was changed");
        let token = random_bytes();
        let welcome = called.welcome(&secret, &n2, &standing, token, Some(Duration::from_secs(9)));
        let check =
            |welcome: &Welcome| calling.check(&secret, &standing, &called.challenge(), welcome);
        let peer = check(&welcome).expect("nothing was changed");
        assert_eq!(
            (peer.incarnation, peer.stream_age),
            (n2.incarnation, Some(Duration::from_secs(9)))
        );
        let changes: [&dyn Fn(&mut Welcome); 7] = [
            &|welcome| welcome.node = "n1".into(),
            &|welcome| welcome.incarnation = id(),
            &|welcome| welcome.cluster = id(),
            &|welcome| welcome.members[0].incarnation = id(),
            &|welcome| welcome.token = random_bytes(),
            &|welcome| welcome.stream_age_ms = 0,
            &|welcome| welcome.proof = Bytes::new(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = welcome.clone();
            change(&mut changed);
            assert_eq!(check(&changed), Err(secrets_differ()), "change {number}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(******)");
        assert_eq!(format!("{:?}", Secret::new("")), "Secret(none)");
    }

    proptest! {
        #[test]
        fn any_hello_is_read_or_refused(bytes: Vec<u8>, node: String, cluster: Vec<u8>, members: Vec<String>) {
            if let Ok(hello) = Hello::decode(&bytes[..]) {
                let _ = Called::new(hello);
            }
            let calling = Calling::new(&who("n1", 1), &formed(), &"n2".into());
            let hello = Hello { node, cluster: cluster.into(), members, ..calling.hello() };
            if let Ok(called) = Called::new(hello) {
                let proof = Proof { proof: bytes.into() };
                let refused = called.check(&Secret::new("s"), &who("n2", 2), &formed(), &proof);
                prop_assert_eq!(refused, Err(secrets_differ()));
            }
        }
    }
}
