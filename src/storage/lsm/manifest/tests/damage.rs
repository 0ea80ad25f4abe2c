//! Damaged files: refused with file and offset and left as they were, or read as they were meant. Never another tree.

use super::*;
use crate::util::fs::read_file;

/// A finished story: its disk, and the state.
fn finished() -> (SimFileSystem, VersionEdit) {
    let fs = new_disk(1);
    let mut engine = Engine::create(&fs).expect("created");
    let mut told = Told::default();
    // The second one stays in this manifest as edits.
    engine.manifest.rewrite_bytes_min = REWRITE_BYTES_MIN;
    for number in 0..4 {
        engine.step(number, &mut told).expect("committed");
    }
    (fs, told.state.expect("committed"))
}

fn contents(fs: &SimFileSystem) -> Vec<(String, Vec<u8>)> {
    let read = |name: &String| read_file(fs, &path(name), 1 << 30).expect("read");
    names(fs).iter().map(|name| (name.clone(), read(name))).collect()
}

/// Either the damage is refused, naming the file, and nothing changes; or the state is what it was.
fn is_refused_or_harmless(fs: &SimFileSystem, expected: &VersionEdit, what: &str) -> bool {
    let before = contents(fs);
    match open(fs) {
        Ok(manifest) => {
            assert_eq!(&state(&manifest), expected, "{what}");
            false
        }
        Err(Error::Corruption { file, .. }) => {
            assert!(file.starts_with(DIR), "{what}: {}", file.display());
            assert_eq!(contents(fs), before, "{what}: what is refused stays as it is");
            true
        }
        Err(error) => panic!("{what}: {error:?}"),
    }
}

#[test]
fn every_flipped_bit_is_refused_or_harmless() {
    let (fs, expected) = finished();
    let manifest = open(&fs).expect("opened");
    let name = manifest.current.number.manifest_name();
    let mark = usize::try_from(manifest.current.end).expect("small") - MARK_BYTES;
    for file in [name.as_str(), CURRENT] {
        let length = read_file(&fs, &path(file), 1 << 20).expect("read").len();
        for at in 0..length.min(mark + 64) {
            for bit in 0..8 {
                let fs = fs.restart_killed();
                fs.corrupt(&path(file), at as u64, 1 << bit).expect("flipped");
                let refused = is_refused_or_harmless(&fs, &expected, &format!("{file} at {at}"));
                // The last mark vouches for the rest, and nothing for it.
                assert_eq!(refused, file == CURRENT || at < mark, "{file} at {at}");
            }
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused_and_left_alone() {
    let (fs, expected) = finished();
    let manifest = open(&fs).expect("opened");
    let name = path(&manifest.current.number.manifest_name());
    let end = manifest.current.end;
    drop(manifest);
    let whole = fs.open_write(&name).and_then(|file| file.size()).expect("there");
    for length in (0..end + 20).chain([whole - 1]) {
        let fs = fs.restart_killed();
        fs.open_write(&name).expect("opened").truncate(length).expect("cut");
        let before = contents(&fs);
        let error = open(&fs).expect_err("cut");
        let named = matches!(&error, Error::Corruption { file, .. } if *file == name);
        // A table that a lost edit removed is missing: damage as well.
        assert!(named || error.to_string().contains("missing"), "cut at {length}: {error}");
        assert_eq!(contents(&fs), before, "cut at {length}");
    }
    assert_eq!(state(&open(&fs).expect("opened")), expected);
}

#[test]
fn a_lost_file_is_refused_by_its_name() {
    let (fs, _) = finished();
    for name in names(&fs) {
        let fs = fs.restart_killed();
        fs.remove(&path(&name)).expect("removed");
        let left = names(&fs);
        match open(&fs).expect_err(&name) {
            Error::Corruption { file, offset: 0, .. } => assert_eq!(file, path(&name)),
            error => panic!("{name}: {error:?}"),
        }
        assert_eq!(names(&fs), left, "nothing is removed");
    }
}

#[test]
fn a_torn_tail_is_cleared_and_what_follows_is_written_in_its_place() {
    let (fs, expected) = finished();
    let manifest = open(&fs).expect("opened");
    let (name, end) = (path(&manifest.current.number.manifest_name()), manifest.current.end);
    drop(manifest);
    fs.open_write(&name).expect("opened").write_at(&[0xaa; 100], end).expect("written");
    let mut engine = Engine::open(&fs).expect("opened");
    assert_eq!(state(&engine.manifest), expected);
    let bytes = read_file(&fs, &name, u64::MAX).expect("read");
    assert!(bytes[usize::try_from(end).expect("small")..].iter().all(|&byte| byte == 0));
    let mut told = Told::default();
    engine.manifest.rewrite_bytes_min = REWRITE_BYTES_MIN;
    engine.step(5, &mut told).expect("committed");
    assert_eq!(Some(state(&open(&fs.restart(3)).expect("opened"))), told.state);
}
