//! The verdict on a history: each key is planned and searched by itself.

use std::fmt;

use crate::excerpt::{self, Violation};
use crate::history::History;
use crate::plan::{Contradiction, Forgotten, plan};
use crate::search::{Found, search};

/// States that a search for one key goes through before it gives up, for callers without a reason for another number. About 100 bytes
/// each.
pub const STATES_MAX: usize = 1_000_000;

/// What a history is.
#[derive(Debug)]
#[must_use]
pub enum Verdict {
    /// Every key is explained by one register.
    Linearizable,
    /// A key is not.
    Violation(Box<Violation>),
    /// A search gave up, and nothing else was found. Not a pass.
    Inconclusive(Inconclusive),
}

impl Verdict {
    /// Panics unless the history is linearizable, with what was found.
    pub fn expect_linearizable(self, context: &str) {
        match self {
            Self::Linearizable => {}
            Self::Violation(violation) => panic!("{context}: {violation}"),
            Self::Inconclusive(inconclusive) => panic!("{context}: {inconclusive}"),
        }
    }
}

/// A search that gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inconclusive {
    /// The key.
    pub key: String,
    /// Its operations.
    pub operations: usize,
    /// The states that the search may go through.
    pub states_max: usize,
}

impl fmt::Display for Inconclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, operations, states_max } = self;
        write!(
            f,
            "inconclusive: {operations} operations of {key:?} need more than {states_max} states"
        )
    }
}

/// Checks every key, with at most so many states each. A violation of any key counts more than a search that gave up.
pub fn check(history: &History, states_max: usize) -> Verdict {
    let mut verdict = Verdict::Linearizable;
    for (key, operations) in history.keys() {
        match plan(&operations, &Forgotten::new()).map(|plan| search(&plan, states_max)) {
            Ok(Found::Order) => {}
            Ok(Found::None) => {
                return Verdict::Violation(Box::new(excerpt::no_order(key, &operations)));
            }
            Ok(Found::GaveUp) => {
                let operations = operations.len();
                verdict = Verdict::Inconclusive(Inconclusive { key, operations, states_max });
            }
            Err(Contradiction { why, operations: chosen }) => {
                let violation = Violation::new(key, why, &operations, chosen);
                return Verdict::Violation(Box::new(violation));
            }
        }
    }
    verdict
}
