//! Damage on the disk: refused with file and offset, or, where nothing later vouches for the place, taken for the torn
//! tail that it may be. Never another record than what was written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::util::fs::sim::SECTOR_BYTES;

/// A log of three segments, all durable. Returns the records, and how many of them the last group has.
fn sample(closed: bool) -> (SimFileSystem, Vec<Seen>, usize) {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let mut records = Vec::new();
    for n in 0..14u8 {
        let (owner, kind) = (Owner(u64::from(n % 3)), Kind(16 + n));
        let body = vec![n; 150 + usize::from(n)];
        let position = wal.append(owner, kind, &[&body]).expect("appended");
        records.push(Seen { position, owner, kind, body });
        if n % 4 == 3 {
            wal.commit(position, Level::Sync).expect("synced");
        }
    }
    wal.barrier(Level::Sync).expect("synced");
    if closed {
        wal.close().expect("closed");
    }
    (fs.restart(0), records, 2)
}

fn content(fs: &SimFileSystem) -> BTreeMap<PathBuf, Vec<u8>> {
    let read = |path: PathBuf| {
        let bytes = crate::util::fs::read_file(fs, &path, u64::MAX).expect("read");
        (path, bytes)
    };
    segment_files(fs).into_iter().map(read).collect()
}

/// Opens a damaged log: `Some` with what was seen, or `None` when it was refused, in one of `files` and without a
/// change.
fn opened_or_refused(fs: &SimFileSystem, files: &[PathBuf], context: &str) -> Option<Vec<Seen>> {
    let before = content(fs);
    match open(fs, 9) {
        Ok(opened) => Some(opened.seen),
        Err(Error::Corruption { file, .. }) => {
            assert!(files.contains(&file), "{context}: blames {}", file.display());
            assert_eq!(content(fs), before, "{context}: a refused log is left alone");
            None
        }
        Err(error) => panic!("{context}: {error}"),
    }
}

#[test]
fn a_flipped_bit_is_refused_or_costs_the_last_group_only() {
    for closed in [true, false] {
        let (fs, records, last_group) = sample(closed);
        let sure = if closed { records.len() } else { records.len() - last_group };
        let (mut refused, mut cut) = (0, 0);
        for (path, bytes) in content(&fs) {
            for (offset, mask) in
                (0..bytes.len() as u64).zip([0x01, 0x80, 0x10, 0xff].iter().cycle())
            {
                let damaged = fs.restart(0);
                damaged.corrupt(&path, offset, *mask).expect("a byte of the file");
                let context = format!("closed {closed}, {} at {offset}", path.display());
                match opened_or_refused(&damaged, std::slice::from_ref(&path), &context) {
                    None => refused += 1,
                    Some(seen) => {
                        assert_eq!(seen, records[..seen.len()], "{context}");
                        assert!(seen.len() >= sure, "{context}: {} records left", seen.len());
                        cut += usize::from(seen.len() < records.len());
                    }
                }
            }
        }
        assert!(refused > 2000 && (cut > 0) != closed, "refused {refused}, cut {cut}");
    }
}

#[test]
fn a_file_cut_short_anywhere_is_refused_or_costs_nothing() {
    for closed in [true, false] {
        let (fs, records, _) = sample(closed);
        for (path, bytes) in content(&fs) {
            for size in (0..bytes.len() as u64).rev() {
                let damaged = fs.restart(0);
                let file = damaged.open_write(&path).expect("opened");
                file.truncate(size).expect("cut");
                let context = format!("closed {closed}, {} cut to {size}", path.display());
                let files = segment_files(&fs);
                if let Some(seen) = opened_or_refused(&damaged, &files, &context) {
                    assert_eq!(seen, records, "{context}");
                }
            }
        }
    }
}

#[test]
fn a_lost_sector_is_refused_or_costs_the_last_group_only() {
    let (fs, records, last_group) = sample(false);
    let mut refused = 0;
    for (path, bytes) in content(&fs) {
        for start in (0..bytes.len()).step_by(SECTOR_BYTES) {
            let damaged = fs.restart(0);
            let zeros = vec![0; SECTOR_BYTES.min(bytes.len() - start)];
            let file = damaged.open_write(&path).expect("opened");
            file.write_at(&zeros, start as u64).expect("written");
            let context = format!("{} sector at {start}", path.display());
            match opened_or_refused(&damaged, &segment_files(&fs), &context) {
                Some(seen) => {
                    assert_eq!(seen, records[..seen.len()], "{context}");
                    assert!(seen.len() >= records.len() - last_group, "{context}");
                }
                None => refused += 1,
            }
        }
    }
    assert!(refused > 3, "{refused}");
}

#[test]
fn a_missing_segment_in_the_middle_is_refused_by_name() {
    let (fs, records, _) = sample(true);
    let files = segment_files(&fs);
    assert!(files.len() >= 3);
    for path in &files[1..files.len() - 1] {
        let damaged = fs.restart(0);
        damaged.remove(path).expect("removed");
        let error = open(&damaged, 9).err().expect("refused");
        let text = error.to_string();
        assert!(matches!(error, Error::Corruption { .. }) && text.contains("missing"), "{text}");
    }
    // The oldest ones look like a removal; an owner finds the gap by its own numbers.
    let damaged = fs.restart(0);
    damaged.remove(&files[0]).expect("removed");
    let seen = reopen(&damaged).seen;
    assert!(!seen.is_empty() && records.ends_with(&seen));
}

#[test]
fn a_log_without_its_newest_segment_is_refused_by_name() {
    let (fs, ..) = sample(true);
    let files = segment_files(&fs);
    let damaged = fs.restart(0);
    let newest = files.last().expect("some");
    damaged.remove(newest).expect("removed");
    let error = open(&damaged, 9).err().expect("refused");
    assert!(matches!(&error, Error::Corruption { file, .. } if file == newest), "{error}");
}

#[test]
fn swapped_and_foreign_segments_are_refused() {
    let (fs, ..) = sample(true);
    let files = segment_files(&fs);
    let other = Path::new(DIR).join("other");
    let damaged = fs.restart(0);
    damaged.rename(&files[0], &other).expect("renamed");
    damaged.rename(&files[1], &files[0]).expect("renamed");
    damaged.rename(&other, &files[1]).expect("renamed");
    let error = open(&damaged, 9).err().expect("refused");
    assert!(error.to_string().contains("this is segment 2 under the name of 1"), "{error}");
    // The second segment of another log: the right number and name, another salt, another end of the one before.
    let foreign = SimFileSystem::new(5);
    let wal = open(&foreign, 555).expect("opened").wal;
    (0..12).for_each(|_| _ = append(&wal, ONE, &[9; 90]));
    wal.close().expect("closed");
    let bytes = content(&foreign).remove(&files[1]).expect("it has one");
    let damaged = fs.restart(0);
    let file = damaged.open_write(&files[1]).expect("opened");
    file.truncate(0).expect("cut");
    file.write_at(&bytes, 0).expect("written");
    assert!(matches!(open(&damaged, 9), Err(Error::Corruption { .. })));
}

#[test]
fn a_value_that_holds_bytes_of_a_log_is_a_value() {
    // An old log with the same numbers and offsets, and records that vouch for everything.
    let (old, ..) = sample(true);
    let old: Vec<u8> = content(&old).into_values().flatten().collect();
    let fs = SimFileSystem::new(2);
    let options = Options { segment_bytes: 16 << 10, ..small(4321) };
    let wal = open_with(Arc::new(fs.clone()), Path::new(DIR), options).expect("opened").wal;
    // All eight alignments, so that one of them puts the old records where records begin.
    let bodies: Vec<Vec<u8>> =
        (0..8).map(|shift| [&vec![0; shift], old.as_slice()].concat()).collect();
    for body in &bodies {
        append(&wal, ONE, body);
    }
    wal.barrier(Level::Buffered).expect("written");
    drop(wal);
    let killed = reopen(&fs.restart_killed());
    assert!(killed.seen.iter().map(|seen| &seen.body).eq(&bodies));
    let mut torn = 0;
    for survival in 0..60 {
        let opened = reopen(&fs.restart(survival));
        assert!(opened.seen.iter().zip(&bodies).all(|(seen, body)| seen.body == *body));
        torn += usize::from(opened.recovery.torn.is_some());
    }
    assert!(torn > 10, "{torn}");
}

#[test]
fn a_value_of_what_looks_like_headers_does_not_make_the_search_endless() {
    let fs = SimFileSystem::new(2);
    let options = Options { segment_bytes: 64 << 10, ..small(3) };
    let wal = open_with(Arc::new(fs.clone()), Path::new(DIR), options).expect("opened").wal;
    let first = append(&wal, ONE, &[1; 2000]);
    wal.commit(first, Level::Sync).expect("synced");
    // Segment 1, and a length that is a plausible promise as well, at every place where a record could begin.
    let header = [1u32.to_le_bytes(), 800u32.to_le_bytes()].concat();
    let torn = append(&wal, ONE, &[&[0; 7], header.repeat(2000).as_slice()].concat());
    wal.commit(torn, Level::Buffered).expect("written");
    drop(wal);
    fs.corrupt(&segment_files(&fs)[0], u64::from(torn.offset), 1).expect("a byte of the file");
    let error = open(&fs, 9).err().expect("neither torn nor damaged for sure");
    assert!(error.to_string().contains("cannot be told"), "{error}");
}

#[test]
fn a_record_that_follows_where_the_next_segment_says_the_end_is_refused() {
    let (fs, records, _) = sample(true);
    let files = segment_files(&fs);
    let bytes = content(&fs).remove(&files[0]).expect("there");
    let last = records.iter().rfind(|seen| seen.position.segment == 1).expect("some");
    let (from, to) = (last.position.offset as usize, bytes.len());
    // The last record, once more behind itself: sound, but the next segment knows better.
    let copy = &bytes[from..to - (to - from) % 8];
    let damaged = fs.restart(0);
    let file = damaged.open_write(&files[0]).expect("opened");
    let end = bytes.iter().rposition(|&byte| byte != 0).expect("not empty") as u64;
    file.write_at(copy, (end + 1).next_multiple_of(8)).expect("written");
    assert!(matches!(open(&damaged, 9), Err(Error::Corruption { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_for_a_segment_are_judged_without_panic(
        name in 1u32..5,
        header: bool,
        bytes in proptest::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 0..600),
    ) {
        let (fs, records, _) = sample(true);
        let path = Path::new(DIR).join(segment::segment_name(name));
        let file = match fs.open_write(&path) {
            Ok(file) => file,
            Err(_) => fs.create(&path).expect("created"),
        };
        let offset = if header { u64::from(segment::SEGMENT_HEADER_BYTES) } else { 0 };
        file.write_at(&bytes, offset).expect("written");
        match open(&fs, 9) {
            Ok(opened) => prop_assert_eq!(&opened.seen[..], &records[..opened.seen.len()]),
            Err(Error::Corruption { .. } | Error::Invalid(_)) => {}
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }

    #[test]
    fn any_bytes_behind_a_header_are_judged_without_panic(
        words in proptest::collection::vec(prop_oneof![Just(1u32), Just(64), Just(0), Just(u32::MAX), any::<u32>()], 0..300),
    ) {
        let fs = SimFileSystem::new(1);
        reopen(&fs).wal.close().expect("closed");
        let path = &segment_files(&fs)[0];
        let file = fs.open_write(path).expect("opened");
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let behind = segment::SEGMENT_HEADER_BYTES + record::BEGIN_RECORD_BYTES;
        file.write_at(&bytes, u64::from(behind) + 32).expect("written");
        let opened = open(&fs, 9);
        prop_assert!(opened.is_ok_and(|opened| opened.seen.is_empty()), "nothing was ever promised there");
    }
}
