//! How openraft's values look in the log and between nodes. Pure: values in, bytes out.
//!
//! | value | bytes |
//! |---|---|
//! | log id | term, replica of the leader, index (varints) |
//! | maybe a log id | `0`, or `1` and the log id |
//! | vote | term, replica (varints), committed (1) |
//! | membership | number of configurations (varint), each: number of voters, then their replica ids (varints); number of nodes (varint), each: replica id (varint), name (slice) |
//! | stored membership | maybe a log id, membership |
//! | entry | log id, tag (1): `0` blank; `1` a proposal (slice); `2` membership |
//! | append request | vote, previous log id (maybe), committed log id (maybe), number of entries (varint), the entries |
//! | append reply | tag (1): `0` success; `1` success up to a log id (maybe); `2` conflict; `3` a higher vote (vote) |
//! | vote request | vote, last log id (maybe), whether the leader asked for it (1) |
//! | vote reply | vote, last log id (maybe), granted (1) |
//! | transfer request | vote, replica id (varint), last log id (maybe) |
//!
//! A slice is its length as a varint, then the bytes. Tags are never used again for something else; what carries these values (a record, a message)
//! carries the version. Every `read` returns `None` for bytes that are none, never panics and reserves no more than there is.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;
use openraft::vote::RaftLeaderId as _;

use super::types::{
    AppendReply, AppendRequest, Entry, LeaderId, LogId, Membership, NodeName, ReplicaId,
    StoredMembership, TransferRequest, Vote, VoteReply, VoteRequest,
};
use crate::command::Proposal;
use crate::util::coding::{Cursor, put_slice, put_varint};

const BLANK: u8 = 0;
const PROPOSAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

const SUCCESS: u8 = 0;
const PARTIAL_SUCCESS: u8 = 1;
const CONFLICT: u8 = 2;
const HIGHER_VOTE: u8 = 3;

pub(super) fn put_log_id(buffer: &mut Vec<u8>, log_id: &LogId) {
    put_varint(buffer, log_id.leader_id.term);
    put_varint(buffer, log_id.leader_id.node_id);
    put_varint(buffer, log_id.index);
}

pub(super) fn read_log_id(cursor: &mut Cursor<'_>) -> Option<LogId> {
    let leader_id = LeaderId::new(cursor.varint()?, cursor.varint()?);
    Some(LogId { leader_id, index: cursor.varint()? })
}

pub(super) fn put_maybe_log_id(buffer: &mut Vec<u8>, log_id: Option<&LogId>) {
    buffer.push(log_id.is_some().into());
    if let Some(log_id) = log_id {
        put_log_id(buffer, log_id);
    }
}

#[expect(clippy::option_option, reason = "malformed, none, and one are three things")]
pub(super) fn read_maybe_log_id(cursor: &mut Cursor<'_>) -> Option<Option<LogId>> {
    Some(if read_bool(cursor)? { Some(read_log_id(cursor)?) } else { None })
}

pub(super) fn put_vote(buffer: &mut Vec<u8>, vote: &Vote) {
    put_varint(buffer, vote.leader_id.term);
    put_varint(buffer, vote.leader_id.node_id);
    buffer.push(vote.committed.into());
}

pub(super) fn read_vote(cursor: &mut Cursor<'_>) -> Option<Vote> {
    let leader_id = LeaderId::new(cursor.varint()?, cursor.varint()?);
    Some(Vote { leader_id, committed: read_bool(cursor)? })
}

pub(super) fn put_membership(buffer: &mut Vec<u8>, membership: &Membership) {
    let configurations = membership.get_joint_config();
    put_varint(buffer, configurations.len() as u64);
    for voters in configurations {
        put_varint(buffer, voters.len() as u64);
        for &voter in voters {
            put_varint(buffer, voter);
        }
    }
    put_varint(buffer, membership.nodes().count() as u64);
    for (&replica, node) in membership.nodes() {
        put_varint(buffer, replica);
        put_slice(buffer, node.0.as_bytes());
    }
}

pub(super) fn read_membership(cursor: &mut Cursor<'_>) -> Option<Membership> {
    let mut configurations = Vec::new();
    for _ in 0..cursor.varint()? {
        let mut voters = BTreeSet::new();
        for _ in 0..cursor.varint()? {
            voters.insert(cursor.varint()?);
        }
        configurations.push(voters);
    }
    let mut nodes = BTreeMap::<ReplicaId, NodeName>::new();
    for _ in 0..cursor.varint()? {
        let replica = cursor.varint()?;
        nodes.insert(replica, NodeName(read_text(cursor)?.to_owned()));
    }
    if configurations.is_empty() && nodes.is_empty() {
        return Some(Membership::default());
    }
    Membership::new(configurations, nodes).ok()
}

pub(super) fn put_stored_membership(buffer: &mut Vec<u8>, stored: &StoredMembership) {
    put_maybe_log_id(buffer, stored.log_id().as_ref());
    put_membership(buffer, stored.membership());
}

pub(super) fn read_stored_membership(cursor: &mut Cursor<'_>) -> Option<StoredMembership> {
    let log_id = read_maybe_log_id(cursor)?;
    Some(StoredMembership::new(log_id, read_membership(cursor)?))
}

pub(super) fn put_entry(buffer: &mut Vec<u8>, entry: &Entry) {
    put_log_id(buffer, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => buffer.push(BLANK),
        EntryPayload::Normal(proposal) => {
            buffer.push(PROPOSAL);
            put_slice(buffer, proposal.bytes());
        }
        EntryPayload::Membership(membership) => {
            buffer.push(MEMBERSHIP);
            put_membership(buffer, membership);
        }
    }
}

/// Bytes that [`put_entry`] adds, or a few more.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    const HEADER_BYTES_MAX: usize = 41;
    HEADER_BYTES_MAX
        + match &entry.payload {
            EntryPayload::Blank => 0,
            EntryPayload::Normal(proposal) => proposal.bytes().len(),
            EntryPayload::Membership(membership) => {
                membership.nodes().map(|(_, node)| node.0.len() + 40).sum()
            }
        }
}

/// Reads an entry from `cursor`, which reads from `whole`: a proposal shares its memory.
pub(super) fn read_entry(whole: &Bytes, cursor: &mut Cursor<'_>) -> Option<Entry> {
    let log_id = read_log_id(cursor)?;
    let payload = match cursor.u8()? {
        BLANK => EntryPayload::Blank,
        PROPOSAL => EntryPayload::Normal(Proposal::from_bytes(whole.slice_ref(cursor.slice()?))),
        MEMBERSHIP => EntryPayload::Membership(read_membership(cursor)?),
        _ => return None,
    };
    Some(Entry::new(log_id, payload))
}

pub(super) fn put_append_request(buffer: &mut Vec<u8>, request: &AppendRequest) {
    put_vote(buffer, &request.vote);
    put_maybe_log_id(buffer, request.prev_log_id.as_ref());
    put_maybe_log_id(buffer, request.leader_commit.as_ref());
    put_varint(buffer, request.entries.len() as u64);
    buffer.reserve(request.entries.iter().map(entry_bytes).sum());
    for entry in &request.entries {
        put_entry(buffer, entry);
    }
}

pub(super) fn read_append_request(whole: &Bytes, cursor: &mut Cursor<'_>) -> Option<AppendRequest> {
    let vote = read_vote(cursor)?;
    let prev_log_id = read_maybe_log_id(cursor)?;
    let leader_commit = read_maybe_log_id(cursor)?;
    let mut entries = Vec::new();
    for _ in 0..cursor.varint()? {
        entries.push(read_entry(whole, cursor)?);
    }
    Some(AppendRequest { vote, prev_log_id, entries, leader_commit })
}

pub(super) fn put_append_reply(buffer: &mut Vec<u8>, reply: &AppendReply) {
    match reply {
        AppendReply::Success => buffer.push(SUCCESS),
        AppendReply::PartialSuccess(upto) => {
            buffer.push(PARTIAL_SUCCESS);
            put_maybe_log_id(buffer, upto.as_ref());
        }
        AppendReply::Conflict => buffer.push(CONFLICT),
        AppendReply::HigherVote(vote) => {
            buffer.push(HIGHER_VOTE);
            put_vote(buffer, vote);
        }
    }
}

pub(super) fn read_append_reply(cursor: &mut Cursor<'_>) -> Option<AppendReply> {
    Some(match cursor.u8()? {
        SUCCESS => AppendReply::Success,
        PARTIAL_SUCCESS => AppendReply::PartialSuccess(read_maybe_log_id(cursor)?),
        CONFLICT => AppendReply::Conflict,
        HIGHER_VOTE => AppendReply::HigherVote(read_vote(cursor)?),
        _ => return None,
    })
}

pub(super) fn put_vote_request(buffer: &mut Vec<u8>, request: &VoteRequest) {
    put_vote(buffer, &request.vote);
    put_maybe_log_id(buffer, request.last_log_id.as_ref());
    buffer.push(request.leadership_transfer.into());
}

pub(super) fn read_vote_request(cursor: &mut Cursor<'_>) -> Option<VoteRequest> {
    let mut request = VoteRequest::new(read_vote(cursor)?, read_maybe_log_id(cursor)?);
    request.leadership_transfer = read_bool(cursor)?;
    Some(request)
}

pub(super) fn put_vote_reply(buffer: &mut Vec<u8>, reply: &VoteReply) {
    put_vote(buffer, &reply.vote);
    put_maybe_log_id(buffer, reply.last_log_id.as_ref());
    buffer.push(reply.vote_granted.into());
}

pub(super) fn read_vote_reply(cursor: &mut Cursor<'_>) -> Option<VoteReply> {
    let (vote, last_log_id) = (read_vote(cursor)?, read_maybe_log_id(cursor)?);
    Some(VoteReply::new(vote, last_log_id, read_bool(cursor)?))
}

pub(super) fn put_transfer_request(buffer: &mut Vec<u8>, request: &TransferRequest) {
    put_vote(buffer, request.from_leader());
    put_varint(buffer, *request.to_node_id());
    put_maybe_log_id(buffer, request.last_log_id());
}

pub(super) fn read_transfer_request(cursor: &mut Cursor<'_>) -> Option<TransferRequest> {
    let (from, to) = (read_vote(cursor)?, cursor.varint()?);
    Some(TransferRequest::new(from, to, read_maybe_log_id(cursor)?))
}

pub(super) fn read_text<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    std::str::from_utf8(cursor.slice()?).ok()
}

pub(super) fn read_bool(cursor: &mut Cursor<'_>) -> Option<bool> {
    match cursor.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log_ids() -> impl Strategy<Value = LogId> {
        (any::<u64>(), any::<u64>(), any::<u64>())
            .prop_map(|(term, node, index)| LogId { leader_id: LeaderId::new(term, node), index })
    }

    fn memberships() -> impl Strategy<Value = Membership> {
        let voters = || proptest::collection::btree_set(any::<u64>(), 1..4);
        proptest::collection::vec(voters(), 1..3).prop_map(|configurations| {
            let nodes: BTreeMap<_, _> = configurations
                .iter()
                .flatten()
                .map(|&replica| (replica, NodeName(format!("node-{replica}"))))
                .collect();
            Membership::new(configurations, nodes).expect("every voter has a node")
        })
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(EntryPayload::Blank),
            any::<Vec<u8>>()
                .prop_map(|bytes| EntryPayload::Normal(Proposal::from_bytes(bytes.into()))),
            memberships().prop_map(EntryPayload::Membership),
        ];
        (log_ids(), payload).prop_map(|(log_id, payload)| Entry::new(log_id, payload))
    }

    fn reads_back<T: PartialEq + std::fmt::Debug>(
        value: &T,
        put: impl Fn(&mut Vec<u8>, &T),
        read: impl Fn(&Bytes, &mut Cursor<'_>) -> Option<T>,
    ) -> Result<(), TestCaseError> {
        let mut buffer = Vec::new();
        put(&mut buffer, value);
        let bytes = Bytes::from(buffer);
        let mut cursor = Cursor::new(&bytes);
        let found = read(&bytes, &mut cursor);
        prop_assert_eq!(found.as_ref(), Some(value));
        prop_assert!(cursor.is_empty());
        for end in 0..bytes.len() {
            let cut = bytes.slice(..end);
            prop_assert_eq!(read(&cut, &mut Cursor::new(&cut)), None);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn every_entry_reads_back(entry in entries()) {
            reads_back(&entry, put_entry, read_entry)?;
            let mut buffer = Vec::new();
            put_entry(&mut buffer, &entry);
            prop_assert!(buffer.len() <= entry_bytes(&entry));
        }

        #[test]
        fn every_vote_and_membership_reads_back(
            log_id in log_ids(), committed: bool, membership in memberships(),
        ) {
            let vote = Vote { leader_id: log_id.leader_id, committed };
            reads_back(&vote, put_vote, |_, cursor| read_vote(cursor))?;
            let stored = StoredMembership::new(Some(log_id), membership);
            reads_back(&stored, put_stored_membership, |_, cursor| read_stored_membership(cursor))?;
            let request = VoteRequest::new(vote, Some(log_id));
            reads_back(&request, put_vote_request, |_, cursor| read_vote_request(cursor))?;
            let reply = VoteReply::new(vote, None, committed);
            reads_back(&reply, put_vote_reply, |_, cursor| read_vote_reply(cursor))?;
            let transfer = TransferRequest::new(vote, 3, Some(log_id));
            reads_back(&transfer, put_transfer_request, |_, cursor| read_transfer_request(cursor))?;
            for reply in [
                AppendReply::Success,
                AppendReply::PartialSuccess(Some(log_id)),
                AppendReply::Conflict,
                AppendReply::HigherVote(vote),
            ] {
                reads_back(&reply, put_append_reply, |_, cursor| read_append_reply(cursor))?;
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let cursor = || Cursor::new(&bytes);
            let _ = read_append_request(&bytes, &mut cursor());
            let _ = read_entry(&bytes, &mut cursor());
            let _ = read_stored_membership(&mut cursor());
            let _ = read_transfer_request(&mut cursor());
        }
    }

    #[test]
    fn a_group_without_members_has_an_empty_membership() {
        let mut buffer = Vec::new();
        put_membership(&mut buffer, &Membership::default());
        assert_eq!(read_membership(&mut Cursor::new(&buffer)), Some(Membership::default()));
    }
}
