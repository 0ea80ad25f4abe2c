//! Many seeds.

use super::run::run_seed;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn clusters_under_faults_lose_nothing_and_are_linearizable() {
    let (first, count) = match variable("KVSTORE_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, variable("KVSTORE_SIM_SEEDS").unwrap_or(2)),
    };
    for seed in first..first + count {
        let report = run_seed(seed);
        let shown = format!("{report:?}");
        assert!(report.violation.is_none(), "repeat with KVSTORE_SIM_SEED={seed}: {shown}");
    }
}
