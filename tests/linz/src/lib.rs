//! The oracle: what clients saw ([`History`]), and whether one register for each key explains it ([`check()`]).
//!
//! # Use
//!
//! ```
//! use linz::{Action, Answer, History, Outcome, STATES_MAX, Value, Verdict, Version, check};
//!
//! let history = History::new(1000);
//! let put = history.call(1, "k", Action::put(Value(7)), 0).expect("there is room");
//! history.returns(put, Outcome::Ok(Answer::Stored(Version(1))), 10);
//! let get = history.call(2, "k", Action::Get, 20).expect("there is room");
//! history.returns(get, Outcome::Ok(Answer::Found(Value(7), Version(1))), 30);
//! assert!(matches!(check(&history, STATES_MAX), Verdict::Linearizable));
//! ```
//!
//! # What is checked
//!
//! Each key is a register by itself, absent at first, that holds a value and its version. There must be an order of the operations that
//! respects real time (what returned before another was called comes first) and in which every answer is right:
//!
//! * a Get finds what the last write before it left, with the version that this write was given;
//! * versions of a key grow in that order, from 1 on;
//! * a condition on the version holds where it was met, and does not where it was not;
//! * what ended as [`Outcome::Failed`] is not in the order;
//! * a write that ended as [`Outcome::Unknown`] (or not at all) is in it once, anywhere after its call, even after the end of the
//!   history; or not at all.
//!
//! Put values are unique for each key, so that a value tells which write was read.
//!
//! # Verdicts
//!
//! `Linearizable`; `Violation`, with the few operations that contradict each other; `Inconclusive` when the search gave up, **which is
//! not a pass**.
//!
//! # Limits
//!
//! Expiry is not modelled: use keys without ttl. A condition on a version that nobody was ever told is taken to hold if any write
//! whose version is unknown could have been there.
//!
//! Who calls it: simulations of clusters (virtual time) and `tests/cluster` (real processes).

mod check;
mod excerpt;
mod history;
mod plan;
mod search;

pub use check::{Inconclusive, STATES_MAX, Verdict, check};
pub use excerpt::Violation;
pub use history::{Action, Answer, Call, Counts, History, Operation, Outcome, Value, Version};
