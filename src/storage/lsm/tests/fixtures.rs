//! Directories that earlier versions wrote, kept in `tests/fixtures/lsm-*`: this version and every later one must open them
//! and find what they hold.
//!
//! | in `tests/fixtures/lsm-NAME/` | |
//! |---|---|
//! | `data/` | an environment as a killed process left it |
//! | `checkpoint/` | a checkpoint of its engine `shard-0` |
//! | `contents.ndjson`, `checkpoint.ndjson` | every entry that can be read there: engine, key and value in hexadecimal, expiry in milliseconds |
//!
//! When a format gets a new version, keep the old fixture and make one more, then commit it:
//! `KVSTORE_TEST_FIXTURE=v2 cargo test --lib fixtures`. It is the same bytes each time.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use super::*;
use crate::storage::lsm::Inspection;
use crate::util::fs::RealFileSystem;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn open_real(directory: &Path, options: LsmOptions) -> LsmEnvironment {
    let opened = LsmEnvironment::open(Arc::new(RealFileSystem), directory, options);
    opened.unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("writable");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The lines of `contents.ndjson` for one engine.
fn lines_of(engine: &str, rows: &[Row]) -> String {
    rows.iter().fold(String::new(), |mut text, (key, value, expiry)| {
        let (key, value) = (hex(key), hex(value));
        let expiry = expiry.map_or("null".to_owned(), |at| at.to_string());
        let _ = writeln!(
            text,
            r#"{{"engine":"{engine}","key":"{key}","value":"{value}","expiresAt":{expiry}}}"#
        );
        text
    })
}

fn contents(environment: &LsmEnvironment) -> String {
    let names = environment.list().expect("lists");
    let lines = |name: &String| lines_of(name, &rows(&*environment.open(name).expect("opens")));
    names.iter().map(lines).collect()
}

/// The same, told without opening anything.
fn inspected(inspection: &Inspection) -> String {
    let mut lines = String::new();
    let dumped = inspection.dump::<Error>(|engine, _, entry| {
        let expiry = entry.expires_at.map(Timestamp::as_millis);
        let row = (entry.key.to_vec(), entry.value.to_vec(), expiry);
        lines.push_str(&lines_of(engine, &[row]));
        Ok(())
    });
    dumped.expect("sound");
    lines
}

/// Everything that a directory may hold, in a few kilobytes.
fn write_fixture(directory: &Path) {
    let data = directory.join("data");
    let mut options = LsmOptions::new(0x1f1f);
    options.memtable_bytes = 3000;
    options.memtables_bytes_max = 64 << 10;
    options.table_bytes_max = 4096;
    options.log_segment_bytes = 4096;
    options.last_level_zstd = Some(3);
    options.threads = 0;
    options.picker.l0_tables = 2;
    options.picker.base_bytes = 1500;
    options.picker.growth = 3;
    options.picker.table_bytes = 2048;
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let live = scratch.path().join("data");
    let environment = open_real(&live, options);
    let documents = environment.open("shard-0").expect("opens");
    let bytes = environment.open("shard-1").expect("opens");
    environment.open("shard-2").expect("opens and stays empty");
    let put = |version: u64, number: u64, expires_at: Option<u64>| {
        let mut batch = WriteBatch::new();
        let text = format!(r#"{{"name": "user {number}", "version": {version}}}"#);
        let key = format!("user/{number:03}");
        let expires_at = expires_at.map(Timestamp::from_millis);
        let value = [&[1][..], &version.to_le_bytes(), text.as_bytes()];
        batch.put(&[&[1], key.as_bytes()], &value, expires_at);
        batch.put(&[b"\0v"], &[&version.to_le_bytes()], None);
        batch.advance_clock(Timestamp::from_millis(1_000_000 + version));
        documents.write(&batch, Durability::Buffered).expect("writes");
        while environment.drive() {}
    };
    for version in 1..=200 {
        let expires_at = (version % 7 == 0).then_some(1_000_100 + version % 5 * 1_000_000);
        put(version, version * 37 % 90, expires_at);
    }
    let mut batch = WriteBatch::new();
    for number in 0..40u32 {
        batch.put(&[&number.to_be_bytes()], &[&[u8::try_from(number).expect("small"); 60]], None);
    }
    bytes.write(&batch, Durability::Sync).expect("writes");
    bytes.flush().expect("flushes");
    batch.clear();
    batch.delete_range(&5u32.to_be_bytes(), &9u32.to_be_bytes());
    batch.delete(&[&20u32.to_be_bytes()]);
    bytes.write(&batch, Durability::Sync).expect("writes");
    bytes.flush().expect("flushes");
    documents.flush().expect("flushes");
    documents.checkpoint(&directory.join("checkpoint")).expect("copies");
    let copied = lines_of("shard-0", &rows(&*documents));
    fs::write(directory.join("checkpoint.ndjson"), copied).expect("writable");
    // What is in the log only.
    put(201, 1000, None);
    put(202, 1001, Some(9_000_000));
    batch.clear();
    batch.delete(&[&[1], b"user/003"]);
    documents.write(&batch, Durability::Sync).expect("writes");
    batch.clear();
    batch.delete_range(&30u32.to_be_bytes(), &35u32.to_be_bytes());
    batch.put(&[b"last"], &[b"word"], None);
    bytes.write(&batch, Durability::Sync).expect("writes");
    let contents = [("shard-0", &documents), ("shard-1", &bytes)];
    let contents = contents.map(|(name, engine)| lines_of(name, &rows(&**engine))).concat();
    fs::write(directory.join("contents.ndjson"), contents).expect("writable");
    // As a killed process leaves it: nothing is closed.
    copy(&live, &data);
}

/// As little as possible happens by itself.
fn quiet() -> LsmOptions {
    LsmOptions { threads: 0, log_segment_bytes: 4096, ..LsmOptions::new(7) }
}

#[test]
fn directories_of_earlier_versions_open_and_hold_what_they_held() {
    if let Ok(name) = std::env::var("KVSTORE_TEST_FIXTURE") {
        let directory = fixtures().join(format!("lsm-{name}"));
        fs::create_dir_all(fixtures()).expect("writable");
        fs::create_dir(&directory).expect("a fixture that is there is never replaced");
        write_fixture(&directory);
    }
    let mut seen = 0;
    for entry in fs::read_dir(fixtures()).expect("there are fixtures") {
        let fixture = entry.expect("readable").path();
        let name = fixture.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("lsm-") {
            continue;
        }
        seen += 1;
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let data = scratch.path().join("data");
        copy(&fixture.join("data"), &data);
        let expected = fs::read_to_string(fixture.join("contents.ndjson")).expect("readable");
        let inspection = Inspection::open(Arc::new(RealFileSystem), &data).expect("nobody has it");
        let found = inspection.verify();
        assert!(found.is_sound(), "{name}: {:?}", found.damage);
        assert_eq!(inspected(&inspection), expected, "{name}, without opening it");
        drop(inspection);
        let environment = open_real(&data, quiet());
        assert_eq!(contents(&environment), expected, "{name}");
        let refused = Inspection::open(Arc::new(RealFileSystem), &data).expect_err("it is open");
        assert!(matches!(refused, Error::Locked { .. }), "{refused}");

        let engine = environment.open("shard-0").expect("opens");
        let status = engine.status();
        let levels = (0..7).filter(|level| status.figures[&*format!("l{level}_tables")] > 0.0);
        assert!(levels.count() >= 2, "{name} shows several levels: {status:?}");
        assert!(engine.durable() > Seqno(0) && status.keys > 0);
        let before = rows(&*engine);
        engine
            .write(&crate::storage::testing::put(b"new", b"1"), Durability::Sync)
            .expect("writes");
        engine.compact(KeyRange::ALL).expect("compacts");
        drop((engine, environment));
        let environment = open_real(&data, quiet());
        let engine = environment.open("shard-0").expect("opens");
        let mut after = rows(&*engine);
        after.retain(|(key, _, _)| key != b"new");
        assert_eq!(after, before, "{name} after it was written to and compacted");

        environment.install("copy", &fixture.join("checkpoint")).expect("installs");
        let copied = rows(&*environment.open("copy").expect("opens"));
        let expected = fs::read_to_string(fixture.join("checkpoint.ndjson")).expect("readable");
        assert_eq!(lines_of("shard-0", &copied), expected, "{name}, the checkpoint");
    }
    assert!(seen > 0, "there is at least one fixture");
}
