//! A [`VersionEdit`] as bytes: items one after the other, each with the number of its kind in front. Numbers of kinds
//! are never given another meaning; an unknown one is damage, because leaving an item out would change the tree.
//!
//! | item | bytes |
//! |---|---|
//! | 1, flushed | seqno, clock in milliseconds, position in the log: a varint each |
//! | 2, removed table | level, number: a varint each |
//! | 3, added table | level, number: a varint each; uid: 8 bytes; size: a varint; varint length, then the properties as in the table |

use crate::storage::Seqno;
use crate::storage::lsm::files::FileNumber;
use crate::storage::lsm::table::{Properties, TableMetadata, TableUid};
use crate::storage::lsm::version::{AddedTable, Flushed, VersionEdit};
use crate::util::coding::{Cursor, put_slice, put_varint};
use crate::util::time::Timestamp;
use crate::wal::Position;

const FLUSHED: u8 = 1;
const REMOVED: u8 = 2;
const ADDED: u8 = 3;

/// Appends the edit to `out`.
pub(in crate::storage::lsm) fn encode(edit: &VersionEdit, out: &mut Vec<u8>) {
    if let Some(Flushed { seqno, clock, log }) = edit.flushed {
        out.push(FLUSHED);
        put_varint(out, seqno.0);
        put_varint(out, clock.as_millis());
        put_varint(out, log.as_u64());
    }
    for &(level, number) in &edit.removed {
        out.push(REMOVED);
        put_varint(out, level as u64);
        put_varint(out, number.0);
    }
    let mut properties = Vec::new();
    for AddedTable { level, number, metadata } in &edit.added {
        out.push(ADDED);
        put_varint(out, *level as u64);
        put_varint(out, number.0);
        out.extend_from_slice(&metadata.uid.0.to_le_bytes());
        put_varint(out, metadata.size_bytes);
        properties.clear();
        metadata.properties.encode(&mut properties);
        put_slice(out, &properties);
    }
}

/// Reads an edit; says what is wrong with it.
pub(in crate::storage::lsm) fn decode(body: &[u8]) -> Result<VersionEdit, String> {
    let mut edit = VersionEdit::default();
    let mut cursor = Cursor::new(body);
    while let Some(kind) = cursor.u8() {
        let cut = || format!("an item of kind {kind} is cut");
        match kind {
            FLUSHED => edit.flushed = Some(decode_flushed(&mut cursor).ok_or_else(cut)?),
            REMOVED => edit.removed.push(decode_table(&mut cursor).ok_or_else(cut)?),
            ADDED => {
                let (level, number) = decode_table(&mut cursor).ok_or_else(cut)?;
                let uid = TableUid(cursor.u64().ok_or_else(cut)?);
                let size_bytes = cursor.varint().ok_or_else(cut)?;
                let properties = Properties::decode(cursor.slice().ok_or_else(cut)?)?;
                let metadata = TableMetadata { uid, size_bytes, properties };
                edit.added.push(AddedTable { level, number, metadata });
            }
            _ => return Err(format!("an item of the unknown kind {kind}")),
        }
    }
    Ok(edit)
}

fn decode_flushed(cursor: &mut Cursor<'_>) -> Option<Flushed> {
    Some(Flushed {
        seqno: Seqno(cursor.varint()?),
        clock: Timestamp::from_millis(cursor.varint()?),
        log: Position::from_u64(cursor.varint()?),
    })
}

fn decode_table(cursor: &mut Cursor<'_>) -> Option<(usize, FileNumber)> {
    let level = usize::try_from(cursor.varint()?).ok()?;
    Some((level, FileNumber(cursor.varint()?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn added(level: usize, number: u64) -> AddedTable {
        let properties =
            Properties { smallest: b"a".to_vec(), entries: number, ..Properties::default() };
        let metadata = TableMetadata { uid: TableUid(!number), size_bytes: 1 << 33, properties };
        AddedTable { level, number: FileNumber(number), metadata }
    }

    proptest! {
        #[test]
        fn every_edit_reads_back(
            tables in proptest::collection::vec((0..7usize, any::<u64>()), 0..5),
            removed in proptest::collection::vec((0..7usize, any::<u64>()), 0..5),
            flushed in proptest::option::of((any::<u64>(), any::<u64>(), any::<u64>())),
        ) {
            let edit = VersionEdit {
                added: tables.into_iter().map(|(level, number)| added(level, number)).collect(),
                removed: removed.into_iter().map(|(at, number)| (at, FileNumber(number))).collect(),
                flushed: flushed.map(|(seqno, clock, log)| Flushed {
                    seqno: Seqno(seqno),
                    clock: Timestamp::from_millis(clock),
                    log: Position::from_u64(log),
                }),
            };
            let mut bytes = Vec::new();
            encode(&edit, &mut bytes);
            prop_assert_eq!(decode(&bytes), Ok(edit));
        }

        #[test]
        fn any_bytes_are_refused_or_decoded(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn an_edit_cut_anywhere_but_between_items_is_refused() {
        let flushed = Some(Flushed { seqno: Seqno(300), ..Flushed::default() });
        let removed = vec![(2, FileNumber(7))];
        let edit = VersionEdit { added: vec![added(3, 9)], removed, flushed };
        let mut bytes = Vec::new();
        encode(&edit, &mut bytes);
        let whole = (0..bytes.len()).filter(|&end| decode(&bytes[..end]).is_ok());
        // Before each item.
        assert_eq!(whole.collect::<Vec<_>>(), [0, 5, 8]);
        assert_eq!(decode(&[4]), Err("an item of the unknown kind 4".to_owned()));
    }
}
