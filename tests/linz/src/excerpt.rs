//! A violation that people can read: of thousands of operations the few that contradict each other.
//!
//! An answer that is not needed for the contradiction is forgotten (`plan`). A history whose answers are forgotten allows more, so what
//! still contradicts itself is a smaller reason. Answers are forgotten until none can be spared.

use std::fmt;

use crate::history::{Action, Answer, Operation, Outcome};
use crate::plan::{Forgotten, plan};
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
    /// The operations that contradict each other, and those that wrote what they speak of.
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
    // Who reads of a value or version wants to see who wrote it.
    let is_meant = |write: &Operation| {
        let Action::Put { value, .. } = write.action else { return false };
        needed.iter().map(|index| &operations[*index]).any(|operation| {
            let read = match operation.outcome {
                Outcome::Ok(Answer::Found(found, _)) => found == value,
                _ => false,
            };
            let told = operation.action.if_version().map(Answer::Stored).map(Outcome::Ok);
            read || told == Some(write.outcome)
        })
    };
    let writers = (0..operations.len()).filter(|index| is_meant(&operations[*index]));
    let chosen = needed.iter().copied().chain(writers).collect();
    Violation::new(key, "no order explains these operations", operations, chosen)
}

/// The operations whose answers cannot be spared.
fn shrink(operations: &[Operation]) -> Vec<usize> {
    let answered = |index: &usize| matches!(operations[*index].outcome, Outcome::Ok(_));
    let mut kept: Vec<usize> = (0..operations.len()).filter(answered).collect();
    let all: Forgotten = kept.iter().copied().collect();
    let mut searches = 0;
    let mut contradicts = |kept: &[usize]| {
        let mut forgotten = all.clone();
        for index in kept {
            forgotten.remove(index);
        }
        searches += 1;
        searches <= SEARCHES_MAX
            && plan(operations, &forgotten)
                .is_ok_and(|plan| search(&plan, STATES_MAX) == Found::None)
    };
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
