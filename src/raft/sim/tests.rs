//! Seeds of clusters under faults. `KVSTORE_SIM_SEED=n` runs that one, `KVSTORE_SIM_SEEDS=n` the first n.

use super::run::run_seed;

/// Seeds of `cargo test`.
const SEEDS: [u64; 5] = [3, 9, 12, 13, 14];

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn clusters_keep_their_promises_whatever_goes_wrong() {
    let seeds = match (variable("KVSTORE_SIM_SEED"), variable("KVSTORE_SIM_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (0..count).collect(),
        (None, None) => SEEDS.to_vec(),
    };
    for seed in seeds {
        let report = run_seed(seed);
        println!("seed {seed}: {report:?}");
        assert_eq!(report.violation, None, "repeat with KVSTORE_SIM_SEED={seed}");
    }
}

#[test]
fn a_seed_runs_the_same_way_every_time() {
    let (one, other) = (run_seed(3), run_seed(3));
    assert_eq!((one.trace, one.took_ms), (other.trace, other.took_ms));
}
