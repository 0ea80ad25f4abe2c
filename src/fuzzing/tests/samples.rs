//! Valid samples of what the targets read, taken from the files of a small engine.

use std::path::Path;
use std::sync::Arc;

use super::{TARGETS, corpus, run};
use crate::storage::lsm::table::fuzzing::parts;
use crate::storage::lsm::{LsmEnvironment, LsmOptions};
use crate::storage::{Durability, Environment as _, KeyRange, StorageEngine, WriteBatch};
use crate::util::fs::sim::SimFileSystem;
use crate::util::fs::{FileSystem as _, read_file};
use crate::util::time::Timestamp;

const ROOT: &str = "/data";

/// Larger files make no good seeds.
const SEED_BYTES_MAX: usize = 12 << 10;

/// Seeds of one target.
const SEEDS_MAX: usize = 6;

type Samples = Vec<(&'static str, Vec<u8>)>;

#[test]
fn samples_of_every_target_are_accepted() {
    let samples = samples();
    for (name, target) in TARGETS {
        let mut count = 0;
        let of_target = samples.iter().filter(|(of, _)| *of == name).map(|(_, bytes)| bytes);
        for bytes in of_target.take(SEEDS_MAX) {
            run(target, bytes, name);
            count += 1;
            if std::env::var_os("KVSTORE_TEST_WRITE_SEEDS").is_some() {
                let directory = corpus(name);
                std::fs::create_dir_all(&directory).expect("a directory");
                let write = |name: String, bytes: &[u8]| {
                    std::fs::write(directory.join(name), bytes).expect("written");
                };
                write(format!("sample-{count}"), bytes);
                write(format!("sample-{count}-cut"), &bytes[..bytes.len() * 2 / 3]);
            }
        }
        assert!(count > 0, "no sample of {name}");
    }
}

fn samples() -> Samples {
    let fs = SimFileSystem::new(0);
    let mut samples = Vec::new();
    for seed in [1, 2, 5] {
        let root = format!("{ROOT}-{seed}");
        fill(&fs, &root, seed, &mut samples);
        gather(&fs, Path::new(&root), &mut samples);
    }
    // A log of two segments, and its records.
    let log = Path::new("/data-1/wal");
    let [first, second] = ["0000000001.wal", "0000000002.wal"].map(|name| {
        let mut bytes = read_file(&fs, &log.join(name), u64::MAX).expect("there are two segments");
        bytes.truncate(6 << 10);
        bytes
    });
    let cut = u16::try_from(first.len()).expect("it was cut").to_le_bytes();
    samples.push(("wal_segment", [&cut[..], &first, &second].concat()));
    samples.push(("wal_segment", [&cut[..], &first].concat()));
    samples.push(("wal_record", first[32..96].to_vec()));
    samples.push(("wal_record", first[72..].to_vec()));
    samples.push(("filter", [&[2, 0, 0, 0, 6][..], &[0x5a; 128]].concat()));
    samples
}

/// Writes, flushes, compacts and copies.
fn fill(fs: &SimFileSystem, root: &str, seed: u64, samples: &mut Samples) {
    let options = LsmOptions { threads: 0, log_segment_bytes: 4096, ..LsmOptions::tiny(seed) };
    let environment = LsmEnvironment::open(Arc::new(fs.clone()), root, options).expect("opens");
    let engine = environment.open("main").expect("opens");
    environment.open("other").expect("opens");
    for number in 0..60u64 {
        let batch = batch(number);
        engine.write(&batch, Durability::Sync).expect("writes");
        if number % 20 == 7 {
            samples.push(("write_batch", batch.encoded().to_vec()));
            let first = number.to_le_bytes();
            samples.push(("write_batch", [&first[..], batch.encoded()].concat()));
            engine.flush().expect("flushes");
        }
    }
    engine.compact(KeyRange::new(b"k2", None)).expect("compacts");
    write_more(&*engine);
    engine.checkpoint(&Path::new(root).join("copy")).expect("copies");
}

fn write_more(engine: &dyn StorageEngine) {
    (60..70).for_each(|number| {
        engine.write(&batch(number), Durability::Sync).expect("writes");
    });
}

fn batch(number: u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.advance_clock(Timestamp::from_millis(number));
    for part in 0..4u64 {
        let key = format!("k{}/{part}", number * 7 % 40);
        let expiry = (part == 1).then(|| Timestamp::from_millis(number + 30));
        batch.put(&[key.as_bytes()], &[&b"value ".repeat(1 + part as usize)], expiry);
    }
    batch.delete(&[format!("k{}/2", number % 40).as_bytes()]);
    if number % 9 == 0 {
        batch.delete_range(format!("k{}", number % 30).as_bytes(), b"k35");
    }
    batch
}

/// What the files of a directory are samples of.
fn gather(fs: &SimFileSystem, directory: &Path, samples: &mut Samples) {
    for name in fs.list(directory).expect("lists") {
        let path = directory.join(&name);
        let Ok(bytes) = read_file(fs, &path, u64::MAX) else {
            gather(fs, &path, samples);
            continue;
        };
        if name.ends_with(".sst") && bytes.len() <= SEED_BYTES_MAX {
            samples.extend(parts(&bytes));
        } else if name.ends_with(".manifest") {
            let end = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0);
            let bytes = &bytes[..(end + 1).min(SEED_BYTES_MAX)];
            samples.push(("manifest", bytes.to_vec()));
        } else if name == "catalogue" {
            samples.push(("catalogue", bytes));
        } else if name == "checkpoint" {
            samples.push(("manifest_edit", bytes[12..bytes.len() - 4].to_vec()));
            samples.push(("checkpoint", bytes));
        }
    }
}
