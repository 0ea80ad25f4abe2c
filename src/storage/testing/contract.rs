//! Sentences of the contract that a script cannot tell: durability, damage, limits, who holds what.

use std::fs;
use std::path::Path;

use super::{Home, Subject, files_below, on_each_engine, put, rows, value};
use crate::storage::{
    Direction, Durability, Error, KEY_BYTES_MAX, KeyRange, VALUE_BYTES_MAX, WriteBatch,
};
use crate::util::time::Timestamp;

on_each_engine!(
    second_environment_on_a_directory_is_refused,
    engine_is_open_as_long_as_one_of_its_views,
    barrier_makes_all_earlier_writes_durable,
    reopened_engine_claims_no_more_than_is_durable,
    what_a_killed_process_leaves_is_a_prefix,
    scan_shows_the_moment_of_its_call,
    large_values_are_whole_after_a_restart,
    value_over_the_limit_changes_nothing,
    many_entries_that_expire_at_once_are_gone_at_once,
    damaged_checkpoint_is_refused_or_whole,
    cut_checkpoint_is_refused,
    checkpoint_of_another_kind_is_refused,
);

fn barrier() -> WriteBatch {
    WriteBatch::new()
}

fn second_environment_on_a_directory_is_refused(subject: &'static Subject) {
    let mut home = Home::new(subject);
    if !subject.keeps_files {
        return;
    }
    let second = (subject.open)(&home.data()).err();
    assert!(
        matches!(&second, Some(Error::Locked { path }) if *path == home.data()),
        "{second:?} names the directory"
    );
    // An engine keeps the directory as well: it may still write.
    let engine = home.open("main");
    home.environment = None;
    assert!(matches!((subject.open)(&home.data()).err(), Some(Error::Locked { .. })));
    drop(engine);
    home.reopen();
}

fn engine_is_open_as_long_as_one_of_its_views(subject: &'static Subject) {
    let home = Home::new(subject);
    let engine = home.open("main");
    engine.write(&put(b"k", b"1"), Durability::None).expect("writes");
    let view = engine.view().expect("freezes");
    drop(engine);
    for refused in [
        home.environment().open("main").err(),
        home.environment().remove("main").err(),
        home.environment().install("main", Path::new("anywhere")).err(),
    ] {
        assert!(matches!(&refused, Some(Error::Invalid(_))), "{refused:?}");
    }
    assert_eq!(value(&*view, b"k").as_deref(), Some(&b"1"[..]));
    drop(view);
    home.environment().remove("main").expect("nobody has it");
}

fn barrier_makes_all_earlier_writes_durable(subject: &'static Subject) {
    let home = Home::new(subject);
    let engine = home.open("main");
    let mut newest = engine.durable();
    let levels = [Durability::None, Durability::Buffered, Durability::None];
    for (round, durability) in (0u8..).zip(levels) {
        let seqno = engine.write(&put(b"k", &[round]), durability).expect("writes");
        assert!(seqno > newest && engine.durable() <= seqno);
        newest = seqno;
    }
    assert_eq!(engine.write(&barrier(), Durability::Sync).expect("syncs"), newest);
    assert_eq!(engine.durable(), newest);
    // Nothing new: nothing to do, and the same answer.
    assert_eq!(engine.write(&barrier(), Durability::Sync).expect("is covered"), newest);

    // A synced write makes those before it durable too, an engine's flush as well.
    engine.write(&put(b"k", b"x"), Durability::None).expect("writes");
    let synced = engine.write(&put(b"l", b"x"), Durability::Sync).expect("syncs");
    assert_eq!(engine.durable(), synced);
    let newest = engine.write(&put(b"m", b"x"), Durability::None).expect("writes");
    engine.flush().expect("flushes");
    assert!(engine.durable() >= newest);
}

fn reopened_engine_claims_no_more_than_is_durable(subject: &'static Subject) {
    let home = Home::new(subject);
    let engine = home.open("main");
    let newest = engine.write(&put(b"k", b"1"), Durability::None).expect("writes");
    drop(engine);
    let engine = home.open("main");
    let claimed = engine.durable();
    if subject.keeps_files && claimed >= newest {
        // Then it must be in the files as they are now.
        let copy = copy_of(&home);
        let environment = (subject.open)(&copy).expect("opens");
        let engine = environment.open("main").expect("opens");
        assert_eq!(value(&*engine, b"k").as_deref(), Some(&b"1"[..]), "claimed to be durable");
    }
    assert_eq!(engine.write(&barrier(), Durability::Sync).expect("syncs"), newest);
    assert_eq!(engine.durable(), newest);
}

/// The environment's files as they are, which is what a process that is killed now leaves behind. Threads in the background may make and remove files meanwhile, so that
/// the copy is of no one moment: then it is made again.
fn copy_of(home: &Home) -> std::path::PathBuf {
    const TRIES_MAX: usize = 100;
    let (from, to) = (home.data(), home.beside("as-left"));
    for _ in 0..TRIES_MAX {
        let before = files_below(&from);
        copy_files(&from, &to);
        if files_below(&from) == before {
            return to;
        }
    }
    panic!("files came and went in each of {TRIES_MAX} tries");
}

fn copy_files(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).expect("creates");
    for directory in fs::read_dir(from).expect("lists").map(|entry| entry.expect("entry").path()) {
        if directory.is_dir() {
            let name = directory.strip_prefix(from).expect("it lies below");
            fs::create_dir_all(to.join(name)).expect("creates");
            for inner in fs::read_dir(&directory).expect("lists") {
                let path = inner.expect("an entry").path();
                if path.is_dir() {
                    fs::create_dir_all(to.join(path.strip_prefix(from).expect("below")))
                        .expect("creates");
                }
            }
        }
    }
    for file in files_below(from) {
        let name = file.strip_prefix(from).expect("it lies below").to_owned();
        // Files that come and go are the engine's own business.
        let _ = fs::copy(&file, to.join(name));
    }
}

fn what_a_killed_process_leaves_is_a_prefix(subject: &'static Subject) {
    if !subject.keeps_files {
        return;
    }
    let home = Home::new(subject);
    let engines = [home.open("one"), home.open("two")];
    // What each engine held after each of its writes; the number of the write is a value in it.
    let mut histories = [vec![Vec::new()], vec![Vec::new()]];
    let mut safe = [0, 0];
    for round in 0..60u8 {
        let which = usize::from(round % 5 % 2);
        let number = histories[which].len() as u64;
        let mut batch = put(b"number", &number.to_le_bytes());
        batch.put(&[&[b'k', round % 11]], &[&vec![round; 700]], None);
        batch.delete(&[&[b'k', round % 7]]);
        let durability = match round % 9 {
            3 => Durability::Sync,
            6 => Durability::Buffered,
            _ => Durability::None,
        };
        engines[which].write(&batch, durability).expect("writes");
        histories[which].push(rows(&*engines[which]));
        if durability != Durability::None {
            safe[which] = histories[which].len() - 1;
        }
        // At once after a write that must survive: a later one may carry it to the disk by chance.
        if durability == Durability::None && round % 9 != 8 {
            continue;
        }
        let copy = copy_of(&home);
        let left = (subject.open)(&copy).expect("what is left opens");
        for (which, name) in ["one", "two"].into_iter().enumerate() {
            let found = rows(&*left.open(name).expect("it was created durably"));
            let survived = histories[which].iter().position(|state| *state == found);
            let survived = survived.unwrap_or_else(|| panic!("{name} is no state there was"));
            assert!(survived >= safe[which], "{name}: {survived} is before {}", safe[which]);
        }
    }
}

fn scan_shows_the_moment_of_its_call(subject: &'static Subject) {
    let home = Home::new(subject);
    let engine = home.open("main");
    let key = |number: u32| format!("{number:04}").into_bytes();
    for number in 0..500 {
        engine.write(&put(&key(number), b"old"), Durability::None).expect("writes");
    }
    for direction in [Direction::Forward, Direction::Reverse] {
        let before = rows(&*engine);
        let mut scan = engine.scan(KeyRange::ALL, direction).expect("scans");
        let mut seen = Vec::new();
        for number in 0.. {
            // Ahead of the scan and behind it, in steps of its own.
            let mut batch = put(&key(number * 13 % 500), b"new");
            batch.delete(&[&key(number * 29 % 500)]);
            batch.put(&[b"x", &key(number)], &[b"x"], None);
            engine.write(&batch, Durability::None).expect("writes");
            let Some(entry) = scan.next().expect("reads") else { break };
            seen.push((entry.key.to_vec(), entry.value.to_vec(), None));
        }
        if direction == Direction::Reverse {
            seen.reverse();
        }
        assert_eq!(seen, before, "{direction:?}");
    }
}

fn large_values_are_whole_after_a_restart(subject: &'static Subject) {
    let mut home = Home::new(subject);
    let engine = home.open("main");
    let large = |seed: u8| -> Vec<u8> {
        (0..300_000u32).map(|at| (at / 7).to_le_bytes()[0] ^ seed).collect()
    };
    for seed in 0..4 {
        engine.write(&put(&[seed], &large(seed)), Durability::None).expect("writes");
    }
    engine.write(&put(&[1], &large(9)), Durability::Sync).expect("writes");
    engine.write(&put(&[2], b"small"), Durability::Sync).expect("writes");
    drop(engine);
    home.reopen();
    let engine = home.open("main");
    for (key, wanted) in [(0, large(0)), (1, large(9)), (2, b"small".to_vec()), (3, large(3))] {
        assert!(value(&*engine, &[key]).as_ref() == Some(&wanted), "value {key}");
    }
}

fn value_over_the_limit_changes_nothing(subject: &'static Subject) {
    let home = Home::new(subject);
    let engine = home.open("main");
    let mut batch = put(b"small", b"1");
    batch.put(&[b"large"], &[&vec![7; VALUE_BYTES_MAX + 1]], None);
    let error = engine.write(&batch, Durability::None).expect_err("over the limit").to_string();
    assert!(error.contains("value") && error.contains(&VALUE_BYTES_MAX.to_string()), "{error}");
    // Two that are allowed each make a batch that is not.
    let half = vec![7; VALUE_BYTES_MAX];
    let mut batch = put(b"one", &half);
    batch.put(&[b"two"], &[&half], None);
    let error = engine.write(&batch, Durability::None).expect_err("over the limit").to_string();
    assert!(error.contains("batch"), "{error}");
    let long = vec![b'k'; KEY_BYTES_MAX + 1];
    for refused in [put(&long, b""), {
        let mut batch = WriteBatch::new();
        batch.delete(&[&long]);
        batch
    }] {
        let error = engine.write(&refused, Durability::None).expect_err("over the limit");
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
    assert_eq!(rows(&*engine), []);
    // Reads of what cannot be there are no errors.
    assert_eq!(value(&*engine, &vec![b'k'; 100_000]), None);
}

fn many_entries_that_expire_at_once_are_gone_at_once(subject: &'static Subject) {
    let home = Home::new(subject);
    let engine = home.open("main");
    let at = Timestamp::from_millis;
    let mut batch = WriteBatch::new();
    for number in 0..3_500u32 {
        batch.put(&[&number.to_be_bytes()], &[b"v"], Some(at(10)));
    }
    batch.put(&[b"kept"], &[b"v"], Some(at(11)));
    engine.write(&batch, Durability::None).expect("writes");
    let view = engine.view().expect("freezes");
    let mut clock = WriteBatch::new();
    clock.advance_clock(at(10));
    engine.write(&clock, Durability::None).expect("writes");
    let kept = [(b"kept".to_vec(), b"v".to_vec(), Some(11))];
    assert_eq!(rows(&*engine), kept, "whatever is reclaimed already");
    assert_eq!(engine.next_expiry(), Some(at(11)));
    assert_eq!(rows(&*view).len(), 3_501, "a view keeps its clock");
    engine.compact(KeyRange::ALL).expect("compacts");
    assert_eq!(rows(&*engine), kept);
    assert_eq!(rows(&*view).len(), 3_501);
    if subject.counts_exactly {
        assert_eq!(engine.status().keys, 1, "all is reclaimed");
    }
}

/// A checkpoint of some entries, in `home`'s `name`.
fn checkpoint(home: &Home, name: &str) -> Vec<super::Row> {
    let engine = home.open("source");
    let mut batch = put(b"", b"empty");
    batch.put(&[b"a"], &[b"1"], None);
    batch.put(&[b"b"], &[b"2"], Some(Timestamp::from_millis(50)));
    batch.put(&[b"\0r"], &[b"3"], None);
    batch.advance_clock(Timestamp::from_millis(7));
    engine.write(&batch, Durability::None).expect("writes");
    engine.checkpoint(&home.beside(name)).expect("is copied");
    rows(&*engine)
}

/// Installs what lies in `copy` over an engine that holds something else: it is refused with an error that names `file` and
/// leaves that as it was, or it is `whole`.
fn install_damaged(home: &Home, copy: &Path, file: &Path, whole: &[super::Row], what: &str) {
    if let Err(error) = home.environment().install("target", copy) {
        assert!(error.to_string().contains(&*file.to_string_lossy()), "{what}: {error}");
        let kept = rows(&*home.open("target"));
        assert_eq!(kept, [(b"kept".to_vec(), b"1".to_vec(), None)], "{what}");
        return;
    }
    let engine = home.open("target");
    assert_eq!((rows(&*engine).as_slice(), engine.clock().as_millis()), (whole, 7), "{what}");
    engine.write(&delete_all(), Durability::None).expect("writes");
    engine.write(&put(b"kept", b"1"), Durability::None).expect("writes");
}

fn delete_all() -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.delete_range(b"", &[0xff; KEY_BYTES_MAX + 1]);
    batch
}

fn damaged_checkpoint_is_refused_or_whole(subject: &'static Subject) {
    let home = Home::new(subject);
    let whole = checkpoint(&home, "copy");
    home.open("target").write(&put(b"kept", b"1"), Durability::None).expect("writes");
    let copy = home.beside("copy");
    for file in files_below(&copy) {
        let bytes = fs::read(&file).expect("reads");
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1 << (at % 8);
            fs::write(&file, bent).expect("writes");
            let what = format!("{} byte {at}", file.display());
            install_damaged(&home, &copy, &file, &whole, &what);
        }
        fs::write(&file, bytes).expect("writes");
    }
    home.environment().install("target", &copy).expect("it is whole again");
    assert_eq!(rows(&*home.open("target")), whole);
}

fn cut_checkpoint_is_refused(subject: &'static Subject) {
    let home = Home::new(subject);
    checkpoint(&home, "copy");
    home.open("target").write(&put(b"kept", b"1"), Durability::None).expect("writes");
    let copy = home.beside("copy");
    for file in files_below(&copy) {
        let bytes = fs::read(&file).expect("reads");
        for length in 0..bytes.len() {
            fs::write(&file, &bytes[..length]).expect("writes");
            let error = home.environment().install("target", &copy).expect_err("it is cut");
            assert!(
                matches!(&error, Error::Corruption { file: named, .. } if *named == file),
                "{error}"
            );
        }
        fs::write(&file, bytes).expect("writes");
    }
    assert_eq!(rows(&*home.open("target")), [(b"kept".to_vec(), b"1".to_vec(), None)]);
}

fn checkpoint_of_another_kind_is_refused(subject: &'static Subject) {
    for other in [&super::MEMORY, &super::SLED] {
        if other.kind == subject.kind {
            continue;
        }
        let (home, foreign) = (Home::new(subject), Home::new(other));
        checkpoint(&foreign, "copy");
        let error = home.environment().install("main", &foreign.beside("copy"));
        let error = error.expect_err("another kind").to_string();
        assert!(error.contains(subject.kind), "{error}");
        assert_eq!(home.environment().list().expect("lists"), [""; 0]);
    }
}
