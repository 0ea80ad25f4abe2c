//! Whether a history of one key is linearizable, by trying every order of its operations: slow, and too simple to be wrong. It shares
//! nothing with the checker but the types.

use std::collections::HashMap;

use linz::{Action, Answer, Operation, Outcome, Value, Version};

/// What a key holds: value and version; the version is none if nobody was ever told of it.
type Content = Option<(Value, Option<Version>)>;

struct Oracle<'a> {
    operations: &'a [Operation],
    /// Whose answers count for nothing: a write was applied between its call and its return, or not; a read never was.
    forgotten: &'a [bool],
    /// What clients were told of the versions of values.
    told: HashMap<Value, Version>,
}

pub(crate) fn is_linearizable(operations: &[Operation]) -> bool {
    is_linearizable_without(operations, &vec![false; operations.len()])
}

pub(crate) fn is_linearizable_without(operations: &[Operation], forgotten: &[bool]) -> bool {
    let mut told = HashMap::new();
    let counts = operations.iter().zip(forgotten).filter(|(_, forgotten)| !**forgotten);
    for (operation, _) in counts {
        let outcome = operation.outcome;
        let (value, version) = match operation.action {
            Action::Put { value, .. } => match outcome {
                Outcome::Ok(Answer::Stored(version)) => (value, version),
                _ => continue,
            },
            _ => match outcome {
                Outcome::Ok(Answer::Found(value, version)) => (value, version),
                _ => continue,
            },
        };
        if *told.entry(value).or_insert(version) != version {
            return false;
        }
    }
    let may_be = |(operation, forgotten): (&Operation, &bool)| match operation.outcome {
        Outcome::Failed => false,
        Outcome::Unknown | Outcome::Ok(Answer::Stored(_) | Answer::Deleted(true)) => true,
        Outcome::Ok(_) => !forgotten,
    };
    let mut left: Vec<bool> = operations.iter().zip(forgotten).map(may_be).collect();
    let start = State { content: None, newest: Version(0), until: 0 };
    Oracle { operations, forgotten, told }.explains(&mut left, start)
}

#[derive(Clone, Copy)]
struct State {
    content: Content,
    newest: Version,
    /// The latest call so far.
    until: u64,
}

impl Oracle<'_> {
    fn explains(&self, left: &mut [bool], state: State) -> bool {
        let must_come = |index: &usize| {
            let answered = matches!(self.operations[*index].outcome, Outcome::Ok(_));
            answered && left[*index] && !self.forgotten[*index]
        };
        // What is unknown or forgotten need not be.
        let must_come: Vec<usize> = (0..left.len()).filter(must_come).collect();
        let returned = must_come.iter().map(|index| self.operations[*index].returned);
        let Some(first) = returned.min() else { return true };
        for index in 0..left.len() {
            let Operation { called, returned, .. } = self.operations[index];
            let too_late = self.forgotten[index] && returned < state.until;
            if !left[index] || called > first || too_late {
                continue;
            }
            let Some((content, newest)) = self.after(index, state.content, state.newest) else {
                continue;
            };
            left[index] = false;
            let until = state.until.max(called);
            let explained = self.explains(left, State { content, newest, until });
            left[index] = true;
            if explained {
                return true;
            }
        }
        false
    }

    /// What the key holds after an operation, if its answer is right.
    fn after(&self, index: usize, content: Content, newest: Version) -> Option<(Content, Version)> {
        let Operation { action, mut outcome, .. } = self.operations[index];
        if self.forgotten[index] {
            outcome = Outcome::Unknown;
        }
        let same = Some((content, newest));
        let right = |answer: Answer| outcome == Outcome::Unknown || outcome == Outcome::Ok(answer);
        let holds = action.if_version().is_none_or(|wanted| self.matches(wanted, content));
        let may_not_hold = action.if_version().is_some_and(|wanted| {
            !self.matches(wanted, content) || matches!(content, Some((_, None))) && wanted.0 != 0
        });
        if outcome == Outcome::Ok(Answer::Mismatch) {
            return same.filter(|_| may_not_hold);
        }
        if !holds {
            return None;
        }
        match action {
            Action::Get => {
                let found = match outcome {
                    Outcome::Ok(Answer::Found(value, version)) => {
                        content == Some((value, Some(version)))
                    }
                    Outcome::Ok(Answer::Missing) => content.is_none(),
                    _ => true,
                };
                same.filter(|_| found)
            }
            Action::Put { value, .. } => {
                let version = self.told.get(&value).copied();
                let newest = match version {
                    Some(version) if version <= newest => return None,
                    Some(version) => version,
                    None => newest,
                };
                Some((Some((value, version)), newest))
            }
            Action::Delete { .. } => {
                right(Answer::Deleted(content.is_some())).then_some((None, newest))
            }
        }
    }

    /// Whether a condition may hold.
    fn matches(&self, wanted: Version, content: Content) -> bool {
        match content {
            None => wanted.0 == 0,
            Some((_, Some(version))) => version == wanted,
            // Of a version that nobody knows any condition may be true that no known version is meant by.
            Some((_, None)) => wanted.0 != 0 && !self.told.values().any(|told| *told == wanted),
        }
    }
}
