//! A violation that people can read: of thousands of operations the few that contradict each other.
//!
//! An answer that is not needed for the contradiction is forgotten: a write is then one of unknown outcome, a read never was. A history
//! whose answers are forgotten allows more, so what still contradicts itself is a smaller reason. Answers are forgotten until none can be
//! spared.

use std::collections::HashSet;
use std::fmt;

use crate::history::{Action, Answer, Operation, Outcome};
use crate::plan::plan;
use crate::search::{Found, search};

/// Searches that shrinking one violation may take. What is left by then is correct, only longer.
const SEARCHES_MAX: usize = 2_000;

/// States of each of these searches.
const STATES_MAX: usize = 100_000;

/// A key whose operations contradict each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The key.
    pub key: String,
    /// What is wrong.
    pub why: &'static str,
    /// The operations that contradict each other, and those that wrote what they read.
    pub operations: Vec<Operation>,
}

impl Violation {
    pub(crate) fn new(
        key: String,
        why: &'static str,
        operations: &[Operation],
        chosen: Vec<usize>,
    ) -> Self {
        let mut chosen = chosen;
        chosen.sort_unstable();
        chosen.dedup();
        Self { key, why, operations: chosen.into_iter().map(|index| operations[index]).collect() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not linearizable: key {:?}: {}:", self.key, self.why)?;
        for operation in &self.operations {
            write!(f, "\n  {operation}")?;
        }
        Ok(())
    }
}

/// Makes the violation for a key of which no order was found.
pub(crate) fn no_order(key: String, operations: &[Operation]) -> Violation {
    let needed = shrink(operations);
    let read: HashSet<_> = needed
        .iter()
        .filter_map(|index| match operations[*index].outcome {
            Outcome::Ok(Answer::Found(value, _)) => Some(value),
            _ => None,
        })
        .collect();
    let writers = (0..operations.len()).filter(|index| match operations[*index].action {
        Action::Put { value, .. } => read.contains(&value),
        _ => false,
    });
    let chosen = needed.iter().copied().chain(writers).collect();
    Violation::new(key, "no order explains these operations", operations, chosen)
}

/// The operations whose answers cannot be spared.
fn shrink(operations: &[Operation]) -> Vec<usize> {
    let mut searches = 0;
    let mut contradicts = |kept: &[usize]| {
        searches += 1;
        searches <= SEARCHES_MAX && is_violated(&forget_all_but(operations, kept))
    };
    let answered = |index: &usize| matches!(operations[*index].outcome, Outcome::Ok(_));
    let mut kept: Vec<usize> = (0..operations.len()).filter(answered).collect();
    // What was answered until the contradiction was complete.
    kept.sort_unstable_by_key(|index| operations[*index].returned);
    let (mut fine, mut broken) = (0, kept.len());
    while fine + 1 < broken {
        let middle = usize::midpoint(fine, broken);
        if contradicts(&kept[..middle]) {
            broken = middle;
        } else {
            fine = middle;
        }
    }
    kept.truncate(broken);
    let mut chunk = kept.len();
    while chunk > 0 {
        let mut start = 0;
        while start < kept.len() {
            let mut fewer = kept.clone();
            fewer.drain(start..(start + chunk).min(kept.len()));
            if contradicts(&fewer) {
                kept = fewer;
            } else {
                start += chunk;
            }
        }
        chunk /= 2;
    }
    kept
}

fn is_violated(operations: &[Operation]) -> bool {
    plan(operations).is_ok_and(|plan| search(&plan, STATES_MAX) == Found::None)
}

/// The history with only these answers.
fn forget_all_but(operations: &[Operation], kept: &[usize]) -> Vec<Operation> {
    let kept: HashSet<_> = kept.iter().collect();
    let forget = |(index, operation): (usize, &Operation)| {
        let outcome = match operation.outcome {
            outcome if kept.contains(&index) => outcome,
            Outcome::Ok(Answer::Stored(_) | Answer::Deleted(true)) => Outcome::Unknown,
            // It changed nothing, and what it saw is forgotten.
            Outcome::Ok(_) => Outcome::Failed,
            outcome => outcome,
        };
        Operation { outcome, ..*operation }
    };
    operations.iter().enumerate().map(forget).collect()
}
