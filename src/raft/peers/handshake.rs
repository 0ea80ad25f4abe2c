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
//! * A node that joins, and one that only knows an address, does not say whom it calls; it may ask to be put on the list of members (`admit`), and opens no stream.
//! * A member that is not on this node's list is let in when it knows a newer one (its revision is larger): so a node that was away can be told by whoever came meanwhile.
//! * The secret keeps strangers out. Who can read or change what travels between the nodes needs no proof: against those, encrypt the network.
//!
//! # What is proven
//!
//! HMAC-SHA256 of: `kvstore peer 2 caller` or `kvstore peer 2 callee`; of hello: version, node, incarnation, to, nonce, cluster, number of members,
//! the members, shards, revision; nonce of the challenge; for the callee, of welcome: node, incarnation, cluster, number of members, name and incarnation of
//! each, token, age, revision. Texts and bytes are slices, numbers varints (`util/coding`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use uuid::Uuid;

use super::refusal::{Reason, Refusal};
use crate::cluster::{Formed, Incarnation, NAME_BYTES_MAX, NodeName, Standing, is_name, list};
use crate::proto::raft::{Challenge, Hello, Member, Proof, Welcome};
use crate::util::coding::{put_slice, put_varint};

const VERSION: u32 = 2;

/// Length of nonces and tokens.
const RANDOM_BYTES: usize = 32;

/// Most members that a message may name.
pub(super) const MEMBERS_MAX: usize = 1_024;

const CALLER: &[u8] = b"kvstore peer 2 caller";
const CALLEE: &[u8] = b"kvstore peer 2 callee";

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
        put_varint(&mut said, hello.revision);
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
        put_varint(&mut said, welcome.revision);
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
    pub(super) node: NodeName,
    pub(super) incarnation: Incarnation,
    /// Its cluster, once that is formed.
    pub(super) formed: Option<Formed>,
    /// Opens one stream, or allows one call.
    pub(super) token: Bytes,
    /// How long the stream may last.
    pub(super) stream_age: Option<Duration>,
}

impl Calling {
    /// `who`, in `standing`, calls the node `to`, or whoever is there.
    pub(super) fn new(who: &Who, standing: &Standing, to: Option<&NodeName>) -> Self {
        let mut hello = Hello {
            version: VERSION,
            node: who.node.0.clone(),
            incarnation: uuid_bytes(who.incarnation.0),
            to: to.map(|to| to.0.clone()).unwrap_or_default(),
            nonce: random_bytes(),
            shards: who.shards,
            ..Hello::default()
        };
        match standing {
            Standing::Forming(members) => {
                hello.members = members.iter().map(|member| member.0.clone()).collect();
            }
            Standing::Joining => {}
            Standing::Formed(formed) => {
                hello.cluster = uuid_bytes(formed.cluster);
                hello.revision = formed.revision;
            }
        }
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
        let malformed = || Refusal::malformed("the welcome");
        let node = read_name(&welcome.node).ok_or_else(malformed)?;
        if !self.hello.to.is_empty() && welcome.node != self.hello.to {
            return Err(another_node(&node, &NodeName(self.hello.to.clone())));
        }
        let incarnation = Incarnation(read_uuid(&welcome.incarnation).ok_or_else(malformed)?);
        let formed = read_formed(welcome).ok_or_else(malformed)?;
        match (standing, &formed) {
            (Standing::Forming(_), _) | (Standing::Joining, Some(_)) => {}
            (Standing::Joining | Standing::Formed(_), None) => return Err(not_formed(&node)),
            (Standing::Formed(ours), Some(theirs)) => {
                if theirs.cluster != ours.cluster {
                    let this = NodeName(self.hello.node.clone());
                    return Err(another_cluster(&node, theirs.cluster, &this, ours.cluster));
                }
                check(ours, &node, incarnation, Claim::Member { revision: theirs.revision })?;
            }
        }
        let stream_age = Some(Duration::from_millis(welcome.stream_age_ms));
        Ok(Peer {
            node,
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
    Joining,
    Formed { cluster: Uuid, revision: u64 },
}

/// What a node says of itself to a cluster that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It founds the cluster.
    Founder,
    /// It wants to be a member.
    Candidate,
    /// It is a member, by this list of members or a later one.
    Member {
        /// The list that it knows.
        revision: u64,
    },
}

impl Called {
    /// Reads the first step.
    pub(super) fn new(hello: Hello) -> Result<Self, Refusal> {
        let malformed = || Refusal::malformed("the hello");
        if hello.version != VERSION || hello.nonce.len() != RANDOM_BYTES {
            return Err(malformed());
        }
        let mut names = hello.members.iter().chain([&hello.to]);
        if hello.members.len() > MEMBERS_MAX || names.any(|name| name.len() > NAME_BYTES_MAX) {
            return Err(malformed());
        }
        drop(names);
        let node = read_name(&hello.node).ok_or_else(malformed)?;
        let incarnation = Incarnation(read_uuid(&hello.incarnation).ok_or_else(malformed)?);
        let claims = if !hello.cluster.is_empty() {
            let cluster = read_uuid(&hello.cluster).ok_or_else(malformed)?;
            Claims::Formed { cluster, revision: hello.revision }
        } else if hello.members.is_empty() {
            // It would learn from nobody whom it means.
            if !hello.to.is_empty() {
                return Err(malformed());
            }
            Claims::Joining
        } else {
            let members: BTreeSet<_> = hello.members.iter().cloned().map(NodeName).collect();
            if !members.contains(&node) || hello.to.is_empty() {
                return Err(malformed());
            }
            Claims::Forming(members)
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
        if !self.hello.to.is_empty() && self.hello.to != who.node.0 {
            return Err(another_node(&who.node, &NodeName(self.hello.to.clone())));
        }
        let ours = match (standing, &self.claims) {
            (Standing::Formed(ours), _) => ours,
            (Standing::Forming(ours), Claims::Forming(theirs)) => {
                return self.check_founders(who, ours, theirs);
            }
            (Standing::Forming(_), _) => return Err(not_formed(&who.node)),
            (Standing::Joining, _) => return Err(joins(&who.node)),
        };
        match self.claims {
            Claims::Formed { cluster, .. } if cluster != ours.cluster => {
                return Err(another_cluster(&self.node, cluster, &who.node, ours.cluster));
            }
            Claims::Joining if self.hello.shards != who.shards => {
                return Err(shards_differ(&self.node, self.hello.shards, who.shards));
            }
            _ => {}
        }
        check(ours, &self.node, self.incarnation, self.claim())
    }

    /// Whether the two want to found the same cluster.
    fn check_founders(
        &self,
        who: &Who,
        ours: &BTreeSet<NodeName>,
        theirs: &BTreeSet<NodeName>,
    ) -> Result<(), Refusal> {
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

    /// What the caller is to a cluster that exists.
    pub(super) const fn claim(&self) -> Claim {
        match self.claims {
            Claims::Forming(_) => Claim::Founder,
            Claims::Joining => Claim::Candidate,
            Claims::Formed { revision, .. } => Claim::Member { revision },
        }
    }

    /// Whether the caller meant this node, and not whoever is there.
    pub(super) const fn is_addressed(&self) -> bool {
        !self.hello.to.is_empty()
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
        let (cluster, members, revision) = match standing {
            Standing::Forming(_) | Standing::Joining => (Bytes::new(), Vec::new(), 0),
            Standing::Formed(formed) => {
                let members = formed.members.iter();
                let members = members.map(|(name, it)| write_member(name, *it)).collect();
                (uuid_bytes(formed.cluster), members, formed.revision)
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
            revision,
        };
        let proof = secret.callee(&self.hello, &self.challenge, &welcome).finalize();
        welcome.proof = Bytes::copy_from_slice(&proof.into_bytes());
        welcome
    }
}

/// Whether `node`, with this data directory, may be what it claims to be, as far as `ours` says.
pub(super) fn check(
    ours: &Formed,
    node: &NodeName,
    incarnation: Incarnation,
    claim: Claim,
) -> Result<(), Refusal> {
    let members = || list(ours.members.keys());
    let not_a_member = |message| Err(Refusal::new(Reason::NotAMember, message));
    match (ours.members.get(node), claim) {
        (Some(known), _) if *known == incarnation => Ok(()),
        // It is on a list that this node has yet to learn.
        (_, Claim::Member { revision }) if revision > ours.revision => Ok(()),
        (Some(known), _) => Err(Refusal::new(
            Reason::AnotherIncarnation,
            format!(
                "node {node} presents incarnation {incarnation} but this cluster knows it as {known}: its data directory was wiped or replaced; remove it and add it under a new name"
            ),
        )),
        (None, Claim::Candidate) => Ok(()),
        (None, Claim::Founder) => not_a_member(format!(
            "node {node} is not a member of this cluster (members: {}); empty its data directory and start it with kvstore.cluster.join to add it",
            members()
        )),
        (None, Claim::Member { .. }) => not_a_member(format!(
            "node {node} was removed from this cluster, or never joined it (members: {}); empty its data directory and start it with kvstore.cluster.join under a new name",
            members()
        )),
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

fn shards_differ(node: &NodeName, its: u32, ours: u32) -> Refusal {
    let message = format!(
        "node {node} asks for {its} shards, this cluster has {ours}; empty its data directory and set kvstore.hash-ring.shards: {ours}"
    );
    Refusal::new(Reason::ShardsDiffer, message)
}

fn not_formed(node: &NodeName) -> Refusal {
    let message = format!("node {node} has not formed its cluster yet");
    Refusal::new(Reason::NotReady, message)
}

fn joins(node: &NodeName) -> Refusal {
    Refusal::new(Reason::NotReady, format!("node {node} is about to join a cluster itself"))
}

/// The cluster of the node that answered, if it is formed; `None` outside when the message is none.
#[expect(clippy::option_option, reason = "malformed, absent, there")]
fn read_formed(welcome: &Welcome) -> Option<Option<Formed>> {
    if welcome.cluster.is_empty() {
        return welcome.members.is_empty().then_some(None);
    }
    let members = welcome.members.iter().map(read_member).collect::<Option<BTreeMap<_, _>>>()?;
    let cluster = read_uuid(&welcome.cluster)?;
    Some(Some(Formed { cluster, revision: welcome.revision, members }))
}

/// `None` when the message is none.
pub(super) fn read_member(member: &Member) -> Option<(NodeName, Incarnation)> {
    Some((read_name(&member.node)?, Incarnation(read_uuid(&member.incarnation)?)))
}

/// As [`read_member`] reads it.
pub(super) fn write_member(name: &NodeName, incarnation: Incarnation) -> Member {
    Member { node: name.0.clone(), incarnation: uuid_bytes(incarnation.0) }
}

fn read_name(text: &str) -> Option<NodeName> {
    is_name(text).then(|| NodeName(text.to_owned()))
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

    fn id() -> Bytes {
        uuid_bytes(Uuid::from_u128(9))
    }

    /// A node that calls n2, in `standing`.
    struct Talk {
        calling: Calling,
        standing: Standing,
        n2: Who,
        secret: Secret,
    }

    impl Talk {
        /// What n2 makes of a hello that was changed on its way.
        fn heard(&self, change: impl Fn(&mut Hello)) -> Result<Called, Refusal> {
            let mut hello = self.calling.hello();
            change(&mut hello);
            let called = Called::new(hello).expect("well formed");
            let proof = self.calling.prove(&self.secret, &called.challenge()).expect("a challenge");
            called.check(&self.secret, &self.n2, &formed(), &proof).map(|()| called)
        }

        /// What the caller makes of a welcome that was changed on its way.
        fn welcomed(&self, change: impl Fn(&mut Welcome)) -> Result<Peer, Refusal> {
            let called = self.heard(|_| {})?;
            let age = Some(Duration::from_secs(9));
            let token = random_bytes();
            let mut welcome = called.welcome(&self.secret, &self.n2, &formed(), token, age);
            change(&mut welcome);
            self.calling.check(&self.secret, &self.standing, &called.challenge(), &welcome)
        }
    }

    /// Every field that is proven, changed on its way to the callee or back, for a member that knows whom it calls, and for a node that joins.
    #[test]
    fn what_was_said_cannot_be_changed_on_its_way() {
        for (name, standing, to) in
            [("n1", formed(), Some("n2".into())), ("n3", Standing::Joining, None)]
        {
            let calling = Calling::new(&who(name, 1), &standing, to.as_ref());
            let talk = Talk { calling, standing, n2: who("n2", 2), secret: Secret::new("s") };
            let mut changes: Vec<&dyn Fn(&mut Hello)> = vec![
                &|hello| hello.node = "n2".into(),
                &|hello| hello.incarnation = id(),
                &|hello| hello.nonce = random_bytes(),
                &|hello| hello.cluster = id(),
                &|hello| hello.shards = 5,
                &|hello| hello.revision = 5,
                &|hello| (hello.to, hello.members) = ("n2".into(), vec![hello.node.clone()]),
            ];
            if to.is_some() {
                changes.push(&|hello| hello.to = "n1".into());
                changes.push(&|hello| hello.to = String::new());
            }
            for (number, change) in changes.into_iter().enumerate() {
                let refusal = talk.heard(change).map(drop).expect_err("it was changed");
                assert_eq!(refusal, secrets_differ(), "{name}, change {number}");
            }

            let peer = talk.welcomed(|_| {}).expect("nothing was changed");
            assert_eq!((&peer.node, peer.incarnation), (&"n2".into(), talk.n2.incarnation));
            assert_eq!(peer.stream_age, Some(Duration::from_secs(9)));
            let changes: [&dyn Fn(&mut Welcome); 9] = [
                &|welcome| welcome.node = "n1".into(),
                &|welcome| welcome.incarnation = id(),
                &|welcome| welcome.cluster = id(),
                &|welcome| welcome.members[0].incarnation = id(),
                &|welcome| drop(welcome.members.pop()),
                &|welcome| welcome.token = random_bytes(),
                &|welcome| welcome.stream_age_ms = 0,
                &|welcome| welcome.revision = 5,
                &|welcome| welcome.proof = Bytes::new(),
            ];
            for (number, change) in changes.into_iter().enumerate() {
                assert_eq!(talk.welcomed(change), Err(secrets_differ()), "{name}, {number}");
            }
        }
    }

    #[test]
    fn a_node_without_a_cluster_is_nobody_to_join_nor_a_member() {
        for (standing, to) in [(Standing::Joining, None), (formed(), Some("n2".into()))] {
            let calling = Calling::new(&who("n1", 1), &standing, to.as_ref());
            let (n2, secret) = (who("n2", 2), Secret::new("s"));
            let called = Called::new(calling.hello()).expect("well formed");
            for theirs in [Standing::Joining, Standing::Forming(["n2".into()].into())] {
                let welcome = called.welcome(&secret, &n2, &theirs, random_bytes(), None);
                let reached = calling.check(&secret, &standing, &called.challenge(), &welcome);
                assert_eq!(reached, Err(not_formed(&n2.node)));
            }
        }
    }

    #[test]
    fn who_knows_the_newer_list_of_members_is_believed() {
        let Standing::Formed(mut ours) = formed() else { unreachable!("it is formed") };
        ours.revision = 7;
        let is = |node: &str, number: u128, claim| {
            let known = check(&ours, &node.into(), Incarnation(Uuid::from_u128(number)), claim);
            known.map_err(|refusal| refusal.reason)
        };
        let member = |revision| Claim::Member { revision };
        for claim in [member(0), member(7), member(8), Claim::Founder, Claim::Candidate] {
            assert_eq!(is("n1", 1, claim), Ok(()), "a member, {claim:?}");
        }
        // n3 came, or went, or n1 is another one, after what one of the two knows.
        assert_eq!(is("n3", 3, member(8)), Ok(()));
        assert_eq!(is("n1", 9, member(8)), Ok(()));
        for claim in [member(0), member(7), Claim::Founder] {
            assert_eq!(is("n3", 3, claim), Err(Reason::NotAMember), "{claim:?}");
        }
        for claim in [member(0), member(7), Claim::Founder, Claim::Candidate] {
            assert_eq!(is("n1", 9, claim), Err(Reason::AnotherIncarnation), "{claim:?}");
        }
        assert_eq!(is("n3", 3, Claim::Candidate), Ok(()));
    }

    #[test]
    fn a_secret_is_never_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(******)");
        assert_eq!(format!("{:?}", Secret::new("")), "Secret(none)");
    }

    proptest! {
        #[test]
        fn any_hello_is_read_or_refused(bytes: Vec<u8>, node in "[a-z]{1,3}|\\PC*", cluster: Vec<u8>, members: Vec<String>) {
            if let Ok(hello) = Hello::decode(&bytes[..]) {
                let _ = Called::new(hello);
            }
            let calling = Calling::new(&who("n1", 1), &formed(), Some(&"n2".into()));
            let hello = Hello { node, cluster: cluster.into(), members, ..calling.hello() };
            if let Ok(called) = Called::new(hello) {
                let proof = Proof { proof: bytes.into() };
                let refused = called.check(&Secret::new("s"), &who("n2", 2), &formed(), &proof);
                prop_assert_eq!(refused, Err(secrets_differ()));
            }
        }
    }
}
