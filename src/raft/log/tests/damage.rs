//! Logs that are not as they were written: refused with file and offset, and nothing is made up for what is missing.

use super::super::record::{ENTRIES, FORGET, STATE, TRUNCATE, encode_entries, encode_truncate};
use super::*;
use crate::util::fs::FileSystem as _;
use crate::wal::Kind;

/// A log of these records, written past the store: the owner, the kind and the body of each.
fn written(records: &[(u64, Kind, Vec<u8>)]) -> io::Result<LogStore> {
    let fs = SimFileSystem::new(1);
    let visit = |_: RecordRef<'_>| Ok::<_, wal::Error>(());
    let (wal, _) = Wal::open(Arc::new(fs.clone()), DIR, small(1).wal(), visit).expect("opened");
    for (owner, kind, body) in records {
        wal.append(Owner(*owner), *kind, &[body]).expect("appended");
    }
    wal.close().expect("closed");
    open(&fs)
}

fn row(indexes: std::ops::Range<u64>) -> (u64, Kind, Vec<u8>) {
    let entries: Vec<_> = indexes.map(|index| entry(1, index, 10)).collect();
    let (_, body) = encode_entries(&entries).remove(0);
    (1, ENTRIES, body)
}

#[test]
fn records_that_do_not_decode_or_do_not_follow_are_refused_with_file_and_offset() {
    let cases = [
        (vec![row(0..2), (1, ENTRIES, vec![1, 2, 3])], "no record of a row of entries"),
        (vec![row(0..2), (1, STATE, vec![2])], "no record of a state"),
        (vec![row(0..2), (1, TRUNCATE, vec![])], "no record of a truncation"),
        (vec![row(0..2), (1, FORGET, vec![0])], "no record of a removal"),
        (vec![row(0..2), (1, Kind(20), vec![])], "kind 20, which this program does not know"),
        (vec![row(0..2), (1 << 32, ENTRIES, vec![])], "which is no group"),
        (vec![row(0..2), row(3..4)], "group 1: entries from index 3 on, where those from 2 on"),
        (vec![row(0..2), (1, TRUNCATE, encode_truncate(7))], "cut off from 7 on"),
        (vec![row(1..4)], "begins with entry 0"),
    ];
    for (records, complaint) in cases {
        let error = written(&records).expect_err("refused");
        let text = error.to_string();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{text}");
        assert!(text.contains(complaint), "{text}");
        assert!(text.contains("corruption in /log/0000000001.wal at offset "), "{text}");
    }
    written(&[row(0..2), row(2..4), (2, FORGET, vec![])]).expect("sound");
}

#[test]
fn a_log_whose_oldest_segment_is_missing_is_refused() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    drop(filled(&store, GroupId(1), 0..100));
    store.close().expect("closed");
    fs.remove(&std::path::Path::new(DIR).join("0000000001.wal")).expect("removed");
    let error = open(&fs).expect_err("refused");
    assert!(
        error.to_string().contains("begins with entry 0, of which there is no record"),
        "{error}"
    );
}

#[test]
fn a_damaged_entry_fails_the_reads_that_need_it_and_no_others() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    let mut log = filled(&store, GroupId(1), 0..60);
    let position = log.state().index.position(10).expect("there is one");
    let file = position.file_in(std::path::Path::new(DIR));
    fs.corrupt(&file, position.offset() + 40, 1).expect("damaged");
    let error = now(log.try_get_log_entries(0..)).expect_err("damaged");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let place = format!("corruption in {} at offset {}", file.display(), position.offset());
    assert!(error.to_string().contains(&place), "{error}");
    assert!(now(log.try_get_log_entries(10..11)).is_err());
    assert_eq!(now(log.try_get_log_entries(0..10)).expect("sound").len(), 10);
    assert_eq!(now(log.try_get_log_entries(11..)).expect("sound").len(), 49);
    let flushed = append(&log, vec![entry(1, 60, 1)]).expect("appended");
    done(&store, flushed).expect("the log goes on");
}

#[test]
fn entries_that_would_leave_a_hole_are_refused() {
    let store = open(&SimFileSystem::new(1)).expect("opened");
    let mut log = filled(&store, GroupId(1), 0..3);
    let refused = |entries: Vec<crate::raft::types::Entry>| {
        let error = append(&log, entries).err().expect("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    };
    refused(vec![entry(1, 4, 1)]);
    refused(vec![entry(1, 2, 1)]);
    refused(vec![entry(1, 3, 1), entry(1, 5, 1)]);
    now(log.purge(id(1, 9))).expect("purged");
    let refused = |index| append(&log, vec![entry(1, index, 1)]).is_err();
    assert!(refused(3) && refused(11) && !refused(10));
    let error = now(log.durable(11)).expect_err("not there");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    now(log.durable(9)).expect("purged");
}

#[test]
fn one_directory_has_one_log() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    let error = open(&fs).expect_err("taken");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    let log = store.group(GroupId(1));
    store.close().expect("durable");
    assert!(open(&fs).is_err(), "a handle is left");
    drop(log);
    open(&fs).expect("free");
}
