//! What replicas say to each other: a request, and the reply to it, as bytes. Pure: values in, bytes out; how they travel is in `transport.rs`.
//!
//! # A request
//!
//! | bytes | what |
//! |---|---|
//! | 0 | version, `1` |
//! | 1..17 | cluster |
//! | varint | group; 0 for ask |
//! | varint | replica that sends; 0: a node that passes on what a caller asks (propose, move leader, ask) |
//! | varint | replica that is meant; 0: whichever is on the node (the same) |
//! | 1 | kind: `1` append, `2` vote, `3` pre-vote, `4` transfer of leadership, `5` propose, `6` read index, `7` snapshot: the header before its files, `8` move leader, `9` ask |
//! | rest | append, votes, transfer and the leader's vote of a snapshot: see `encoding.rs`; propose: a proposal whose stamp says nothing (`command/encoding.rs`); read index: nothing; move leader: the node (slice); ask: bytes of the layers above |
//!
//! # A reply
//!
//! | bytes | what |
//! |---|---|
//! | 0 | version, `1` |
//! | 1 | kind: `0` refused, `1` append, `2` vote, `3` transferred, `4` applied, `5` read index, `6` installed, `7` told |
//! | rest | refused: a [`Refusal`], its tag (1: `1` to `8`), and for `2` the leader's node (slice, empty: not known), for the others a text (slice). append and vote: see `encoding.rs`; transferred: done (1); applied: outcomes; read index: a log id, maybe; installed: a vote; told: bytes of the layers above |
//!
//! A message that does not name this cluster, group and replica is refused before openraft sees it.

use bytes::Bytes;
use uuid::Uuid;

use super::encoding::{
    put_append_reply, put_append_request, put_maybe_log_id, put_transfer_request, put_vote,
    put_vote_reply, put_vote_request, read_append_reply, read_append_request, read_bool,
    read_maybe_log_id, read_text, read_transfer_request, read_vote, read_vote_reply,
    read_vote_request,
};
use super::types::{
    AppendReply, AppendRequest, GroupId, LogId, NodeName, ReplicaId, TransferRequest, Vote,
    VoteReply, VoteRequest,
};
use crate::command::{Outcome, Proposal, decode_outcomes, encode_outcomes};
use crate::util::coding::{Cursor, put_slice, put_varint};

const VERSION: u8 = 1;

const APPEND: u8 = 1;
const VOTE: u8 = 2;
const PRE_VOTE: u8 = 3;
const TRANSFER: u8 = 4;
const PROPOSE: u8 = 5;
const READ_INDEX: u8 = 6;
const SNAPSHOT: u8 = 7;
const MOVE_LEADER: u8 = 8;
const ASK: u8 = 9;

const REFUSED: u8 = 0;
const TRANSFERRED: u8 = 3;
const APPLIED: u8 = 4;
const INDEX: u8 = 5;
const INSTALLED: u8 = 6;
const TOLD: u8 = 7;

/// Who speaks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// The cluster that both belong to.
    pub cluster: Uuid,
    /// The group that both belong to.
    pub group: GroupId,
    /// The replica that sends; 0 for a node that passes a caller's request on.
    pub from: ReplicaId,
    /// The replica that is meant; 0 for whichever is on that node.
    pub to: ReplicaId,
}

impl Envelope {
    /// Of what a node passes on for a caller: it need not have a replica of the group, nor know which the other node has.
    pub const fn of_caller(cluster: Uuid, group: GroupId) -> Self {
        Self { cluster, group, from: 0, to: 0 }
    }
}

/// What is asked of a replica.
#[derive(Debug, Clone)]
pub enum Request {
    /// Takes entries, or a sign of life.
    Append(AppendRequest),
    /// Votes.
    Vote(VoteRequest),
    /// Would it vote?
    PreVote(VoteRequest),
    /// Becomes leader.
    Transfer(TransferRequest),
    /// As leader, commits and applies the commands of a caller of another node. The leader sets the stamp.
    Propose(Proposal),
    /// As leader, confirms with a quorum that it leads, and tells what a read that began before has to see.
    ReadIndex,
    /// Takes over the state in the files that follow, from the leader with this vote.
    Snapshot(Vote),
    /// As leader, hands leadership to the replica on that node, because an operator of another node asks for it.
    MoveLeader(NodeName),
    /// Not of a replica but of the node: answers a question of the layers above, about whatever it has.
    Ask(Bytes),
}

/// The answer of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing was done, or nobody knows: see the refusal.
    Refused(Refusal),
    /// To [`Request::Append`].
    Append(AppendReply),
    /// To [`Request::Vote`] and [`Request::PreVote`].
    Vote(VoteReply),
    /// To [`Request::Transfer`]: whether it will campaign; to [`Request::MoveLeader`]: done.
    Transferred(bool),
    /// To [`Request::Propose`]: committed and applied.
    Applied(Vec<Outcome>),
    /// To [`Request::ReadIndex`]: reads may begin once this is applied.
    ReadIndex(Option<LogId>),
    /// To [`Request::Snapshot`]: taken over, or not needed; the replica's vote.
    Installed(Vote),
    /// To [`Request::Ask`]: the answer.
    Told(Bytes),
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It names another cluster, group or replica, or this node has not that replica now: certainly not done.
    NotHere(String),
    /// The replica does not lead: certainly not done. The leader's node, where known.
    NotLeader(Option<NodeName>),
    /// The leader has no quorum behind it now: certainly not done.
    NoQuorum(String),
    /// A limit of the node is reached: certainly not done.
    Overloaded(String),
    /// The disk of the leader is full: certainly not done.
    DiskFull(String),
    /// It may have been done, or may be done later.
    Unknown(String),
    /// The replica's group has failed on that node.
    Failed(String),
    /// The state of the group does not allow it: certainly not done.
    Precondition(String),
}

impl Request {
    /// Whether a node may ask it of whichever replica another node has.
    pub const fn is_of_caller(&self) -> bool {
        matches!(self, Self::Propose(_) | Self::MoveLeader(_) | Self::Ask(_))
    }

    /// The bytes that travel.
    pub fn encode(&self, envelope: &Envelope) -> Bytes {
        let mut buffer = Vec::with_capacity(64);
        buffer.push(VERSION);
        buffer.extend_from_slice(envelope.cluster.as_bytes());
        put_varint(&mut buffer, envelope.group.0.into());
        put_varint(&mut buffer, envelope.from);
        put_varint(&mut buffer, envelope.to);
        match self {
            Self::Append(request) => {
                buffer.push(APPEND);
                put_append_request(&mut buffer, request);
            }
            Self::Vote(request) => {
                buffer.push(VOTE);
                put_vote_request(&mut buffer, request);
            }
            Self::PreVote(request) => {
                buffer.push(PRE_VOTE);
                put_vote_request(&mut buffer, request);
            }
            Self::Transfer(request) => {
                buffer.push(TRANSFER);
                put_transfer_request(&mut buffer, request);
            }
            Self::Propose(proposal) => {
                buffer.push(PROPOSE);
                buffer.extend_from_slice(proposal.bytes());
            }
            Self::ReadIndex => buffer.push(READ_INDEX),
            Self::Snapshot(vote) => {
                buffer.push(SNAPSHOT);
                put_vote(&mut buffer, vote);
            }
            Self::MoveLeader(node) => {
                buffer.push(MOVE_LEADER);
                put_slice(&mut buffer, node.0.as_bytes());
            }
            Self::Ask(question) => {
                buffer.push(ASK);
                buffer.extend_from_slice(question);
            }
        }
        buffer.into()
    }

    /// Reads a request; `None` for bytes that are none of this version.
    pub fn decode(bytes: &Bytes) -> Option<(Envelope, Self)> {
        let mut cursor = Cursor::new(bytes);
        if cursor.u8()? != VERSION {
            return None;
        }
        let cluster = Uuid::from_slice(cursor.bytes(16)?).ok()?;
        let group = GroupId(u32::try_from(cursor.varint()?).ok()?);
        let (from, to) = (cursor.varint()?, cursor.varint()?);
        let envelope = Envelope { cluster, group, from, to };
        let request = match cursor.u8()? {
            APPEND => Self::Append(read_append_request(bytes, &mut cursor)?),
            VOTE => Self::Vote(read_vote_request(&mut cursor)?),
            PRE_VOTE => Self::PreVote(read_vote_request(&mut cursor)?),
            TRANSFER => Self::Transfer(read_transfer_request(&mut cursor)?),
            PROPOSE => {
                let proposal = bytes.slice_ref(cursor.bytes(cursor.rest().len())?);
                Self::Propose(Proposal::from_bytes(proposal))
            }
            READ_INDEX => Self::ReadIndex,
            SNAPSHOT => Self::Snapshot(read_vote(&mut cursor)?),
            MOVE_LEADER => Self::MoveLeader(NodeName(read_text(&mut cursor)?.to_owned())),
            ASK => Self::Ask(bytes.slice_ref(cursor.bytes(cursor.rest().len())?)),
            _ => return None,
        };
        cursor.is_empty().then_some((envelope, request))
    }
}

impl Reply {
    /// The bytes that travel.
    pub fn encode(&self) -> Bytes {
        let mut buffer = Vec::with_capacity(32);
        buffer.push(VERSION);
        match self {
            Self::Refused(refusal) => {
                buffer.push(REFUSED);
                refusal.put(&mut buffer);
            }
            Self::Append(reply) => {
                buffer.push(APPEND);
                put_append_reply(&mut buffer, reply);
            }
            Self::Vote(reply) => {
                buffer.push(VOTE);
                put_vote_reply(&mut buffer, reply);
            }
            Self::Transferred(done) => buffer.extend_from_slice(&[TRANSFERRED, (*done).into()]),
            Self::Applied(outcomes) => {
                buffer.push(APPLIED);
                buffer.extend_from_slice(&encode_outcomes(outcomes));
            }
            Self::ReadIndex(log_id) => {
                buffer.push(INDEX);
                put_maybe_log_id(&mut buffer, log_id.as_ref());
            }
            Self::Installed(vote) => {
                buffer.push(INSTALLED);
                put_vote(&mut buffer, vote);
            }
            Self::Told(answer) => {
                buffer.reserve_exact(1 + answer.len());
                buffer.push(TOLD);
                buffer.extend_from_slice(answer);
            }
        }
        buffer.into()
    }

    /// Reads a reply; `None` for bytes that are none of this version.
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        if cursor.u8()? != VERSION {
            return None;
        }
        let reply = match cursor.u8()? {
            REFUSED => Self::Refused(Refusal::read(&mut cursor)?),
            APPEND => Self::Append(read_append_reply(&mut cursor)?),
            VOTE => Self::Vote(read_vote_reply(&mut cursor)?),
            TRANSFERRED => Self::Transferred(read_bool(&mut cursor)?),
            APPLIED => {
                let outcomes = cursor.bytes(cursor.rest().len())?;
                Self::Applied(decode_outcomes(outcomes).ok()?)
            }
            INDEX => Self::ReadIndex(read_maybe_log_id(&mut cursor)?),
            INSTALLED => Self::Installed(read_vote(&mut cursor)?),
            TOLD => Self::Told(bytes.slice_ref(cursor.bytes(cursor.rest().len())?)),
            _ => return None,
        };
        cursor.is_empty().then_some(reply)
    }
}

impl Refusal {
    fn put(&self, buffer: &mut Vec<u8>) {
        let (tag, text) = match self {
            Self::NotHere(text) => (1, text.as_str()),
            Self::NotLeader(leader) => (2, leader.as_ref().map_or("", |node| node.0.as_str())),
            Self::NoQuorum(text) => (3, text.as_str()),
            Self::Overloaded(text) => (4, text.as_str()),
            Self::DiskFull(text) => (5, text.as_str()),
            Self::Unknown(text) => (6, text.as_str()),
            Self::Failed(text) => (7, text.as_str()),
            Self::Precondition(text) => (8, text.as_str()),
        };
        buffer.push(tag);
        put_slice(buffer, text.as_bytes());
    }

    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        let tag = cursor.u8()?;
        let text = read_text(cursor)?.to_owned();
        Some(match tag {
            1 => Self::NotHere(text),
            2 => Self::NotLeader((!text.is_empty()).then_some(NodeName(text))),
            3 => Self::NoQuorum(text),
            4 => Self::Overloaded(text),
            5 => Self::DiskFull(text),
            6 => Self::Unknown(text),
            7 => Self::Failed(text),
            8 => Self::Precondition(text),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::raft::types::LeaderId;
    use crate::types::Version;
    use openraft::vote::RaftLeaderId as _;

    const ENVELOPE: Envelope =
        Envelope { cluster: Uuid::from_u128(7), group: GroupId(3), from: 1, to: 300 };

    fn vote() -> Vote {
        Vote { leader_id: LeaderId::new(4, 2), committed: true }
    }

    #[test]
    fn every_request_reads_back_and_no_part_of_one_does() {
        let requests = [
            Request::Append(AppendRequest {
                vote: vote(),
                prev_log_id: None,
                entries: Vec::new(),
                leader_commit: None,
            }),
            Request::Vote(VoteRequest::new(vote(), None)),
            Request::PreVote(VoteRequest::new(vote(), None)),
            Request::Transfer(TransferRequest::new(vote(), 2, None)),
            Request::ReadIndex,
            Request::Snapshot(vote()),
            Request::MoveLeader(NodeName("n2".to_owned())),
        ];
        for request in requests {
            let bytes = request.encode(&ENVELOPE);
            let (envelope, read) = Request::decode(&bytes).expect("just encoded");
            assert_eq!((envelope, read.encode(&envelope)), (ENVELOPE, bytes.clone()));
            for end in 0..bytes.len() {
                assert!(Request::decode(&bytes.slice(..end)).is_none(), "{request:?} cut at {end}");
            }
        }
    }

    #[test]
    fn every_reply_reads_back_and_no_part_of_one_does() {
        let text = || "why".to_owned();
        let replies = [
            Reply::Append(AppendReply::Conflict),
            Reply::Vote(VoteReply::new(vote(), None, true)),
            Reply::Transferred(true),
            Reply::Applied(vec![Outcome::Put { version: Version(9) }]),
            Reply::ReadIndex(None),
            Reply::Installed(vote()),
            Reply::Refused(Refusal::NotHere(text())),
            Reply::Refused(Refusal::NotLeader(None)),
            Reply::Refused(Refusal::NotLeader(Some(NodeName(text())))),
            Reply::Refused(Refusal::NoQuorum(text())),
            Reply::Refused(Refusal::Overloaded(text())),
            Reply::Refused(Refusal::DiskFull(text())),
            Reply::Refused(Refusal::Unknown(text())),
            Reply::Refused(Refusal::Failed(text())),
            Reply::Refused(Refusal::Precondition(text())),
        ];
        for reply in replies {
            let bytes = reply.encode();
            assert_eq!(Reply::decode(&bytes).as_ref(), Some(&reply));
            for end in 0..bytes.len() {
                assert_ne!(Reply::decode(&bytes.slice(..end)), Some(reply.clone()));
            }
        }
    }

    #[test]
    fn what_the_layers_above_say_is_carried_as_it_is() {
        for said in ["", "anything"].map(Bytes::from) {
            let request = Request::Ask(said.clone()).encode(&ENVELOPE);
            let Some((_, Request::Ask(read))) = Request::decode(&request) else {
                panic!("{said:?} was not read")
            };
            assert_eq!(read, said);
            let reply = Reply::Told(said);
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes: Vec<u8>) {
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let bytes = Bytes::from(bytes);
            let _ = (Request::decode(&bytes), Reply::decode(&bytes));
        }
    }
}
