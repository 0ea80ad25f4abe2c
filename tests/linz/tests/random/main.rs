//! Random histories: those of a right register always pass, those that a search by brute force rejects are always found, and faults that
//! are built into the register are found among thousands of operations.
//!
//! A history is made from a list of bytes, one for each decision, so that proptest can make it smaller.

mod brute_force;
mod register;

use linz::{History, STATES_MAX, Verdict, check};
use proptest::prelude::*;

use crate::register::{Decisions, Fault, Shape};

/// Few operations, so that brute force ends.
const SMALL: Shape = Shape { clients: 3, keys: 1, operations: 8, calm: false };

/// Cases are cheap: more of them than proptest has by default, unless `PROPTEST_CASES` says how many.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return default;
    }
    ProptestConfig { cases: 2_000, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_a_right_register_answers_passes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let shape = Shape { clients: 6, keys: 2, operations: 60, calm: false };
        let (history, _) = register::run(shape, &mut Decisions::new(&bytes), Fault::None);
        check(&history, STATES_MAX).expect_linearizable("a right register");
    }

    #[test]
    fn what_was_changed_passes_or_fails_as_brute_force_says(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        change in any::<[u8; 3]>(),
    ) {
        let (history, _) = register::run(SMALL, &mut Decisions::new(&bytes), Fault::None);
        let mut operations = register::operations(&history);
        register::change(&mut operations, change);
        let right = brute_force::is_linearizable(&operations);
        let verdict = check(&register::replay(&operations), STATES_MAX);
        prop_assert_eq!(matches!(verdict, Verdict::Linearizable), right, "{}\n{:?}", register::show(&operations), verdict);
    }

    #[test]
    fn faults_are_seen_as_brute_force_sees_them(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        fault in proptest::sample::select(Fault::ALL.to_vec()),
    ) {
        let (history, _) = register::run(SMALL, &mut Decisions::new(&bytes), fault);
        let operations = register::operations(&history);
        let right = brute_force::is_linearizable(&operations);
        let verdict = check(&history, STATES_MAX);
        prop_assert_eq!(matches!(verdict, Verdict::Linearizable), right, "{}\n{:?}", register::show(&operations), verdict);
    }

    #[test]
    fn what_is_told_of_a_violation_is_one(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        fault in proptest::sample::select(Fault::ALL.to_vec()),
    ) {
        let (history, _) = register::run(SMALL, &mut Decisions::new(&bytes), fault);
        if let Verdict::Violation(violation) = check(&history, STATES_MAX) {
            let all = register::operations(&history);
            let forgotten: Vec<bool> =
                all.iter().map(|operation| !violation.operations.contains(operation)).collect();
            prop_assert!(!brute_force::is_linearizable_without(&all, &forgotten), "{}\nof {}", violation, register::show(&all));
        }
    }
}

/// Eight clients, tens of keys, thousands of operations, as tests with real processes have them.
const LARGE: Shape = Shape { clients: 8, keys: 20, operations: 20_000, calm: true };

#[test]
fn large_histories_of_a_right_register_pass() {
    for seed in 0..4 {
        let (history, _) = register::run(LARGE, &mut Decisions::seeded(seed), Fault::None);
        check(&history, STATES_MAX).expect_linearizable(&format!("seed {seed}"));
    }
}

#[test]
fn one_busy_key_passes() {
    let shape = Shape { keys: 1, operations: 8_000, ..LARGE };
    let (history, _) = register::run(shape, &mut Decisions::seeded(7), Fault::None);
    check(&history, STATES_MAX).expect_linearizable("one key");
}

/// Half of the operations fail or are of unknown outcome.
#[test]
fn a_stormy_history_is_not_inconclusive() {
    let shape = Shape { keys: 10, calm: false, ..LARGE };
    let (history, _) = register::run(shape, &mut Decisions::seeded(3), Fault::None);
    println!("{:?}", history.counts());
    check(&history, STATES_MAX).expect_linearizable("a storm");
}

#[test]
fn every_fault_is_found_in_a_large_history_and_told_in_a_few_lines() {
    for fault in Fault::ALL {
        for seed in 0..3 {
            let (history, faults) = register::run(LARGE, &mut Decisions::seeded(seed), fault);
            assert!(faults > 0, "{fault:?}, seed {seed}: the fault did not happen");
            assert_found(&history, &format!("{fault:?}, seed {seed}"));
        }
    }
}

fn assert_found(history: &History, context: &str) {
    let verdict = check(history, STATES_MAX);
    let Verdict::Violation(violation) = verdict else { panic!("{context}: {verdict:?}") };
    println!("{context}: {violation}");
    assert!(violation.operations.len() <= 8, "{context}: {violation}");
}
