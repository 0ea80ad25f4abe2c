//! The simulated file system keeps its own contract: it loses what was not synced, and only that.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::*;
use crate::util::fs::{is_disk_full, is_out_of_handles, read_file, replace_file};

const SEEDS: u64 = 300;

fn path(name: &str) -> PathBuf {
    Path::new("/data").join(name)
}

/// A file system with an empty, durable `/data`.
fn new_fs() -> SimFileSystem {
    let fs = SimFileSystem::new(1);
    fs.create_dir_all(Path::new("/data")).expect("created");
    fs.sync_dir(Path::new("/")).expect("synced");
    fs
}

fn read(fs: &SimFileSystem, name: &str) -> io::Result<Vec<u8>> {
    read_file(fs, &path(name), u64::MAX)
}

/// A durable file `a` of four sectors of ones.
fn with_durable_file() -> (SimFileSystem, Arc<dyn File>) {
    let fs = new_fs();
    let file = fs.create(&path("a")).expect("created");
    file.write_at(&[1; 4 * SECTOR_BYTES], 0).expect("written");
    file.sync_data().expect("synced");
    fs.sync_dir(Path::new("/data")).expect("synced");
    (fs, file)
}

/// All the outcomes of a power loss over many seeds, as `observe` sees them.
fn outcomes<T: Ord>(fs: &SimFileSystem, observe: impl Fn(&SimFileSystem) -> T) -> BTreeSet<T> {
    (0..SEEDS).map(|seed| observe(&fs.restart(seed))).collect()
}

#[test]
fn what_was_synced_survives_every_power_loss() {
    let (fs, _file) = with_durable_file();
    let seen = outcomes(&fs, |fs| read(fs, "a").expect("read"));
    assert_eq!(seen, BTreeSet::from([vec![1; 4 * SECTOR_BYTES]]));
}

#[test]
fn an_unsynced_overwrite_is_kept_lost_or_torn_by_sector() {
    let (fs, file) = with_durable_file();
    file.write_at(&[2; 2 * SECTOR_BYTES], SECTOR_BYTES as u64).expect("written");
    let seen = outcomes(&fs, |fs| read(fs, "a").expect("read"));
    let sector = |bytes: &[u8], index: usize| -> BTreeSet<u8> {
        bytes[index * SECTOR_BYTES..][..SECTOR_BYTES].iter().copied().collect()
    };
    let pairs: BTreeSet<_> =
        seen.iter().map(|bytes| (sector(bytes, 1), sector(bytes, 2))).collect();
    // Each of the two sectors: all old, all new, or a mixture; every combination comes up.
    assert_eq!(pairs.len(), 9, "{pairs:?}");
    for bytes in &seen {
        assert_eq!(sector(bytes, 0), BTreeSet::from([1]), "an untouched sector stays");
        assert_eq!(sector(bytes, 3), BTreeSet::from([1]), "an untouched sector stays");
    }
}

#[test]
fn an_unsynced_size_is_kept_lost_or_caught_between() {
    let (fs, file) = with_durable_file();
    let (old, new) = (4 * SECTOR_BYTES, 4 * SECTOR_BYTES + 1000);
    file.write_at(&[2; 1000], old as u64).expect("written");
    let sizes = outcomes(&fs, |fs| read(fs, "a").expect("read").len());
    assert!(sizes.contains(&old) && sizes.contains(&new), "{sizes:?}");
    assert!(sizes.iter().any(|&size| size > old && size < new), "{sizes:?}");
    assert!(sizes.iter().all(|&size| (old..=new).contains(&size)), "{sizes:?}");
}

#[test]
fn a_sync_makes_the_size_durable_too() {
    let (fs, file) = with_durable_file();
    file.allocate(10_000).expect("allocated");
    file.sync_data().expect("synced");
    file.truncate(700).expect("cut");
    file.sync_data().expect("synced");
    let seen = outcomes(&fs, |fs| read(fs, "a").expect("read"));
    assert_eq!(seen, BTreeSet::from([vec![1; 700]]));
}

#[test]
fn an_allocated_file_reads_as_zeros() {
    let fs = new_fs();
    let file = fs.create(&path("a")).expect("created");
    file.allocate(3000).expect("allocated");
    file.write_at(b"x", 2000).expect("written");
    let mut expected = vec![0; 3000];
    expected[2000] = b'x';
    assert_eq!(read(&fs, "a").expect("read"), expected);
    file.truncate(100).expect("cut");
    file.truncate(3000).expect("grown");
    assert_eq!(read(&fs, "a").expect("read"), vec![0; 3000], "what was cut does not come back");
}

#[test]
fn a_new_name_is_durable_only_after_the_directory_was_synced() {
    let fs = new_fs();
    let file = fs.create(&path("a")).expect("created");
    file.write_at(b"content", 0).expect("written");
    file.sync_data().expect("synced");
    let before = outcomes(&fs, |fs| fs.list(Path::new("/data")).expect("listed"));
    assert_eq!(before, BTreeSet::from([vec![], vec!["a".to_owned()]]));
    fs.sync_dir(Path::new("/data")).expect("synced");
    let after = outcomes(&fs, |fs| read(fs, "a").expect("read"));
    assert_eq!(after, BTreeSet::from([b"content".to_vec()]));
}

#[test]
fn a_removed_file_may_come_back_until_the_directory_was_synced() {
    let (fs, _file) = with_durable_file();
    fs.remove(&path("a")).expect("removed");
    assert_eq!(outcomes(&fs, |fs| read(fs, "a").is_ok()), BTreeSet::from([false, true]));
    fs.sync_dir(Path::new("/data")).expect("synced");
    assert_eq!(outcomes(&fs, |fs| read(fs, "a").is_ok()), BTreeSet::from([false]));
}

#[test]
fn a_rename_leaves_the_old_or_the_new_target() {
    let (fs, _file) = with_durable_file();
    let new = fs.create(&path("b")).expect("created");
    new.write_at(b"new", 0).expect("written");
    new.sync_data().expect("synced");
    fs.sync_dir(Path::new("/data")).expect("synced");
    fs.rename(&path("b"), &path("a")).expect("renamed");
    let seen = outcomes(&fs, |fs| (read(fs, "a").expect("there").len(), read(fs, "b").is_ok()));
    assert_eq!(seen, BTreeSet::from([(3, false), (4 * SECTOR_BYTES, true)]));
}

#[test]
fn a_rename_before_the_sync_of_its_content_can_lose_it() {
    let (fs, _file) = with_durable_file();
    let new = fs.create(&path("b")).expect("created");
    new.write_at(b"new", 0).expect("written");
    fs.rename(&path("b"), &path("a")).expect("renamed");
    fs.sync_dir(Path::new("/data")).expect("synced");
    let seen = outcomes(&fs, |fs| read(fs, "a").expect("there"));
    assert!(seen.contains(b"new".as_slice()) && seen.contains(b"".as_slice()), "{seen:?}");
}

#[test]
fn changes_of_names_may_survive_out_of_order() {
    let fs = new_fs();
    for name in ["a", "b"] {
        fs.create(&path(name)).expect("created");
    }
    let seen = outcomes(&fs, |fs| fs.list(Path::new("/data")).expect("listed"));
    assert_eq!(seen.len(), 4, "none, each alone, both: {seen:?}");
}

#[test]
fn a_rename_between_directories_is_whole_after_the_sync_of_either() {
    let (fs, _file) = with_durable_file();
    fs.create_dir_all(Path::new("/other/deep")).expect("created");
    fs.sync_dir(Path::new("/")).expect("synced");
    fs.sync_dir(Path::new("/other")).expect("synced");
    fs.rename(&path("a"), Path::new("/other/deep/b")).expect("renamed");
    fs.sync_dir(Path::new("/other/deep")).expect("synced");
    let seen = outcomes(&fs, |fs| {
        let moved = fs.exists(Path::new("/other/deep/b")).expect("looked");
        (fs.exists(&path("a")).expect("looked"), moved)
    });
    assert_eq!(seen, BTreeSet::from([(false, true)]));
}

#[test]
fn a_directory_is_renamed_with_what_is_in_it() {
    let (fs, _file) = with_durable_file();
    fs.rename(Path::new("/data"), Path::new("/moved")).expect("renamed");
    assert_eq!(fs.list(Path::new("/moved")).expect("listed"), ["a"]);
    fs.sync_dir(Path::new("/")).expect("synced");
    let seen = outcomes(&fs, |fs| fs.list(Path::new("/")).expect("listed"));
    assert_eq!(seen, BTreeSet::from([vec!["moved".to_owned()]]));
    let error = fs.remove_dir(Path::new("/moved")).expect_err("not empty");
    assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty);
}

#[test]
fn a_hard_link_keeps_the_content_when_the_first_name_goes() {
    let (fs, _file) = with_durable_file();
    fs.hard_link(&path("a"), &path("b")).expect("linked");
    fs.remove(&path("a")).expect("removed");
    fs.sync_dir(Path::new("/data")).expect("synced");
    let seen = outcomes(&fs, |fs| read(fs, "b").expect("read").len());
    assert_eq!(seen, BTreeSet::from([4 * SECTOR_BYTES]));
}

#[test]
fn a_killed_process_loses_nothing() {
    let fs = new_fs();
    let file = fs.create(&path("a")).expect("created");
    file.write_at(b"unsynced", 0).expect("written");
    fs.crash_now();
    assert_eq!(read(&fs.restart_killed(), "a").expect("read"), b"unsynced");
}

#[test]
fn after_the_crash_every_call_fails_until_the_restart() {
    let (fs, file) = with_durable_file();
    fs.crash_at(fs.steps() + 1);
    file.write_at(&[2], 0).expect("the last step");
    file.sync_data().expect_err("the crash");
    assert!(fs.crashed());
    file.read_at(&mut [0], 0).expect_err("dead");
    fs.list(Path::new("/")).expect_err("dead");
    fs.exists(&path("a")).expect_err("dead");
    let next = fs.restart(0);
    assert!(read(&next, "a").is_ok());
}

#[test]
fn replace_file_cut_at_every_step_leaves_old_or_new() {
    let mut seen = BTreeSet::new();
    for step in 0.. {
        let fs = new_fs();
        replace_file(&fs, Path::new("/data"), "CURRENT", b"old").expect("replaced");
        fs.crash_at(fs.steps() + step);
        let done = replace_file(&fs, Path::new("/data"), "CURRENT", b"newer").is_ok();
        for seed in 0..SEEDS {
            let content = read(&fs.restart(seed), "CURRENT").expect("never missing");
            let acceptable = content == b"newer" || (!done && content == b"old");
            assert!(acceptable, "step {step} seed {seed}: {content:?}\n{}", fs.log_text());
            seen.insert(content);
        }
        if done {
            break;
        }
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn a_failed_sync_is_never_made_good_by_a_later_one() {
    let (fs, file) = with_durable_file();
    file.write_at(&[2; SECTOR_BYTES], 0).expect("written");
    fs.inject(Fault::next(Operation::Sync, "a", Effect::Io));
    file.sync_data().expect_err("injected");
    file.sync_data().expect("the lie");
    assert_eq!(fs.faults_struck(), 1);
    assert_eq!(read(&fs, "a").expect("read")[0], 2, "it still reads back");
    let seen = outcomes(&fs, |fs| read(fs, "a").expect("read")[0]);
    assert_eq!(seen, BTreeSet::from([1, 2]));
    // Writing it again does help.
    file.write_at(&[2; SECTOR_BYTES], 0).expect("written");
    file.sync_data().expect("synced");
    assert_eq!(outcomes(&fs, |fs| read(fs, "a").expect("read")[0]), BTreeSet::from([2]));
}

#[test]
fn a_failed_directory_sync_is_never_made_good_by_a_later_one() {
    let fs = new_fs();
    fs.create(&path("a")).expect("created");
    fs.inject(Fault::next(Operation::SyncDir, "data", Effect::Io));
    fs.sync_dir(Path::new("/data")).expect_err("injected");
    fs.sync_dir(Path::new("/data")).expect("the lie");
    let seen = outcomes(&fs, |fs| fs.exists(&path("a")).expect("looked"));
    assert_eq!(seen, BTreeSet::from([false, true]));
}

#[test]
fn a_fault_strikes_the_chosen_call_only() {
    let (fs, file) = with_durable_file();
    fs.inject(Fault::after(Operation::Write, "a", 1, Effect::DiskFull));
    file.write_at(b"x", 0).expect("the first goes well");
    assert!(is_disk_full(&file.write_at(b"y", 0).expect_err("the second")));
    file.write_at(b"z", 0).expect("the third");
    fs.inject(Fault::at_step(fs.steps() + 1, Effect::Io));
    file.write_at(b"x", 0).expect("one step before");
    assert!(!is_disk_full(&file.write_at(b"x", 0).expect_err("at the step")));
    file.write_at(b"x", 0).expect("one step after");
    assert_eq!(fs.faults_struck(), 2);
}

#[test]
fn without_handles_what_is_open_goes_on_and_nothing_else_is_tried() {
    let (fs, file) = with_durable_file();
    fs.create(&path("b")).expect("created");
    fs.set_handles(false);
    let dir = Path::new("/data");
    let refused = [
        fs.create(&path("c")).err(),
        fs.open(&path("a")).err(),
        fs.open_write(&path("a")).err(),
        fs.list(dir).err(),
        fs.sync_dir(dir).err(),
    ];
    for error in refused {
        assert!(is_out_of_handles(&error.expect("it needs a handle")));
    }
    file.write_at(&[2], 0).expect("it is open");
    file.sync_data().expect("it is open");
    assert!(!fs.exists(&path("c")).expect("needs none"));
    fs.set_handles(true);
    fs.sync_dir(dir).expect("was not tried before");
    let seen = outcomes(&fs, |fs| (fs.exists(&path("b")).ok(), read(fs, "a").expect("read")[0]));
    assert_eq!(seen, BTreeSet::from([(Some(true), 2)]));
}

#[test]
fn a_file_that_was_not_replaced_for_want_of_handles_or_room_is_as_before() {
    let dir = Path::new("/data");
    let (mut unchanged, mut in_doubt) = (0, 0);
    for effect in [Effect::NoHandles, Effect::DiskFull, Effect::Io] {
        for step in 0..10 {
            let fs = new_fs();
            replace_file(&fs, dir, "a", b"old").expect("replaced");
            fs.inject(Fault::at_step(fs.steps() + step, effect));
            let Err(error) = replace_file(&fs, dir, "a", b"new") else { continue };
            if is_out_of_handles(&error) || is_disk_full(&error) {
                let seen = outcomes(&fs, |fs| read(fs, "a").expect("read"));
                assert_eq!(seen, BTreeSet::from([b"old".to_vec()]), "{effect:?} at {step}");
                unchanged += 1;
            } else {
                in_doubt += 1;
            }
            replace_file(&fs, dir, "a", b"new").expect("again");
        }
    }
    // Create; create, write, sync and rename; those four, and the sync of the directory with each.
    assert_eq!((unchanged, in_doubt), (1 + 4, 4 + 5 + 1));
}

#[test]
fn a_short_write_leaves_a_prefix() {
    let mut lengths = BTreeSet::new();
    for seed in 0..SEEDS {
        let fs = SimFileSystem::new(seed);
        let file = fs.create(Path::new("/a")).expect("created");
        fs.inject(Fault::next(Operation::Write, "a", Effect::ShortWrite));
        file.write_at(&[7; 10], 0).expect_err("injected");
        lengths.insert(file.size().expect("size"));
    }
    assert_eq!(lengths, (0..10).collect());
}

#[test]
fn a_full_disk_takes_writes_again_after_a_removal() {
    let fs = new_fs();
    fs.set_capacity(10 * SECTOR_BYTES as u64);
    let first = fs.create(&path("a")).expect("created");
    first.allocate(8 * SECTOR_BYTES as u64).expect("fits");
    let second = fs.create(&path("b")).expect("created");
    second.write_at(&[1; 2 * SECTOR_BYTES], 0).expect("fits");
    let error = second.write_at(&[1], 2 * SECTOR_BYTES as u64).expect_err("full");
    assert!(is_disk_full(&error));
    first.write_at(&[1; 8 * SECTOR_BYTES], 0).expect("was reserved");
    assert_eq!(fs.space(&path("")).expect("space").available, 0);
    fs.remove(&path("a")).expect("removed");
    second.write_at(&[1], 2 * SECTOR_BYTES as u64).expect_err("the open handle holds the space");
    drop(first);
    second.write_at(&[1], 2 * SECTOR_BYTES as u64).expect("fits again");
    assert_eq!(fs.used(), 3 * SECTOR_BYTES as u64);
}

#[test]
fn corruption_flips_the_byte_before_and_after_a_power_loss() {
    let (fs, _file) = with_durable_file();
    fs.corrupt(&path("a"), 700, 0x80).expect("flipped");
    assert_eq!(read(&fs, "a").expect("read")[700], 0x81);
    assert_eq!(read(&fs.restart(0), "a").expect("read")[700], 0x81);
    fs.corrupt(&path("a"), 1 << 20, 1).expect_err("beyond the end");
}

#[test]
fn a_directory_is_locked_once_and_free_after_a_restart() {
    let fs = new_fs();
    let guard = fs.lock(Path::new("/data")).expect("locked");
    let error = fs.lock(Path::new("/data")).expect_err("locked already");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    fs.restart_killed().lock(Path::new("/data")).expect("a new process");
    drop(guard);
    fs.lock(Path::new("/data")).expect("free again");
}

#[test]
fn the_same_seed_gives_the_same_survivors() {
    let (fs, file) = with_durable_file();
    file.write_at(&[2; 5 * SECTOR_BYTES], 100).expect("written");
    for seed in 0..20 {
        let survivors =
            [fs.restart(seed), fs.restart(seed)].map(|fs| read(&fs, "a").expect("read"));
        assert_eq!(survivors[0], survivors[1], "seed {seed}");
    }
}

#[test]
fn a_held_sync_waits_until_it_is_let_go() {
    let (fs, file) = with_durable_file();
    let syncs = fs.count(Operation::Sync);
    fs.hold_syncs(true);
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| file.sync_data());
        fs.wait_for_held_sync();
        assert_eq!(fs.count(Operation::Sync), syncs);
        fs.hold_syncs(false);
        sync.join().expect("no panic").expect("synced");
    });
    assert_eq!(fs.count(Operation::Sync), syncs + 1);
}

#[test]
fn only_the_next_sync_of_a_path_can_be_held() {
    let (fs, file) = with_durable_file();
    let other = fs.create(&path("other")).expect("created");
    fs.hold_next_sync("other");
    file.sync_data().expect("is not held");
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| other.sync_data());
        fs.wait_for_held_sync();
        other.sync_data().expect("only one is held");
        assert!(!sync.is_finished());
        fs.hold_syncs(false);
        sync.join().expect("no panic").expect("synced");
    });
}

#[test]
fn misused_names_are_refused_as_the_real_file_system_does() {
    let (fs, _file) = with_durable_file();
    let kind = |result: io::Result<()>| result.expect_err("refused").kind();
    assert_eq!(kind(fs.create(&path("a")).map(drop)), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(fs.create(&path("x/y")).map(drop)), io::ErrorKind::NotFound);
    assert_eq!(kind(fs.create(&path("a/y")).map(drop)), io::ErrorKind::NotADirectory);
    assert_eq!(kind(fs.open(&path("x")).map(drop)), io::ErrorKind::NotFound);
    assert_eq!(kind(fs.remove(Path::new("/data"))), io::ErrorKind::IsADirectory);
    assert_eq!(kind(fs.create_dir_all(&path("a"))), io::ErrorKind::AlreadyExists);
    let read_only = fs.open(&path("a")).expect("opened");
    assert_eq!(kind(read_only.write_at(b"x", 0)), io::ErrorKind::PermissionDenied);
}
