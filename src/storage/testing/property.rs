//! Random tests that can be repeated: how many, with which seed, and where failures are kept.
//!
//! `KVSTORE_TEST_OPERATIONS` says how many operations each random test runs, for example
//!
//! ```text
//! KVSTORE_TEST_OPERATIONS=1000000 cargo test --release --lib model
//! ```
//!
//! A failure prints its seed; `PROPTEST_RNG_SEED` takes one. Failing cases are also kept under `proptest-regressions/`, are run
//! first from then on, and belong into the repository together with the fix.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

const OPERATIONS: &str = "KVSTORE_TEST_OPERATIONS";

/// Runs `test` on random cases of `strategy`, which take about `operations_each` operations, until `operations` are done.
pub(crate) fn check<S: Strategy>(
    source_file: &'static str,
    (operations, operations_each): (u32, u32),
    strategy: &S,
    test: impl Fn(S::Value),
) {
    let operations = match std::env::var(OPERATIONS) {
        Ok(number) => {
            number.parse().unwrap_or_else(|_| panic!("{OPERATIONS} is no number: {number}"))
        }
        Err(_) => operations,
    };
    let seed = seed();
    let config = Config {
        cases: operations.div_ceil(operations_each),
        source_file: Some(source_file),
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    };
    let ran = TestRunner::new(config).run(strategy, |case| {
        test(case);
        Ok(())
    });
    if let Err(failure) = ran {
        panic!("PROPTEST_RNG_SEED={seed}: {failure}");
    }
}

/// The seed that was asked for, or a random one; printed in any case.
pub(crate) fn seed() -> u64 {
    let seed = match Config::default().rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => rand::random(),
    };
    println!("repeat with PROPTEST_RNG_SEED={seed}");
    seed
}
