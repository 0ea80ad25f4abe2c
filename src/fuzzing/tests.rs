//! The seeds of the fuzz targets in `fuzz/corpus/`: each is run as it is, and mutated.
//!
//! `KVSTORE_TEST_SEED` chooses other mutations, `KVSTORE_TEST_MUTATIONS` how many for each target. With
//! `KVSTORE_TEST_WRITE_SEEDS=1` the samples of [`samples`] are written to the corpus.

mod samples;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{TARGETS, Target};

/// Mutations of the seeds of each target.
const MUTATIONS: u64 = 3_000;

/// No mutation is longer.
const BYTES_MAX: usize = 64 << 10;

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name)
}

fn seeds(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus(name)).expect("a directory of seeds");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).expect("readable");
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs it; on a panic says what the bytes were.
fn run(target: Target, bytes: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{what}: {} bytes {}", bytes.len(), &hex[..hex.len().min(4_000)]);
    }
}

#[test]
fn every_seed_of_every_target_is_refused_or_read() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 2, "{name} has {} seeds", seeds.len());
        for (path, bytes) in seeds {
            run(target, &bytes, &path.display().to_string());
        }
    }
}

#[test]
fn every_mutation_of_a_seed_is_refused_or_read() {
    let seed = number("KVSTORE_TEST_SEED", 1);
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        for round in 0..number("KVSTORE_TEST_MUTATIONS", MUTATIONS) {
            let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1 << 32) ^ round);
            let bytes = mutation(&seeds, &mut random);
            run(target, &bytes, &format!("{name}, KVSTORE_TEST_SEED={seed}, mutation {round}"));
        }
    }
}

/// One to four changes of a seed: what libFuzzer does most.
fn mutation(seeds: &[(PathBuf, Vec<u8>)], random: &mut StdRng) -> Vec<u8> {
    let any = |random: &mut StdRng| seeds[random.random_range(0..seeds.len())].1.clone();
    let mut bytes = any(random);
    for _ in 0..random.random_range(1..5) {
        let end = bytes.len();
        let at = if end == 0 { 0 } else { random.random_range(0..end) };
        let upto = random.random_range(at..end + 1).min(at + 40);
        match random.random_range(0..8) {
            0 if end > 0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 if end > 0 => bytes[at] = random.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..upto)),
            4 => {
                let piece = bytes[at..upto].to_vec();
                bytes.splice(at..at, piece);
            }
            5 if at + 4 <= end => {
                let word = [0u32, 1, 0xff, 0x7fff_ffff, u32::MAX, 64, 4096];
                let word = word[random.random_range(0..word.len())];
                bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            6 => {
                let other = any(random);
                bytes.truncate(at);
                bytes.extend(other.iter().skip(at));
            }
            _ => bytes.insert(at, random.random()),
        }
        bytes.truncate(BYTES_MAX);
    }
    bytes
}
