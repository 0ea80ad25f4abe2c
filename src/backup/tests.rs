//! Backups that are whole verify; whatever is missing, too much, different, or leads elsewhere is refused with its name.

use std::sync::Arc;
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::command::{Change, Command};
use crate::shard::Committer;
use crate::storage::memory::MemoryEnvironment;
use crate::storage::{Durability, Environment as _};
use crate::types::{Key, ShardId, Value};
use crate::util::time::Clock;

const SHARDS: u32 = 3;

/// Some shards with a few keys, and a place for backups of them.
struct Bench {
    place: TempDir,
    shards: Vec<Shard>,
    _committer: Committer,
}

impl Bench {
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a temporary directory");
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let committer = Committer::start("test".to_owned(), Durability::Sync, Arc::clone(&clock))
            .expect("a thread starts");
        let environment = MemoryEnvironment::new();
        let open = |id| {
            let engine = environment.open(&shard_directory(id)).expect("opens");
            Shard::open(ShardId(id), engine, &committer, Arc::clone(&clock)).expect("opens")
        };
        let shards: Vec<_> = (0..SHARDS).map(open).collect();
        for (number, shard) in shards.iter().enumerate() {
            let key = Key::new(format!("key-{number}")).expect("a key");
            let value = Value::Json("1".repeat(number + 1).into());
            let change = Change::Put { key, value, ttl: None, if_version: None };
            let ticket = shard.propose(Command { change, request_id: None }).expect("room");
            tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime starts")
                .block_on(ticket)
                .expect("stored");
        }
        Self { place, shards, _committer: committer }
    }

    fn create(&self, name: &str) -> Result<Made> {
        create(self.place.path(), Some(name.to_owned()), "n1", "memory", &self.shards)
    }

    /// A backup that is whole.
    fn backup(&self) -> PathBuf {
        self.create("backup").expect("is made").path
    }
}

fn refused(path: &Path) -> Error {
    verify(path).expect_err("must be refused")
}

/// Replaces the manifest by one that says something else, with the right checksum.
fn forge(backup: &Path, change: impl FnOnce(&mut Manifest)) {
    let mut manifest = read_manifest(backup).expect("it is whole");
    change(&mut manifest);
    write_manifest(backup, &serde_json::to_string(&manifest).expect("JSON"));
}

fn write_manifest(backup: &Path, json: &str) {
    let text = format!("{json}\n{:08x}\n", crc32c::crc32c(json.as_bytes()));
    fs::write(backup.join(MANIFEST), text).expect("writes");
}

fn dump(shard: u32) -> String {
    format!("shard-{shard}/dump")
}

#[test]
fn backup_lists_its_files_and_verifies() {
    let bench = Bench::new();
    let made = bench.create("monday").expect("is made");
    assert_eq!(made.path, bench.place.path().join("monday"));
    assert_eq!((made.files, made.keys), (SHARDS, u64::from(SHARDS)));
    let manifest = verify(&made.path).expect("it is whole");
    assert_eq!((manifest.node.as_str(), manifest.engine.as_str()), ("n1", "memory"));
    assert_eq!((manifest.shards, manifest.files(), manifest.bytes()), (SHARDS, 3, made.bytes));
    let names: Vec<_> = fs::read_dir(bench.place.path()).expect("lists").collect();
    assert_eq!(names.len(), 1, "nothing else is left");
}

#[test]
fn name_is_a_plain_file_name_and_used_once() {
    let bench = Bench::new();
    for wrong in
        ["", ".", "..", "../x", "a/b", "/x", ".hidden", "a b", "ä", "a\0b", &"x".repeat(65)]
    {
        let error = bench.create(wrong).expect_err("is no name");
        assert_eq!(error.reason(), Reason::InvalidRequest, "{wrong:?}");
    }
    assert_eq!(fs::read_dir(bench.place.path()).expect("lists").count(), 0, "nothing is written");
    bench.create(&"x".repeat(64)).expect("is made");
    let error = bench.create(&"x".repeat(64)).expect_err("is taken");
    assert_eq!(error.reason(), Reason::FailedPrecondition);
    // Without a name it is the time.
    let made = create(bench.place.path(), None, "n1", "memory", &bench.shards).expect("is made");
    assert!(made.path.file_name().expect("a name").to_string_lossy().parse::<u64>().is_ok());
}

#[test]
fn what_a_crash_left_of_a_backup_is_replaced() {
    let bench = Bench::new();
    let left = bench.place.path().join(".monday.unfinished").join("shard-0");
    fs::create_dir_all(&left).expect("creates");
    fs::write(left.join("dump"), "half").expect("writes");
    verify(&bench.create("monday").expect("is made").path).expect("it is whole");
}

#[test]
fn backup_that_fails_leaves_nothing() {
    let bench = Bench::new();
    let file = bench.place.path().join("file");
    fs::write(&file, "").expect("writes");
    let error = create(&file, Some("x".to_owned()), "n1", "memory", &bench.shards);
    assert!(error.is_err());
    // Two shards that want one directory: the second checkpoint is refused.
    let twice = [bench.shards[0].clone(), bench.shards[0].clone()];
    let error = create(bench.place.path(), Some("x".to_owned()), "n1", "memory", &twice);
    assert!(error.is_err());
    assert_eq!(fs::read_dir(bench.place.path()).expect("lists").count(), 1);
}

#[test]
fn of_two_backups_with_one_name_one_is_made_and_whole() {
    let bench = Bench::new();
    for round in 0..10 {
        let name = format!("round-{round}");
        let made: Vec<_> = thread::scope(|scope| {
            let makers: Vec<_> = (0..4).map(|_| scope.spawn(|| bench.create(&name))).collect();
            makers.into_iter().map(|maker| maker.join().expect("no panic")).collect()
        });
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
        for error in made.into_iter().filter_map(Result::err) {
            assert_eq!(error.reason(), Reason::FailedPrecondition, "{error}");
        }
        verify(&bench.place.path().join(name)).expect("it is whole");
    }
}

#[test]
fn any_changed_byte_and_any_cut_is_refused() {
    let bench = Bench::new();
    let backup = bench.backup();
    for name in [MANIFEST.to_owned(), dump(0), dump(2)] {
        let file = backup.join(&name);
        let whole = fs::read(&file).expect("reads");
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 1 << (at % 8);
            for content in [&bent[..], &whole[..at]] {
                fs::write(&file, content).expect("writes");
                let error = refused(&backup);
                assert_eq!(error.reason(), Reason::Corruption, "{name} at {at}: {error}");
                assert!(error.message().contains(&*file.to_string_lossy()), "{error}");
            }
        }
        let longer = [&whole[..], b"\n"].concat();
        fs::write(&file, longer).expect("writes");
        assert_eq!(refused(&backup).reason(), Reason::Corruption, "{name} with a byte more");
        fs::write(&file, whole).expect("writes");
    }
    verify(&backup).expect("it is whole again");
}

#[test]
fn missing_foreign_and_swapped_files_are_refused() {
    let names_it = |backup: &Path, name: &str| {
        let error = refused(backup);
        assert_eq!(error.reason(), Reason::Corruption, "{error}");
        let file = backup.join(name);
        assert!(error.message().contains(&*file.to_string_lossy()), "{error} names {name}");
    };
    let bench = Bench::new();
    let backup = bench.backup();
    let (first, second) = (backup.join(dump(0)), backup.join(dump(1)));

    let aside = bench.place.path().join("aside");
    fs::rename(&first, &aside).expect("renames");
    names_it(&backup, &dump(0));
    fs::rename(&second, &first).expect("renames");
    fs::rename(&aside, &second).expect("renames");
    names_it(&backup, &dump(0));
    fs::rename(&second, &aside).expect("renames");
    fs::rename(&first, &second).expect("renames");
    fs::rename(&aside, &first).expect("renames");
    verify(&backup).expect("all is where it was");

    fs::write(backup.join("shard-1").join("more"), "").expect("writes");
    names_it(&backup, "shard-1/more");
    fs::remove_file(backup.join("shard-1").join("more")).expect("removes");
    fs::create_dir(backup.join("shard-9")).expect("creates");
    fs::write(backup.join("shard-9").join("dump"), "").expect("writes");
    names_it(&backup, "shard-9/dump");
    fs::remove_dir_all(backup.join("shard-9")).expect("removes");

    // A link is no file, whatever it leads to.
    fs::rename(&first, &aside).expect("renames");
    std::os::unix::fs::symlink(&aside, &first).expect("links");
    names_it(&backup, &dump(0));
    fs::remove_file(&first).expect("removes");
    fs::rename(&aside, &first).expect("renames");
    fs::rename(backup.join("shard-2"), &aside).expect("renames");
    std::os::unix::fs::symlink(&aside, backup.join("shard-2")).expect("links");
    names_it(&backup, "shard-2");
}

#[test]
fn path_that_leaves_the_backup_is_refused_even_if_all_else_fits() {
    let bench = Bench::new();
    let backup = bench.backup();
    let outside = bench.place.path().join("outside");
    fs::write(&outside, "content").expect("writes");
    let (bytes, crc32c) = checksum(&outside).expect("reads");
    let whole = fs::read(backup.join(MANIFEST)).expect("reads");
    let absolute = outside.display().to_string();
    for path in
        ["../outside", "shard-0/../../outside", absolute.as_str(), "", "..", ".", "./outside"]
    {
        let path = path.to_owned();
        forge(&backup, |manifest| {
            manifest.files.push(BackupFile { path: path.clone(), bytes, crc32c });
        });
        let error = refused(&backup);
        assert_eq!(error.reason(), Reason::Corruption, "{path:?}: {error}");
        assert!(error.message().contains(&format!("{path:?}")), "{error} names {path:?}");
        fs::write(backup.join(MANIFEST), &whole).expect("writes");
    }
}

#[test]
fn manifest_must_list_each_file_once_and_each_shard() {
    let bench = Bench::new();
    let backup = bench.backup();
    let whole = fs::read(backup.join(MANIFEST)).expect("reads");
    let forgeries: [fn(&mut Manifest); 5] = [
        |manifest| manifest.files.push(manifest.files[0].clone()),
        |manifest| manifest.shards += 1,
        |manifest| manifest.shards = u32::MAX,
        |manifest| manifest.shards -= 1,
        |manifest| manifest.shards = 0,
    ];
    for forgery in forgeries {
        forge(&backup, forgery);
        assert_eq!(refused(&backup).reason(), Reason::Corruption);
        fs::write(backup.join(MANIFEST), &whole).expect("writes");
    }
    // A backup from which a shard has vanished, list and all.
    fs::remove_dir_all(backup.join("shard-1")).expect("removes");
    forge(&backup, |manifest| manifest.files.retain(|file| !file.path.starts_with("shard-1/")));
    let error = refused(&backup);
    assert!(error.message().contains("3 shards"), "{error}");
}

#[test]
fn what_is_no_backup_of_this_version_is_told_so() {
    let bench = Bench::new();
    assert_eq!(refused(&bench.place.path().join("none")).reason(), Reason::FailedPrecondition);
    assert_eq!(refused(bench.place.path()).reason(), Reason::FailedPrecondition);
    let backup = bench.backup();
    let json = serde_json::to_string(&read_manifest(&backup).expect("whole")).expect("JSON");
    for other in [
        json.replace("\"version\":1", "\"version\":2"),
        json.replace("kvstore-backup", "another-backup"),
        json.replace("\"node\":", "\"more\":1,\"node\":"),
        "{}".to_owned(),
        "not JSON".to_owned(),
    ] {
        write_manifest(&backup, &other);
        assert_eq!(refused(&backup).reason(), Reason::FailedPrecondition, "{other}");
    }
}
