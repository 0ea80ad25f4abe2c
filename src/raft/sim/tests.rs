//! Many seeds.

use super::run::{Plan, run, run_seed};

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn seeds() {
    let (first, count) = match variable("KVSTORE_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, variable("KVSTORE_SIM_SEEDS").unwrap_or(20)),
    };
    let began = std::time::Instant::now();
    let mut bad = 0;
    for seed in first..first + count {
        let one = std::time::Instant::now();
        let report = run_seed(seed);
        println!("seed {seed} {:?} {report:?}", one.elapsed());
        bad += u32::from(report.violation.is_some());
    }
    println!("{:?}", began.elapsed());
    assert_eq!(bad, 0);
}
