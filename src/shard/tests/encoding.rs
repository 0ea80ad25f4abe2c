//! The bytes that ARCHITECTURE.md shows of a Put: what is written here stands there.

use std::path::Path;

use super::*;
use crate::machine::Group;
use crate::storage::WriteBatch;
use crate::storage::lsm::{LsmEnvironment, LsmOptions};
use crate::util::fs::FileSystem as _;
use crate::util::fs::sim::SimFileSystem;

const TEXT: &str = r#"{"name": "John"}"#;

/// The batch of the first write of a shard.
fn batch(engine: &dyn StorageEngine) -> WriteBatch {
    let change = Change::Put {
        key: Key::new("user/1".to_owned()).expect("a key"),
        value: Value::Json(TEXT.into()),
        ttl: None,
        if_version: None,
    };
    let mut group = Group::new(engine, Version::ABSENT);
    let command = Command { change, request_id: None };
    group.apply(&command, Timestamp::from_millis(1000)).expect("applies");
    group.finish(Version::ABSENT).0
}

#[test]
fn a_puts_batch_and_record_are_those_that_the_architecture_shows() {
    let fs = SimFileSystem::new(1);
    let options = LsmOptions { threads: 0, log_segment_bytes: 4096, ..LsmOptions::new(1) };
    let environment = LsmEnvironment::open(Arc::new(fs.clone()), "/lsm", options).expect("opens");
    let engine = environment.open("shard-0").expect("opens");
    let batch = batch(&*engine);
    let version = 1u64.to_le_bytes();
    let expected = [
        &1000u64.to_le_bytes()[..],
        b"\x01\x07\x19",
        b"\x01user/1",
        b"\x01",
        &version,
        TEXT.as_bytes(),
        b"\x01\x02\x08",
        b"\0v",
        &version,
    ]
    .concat();
    assert_eq!((batch.encoded(), expected.len()), (&expected[..], 56));

    engine.write(&batch, Durability::Sync).expect("writes");
    let segment = fs.open(Path::new("/lsm/wal/0000000001.wal")).expect("the first one");
    let mut record = [0; 96];
    // Behind the header and the record that begins the segment.
    segment.read_exact_at(&mut record, 72).expect("it is there");
    let mut fields = Vec::new();
    fields.extend_from_slice(&64u32.to_le_bytes());
    fields.extend_from_slice(&1u32.to_le_bytes());
    // The beginning of the segment was not synced by itself.
    fields.extend_from_slice(&record[12..16]);
    fields.extend_from_slice(&1u64.to_le_bytes());
    fields.push(0x10);
    fields.extend_from_slice(&1u64.to_le_bytes());
    fields.extend_from_slice(batch.encoded());
    fields.resize(92, 0);
    assert_eq!(record[4..], fields);
}
