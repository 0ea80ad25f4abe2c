//! From the operations of a key to what an order of them has to satisfy.
//!
//! Unique values and growing versions make the search small. Whatever was read tells which write it was and which version that write was
//! given. What remains is:
//!
//! * [`Step`]s, which are in the order for certain: what was answered, and the writes of unknown outcome whose value was read. Each Put
//!   among them has a known version, and their versions give the order among them.
//! * [`Optional`] writes of unknown outcome that nobody read. Which of them was applied makes no difference to anyone, only that one
//!   was, so they are counted by kind.
//!
//! Whoever looks for the few operations that contradict each other forgets the answers of others ([`Forgotten`]): a read never was, a write
//! was applied between its call and its return, or not.
//!
//! Contradictions that need no search are found on the way, and have names.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::history::{Action, Answer, Operation, Outcome, Value, Version};

/// What must hold for a write on a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Nothing.
    None,
    /// The key is absent.
    Absent,
    /// The key has this version, which some write was given.
    Version(Version),
    /// The key has a version of which nobody was told: only a write that nobody read can have been given it.
    Untold,
}

/// What a step needs and does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Saw this version, or that the key is absent.
    Saw(Option<Version>),
    /// Saw that the condition does not hold.
    Mismatch(Condition),
    /// Stored what has this version.
    Put(Version, Condition),
    /// Removed what was there.
    Removed(Condition),
}

/// One operation that is in the order for certain, between its call and its return.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) called: u64,
    pub(crate) returned: u64,
    pub(crate) effect: Effect,
}

/// Calls of writes that may be in the order or not, and whose values nobody read; each list in order.
#[derive(Debug, Default)]
pub(crate) struct Optional {
    /// Puts without condition.
    pub(crate) puts: Vec<u64>,
    /// Puts where the key is absent.
    pub(crate) creates: Vec<u64>,
    /// Deletes without condition.
    pub(crate) deletes: Vec<u64>,
    /// Deletes on the condition of a version of which nobody was told.
    pub(crate) guesses: Vec<u64>,
    /// The first Put on the condition of a version. One is enough: after it the version does not come back.
    pub(crate) replaces: HashMap<Version, u64>,
    /// The first Delete on the condition of a version.
    pub(crate) removes: HashMap<Version, u64>,
    /// Puts whose answer is forgotten.
    pub(crate) forgotten_puts: Windows,
    /// Deletes whose answer is forgotten.
    pub(crate) forgotten_deletes: Windows,
}

/// Calls and returns of writes that were applied between the two, or not. They are not counted: each may explain many things.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    /// Each call, and the latest return of it and those before it.
    windows: Vec<(u64, u64)>,
}

impl Windows {
    /// Adds one that was called after all others.
    fn push(&mut self, called: u64, returned: u64) {
        let latest = self.windows.last().map_or(returned, |(_, latest)| returned.max(*latest));
        self.windows.push((called, latest));
    }

    /// Whether one was called before `now` and returned after `until`.
    pub(crate) fn is_open(&self, now: u64, until: u64) -> bool {
        let called = self.windows.partition_point(|(called, _)| *called < now);
        called > 0 && self.windows[called - 1].1 > until
    }
}

/// The operations, by index, whose answers count for nothing.
pub(crate) type Forgotten = HashSet<usize>;

/// What an order of a key's operations has to satisfy.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) optional: Optional,
}

/// Operations that contradict each other, by index, and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Contradiction {
    pub(crate) why: &'static str,
    pub(crate) operations: Vec<usize>,
}

/// What is known of a value.
struct Write {
    /// The operation that stored it.
    operation: usize,
    /// Its version, and which operation told.
    version: Option<(Version, usize)>,
    /// The first return of a Get that found it.
    read_by: Option<u64>,
}

/// Makes the plan for a key.
pub(crate) fn plan(operations: &[Operation], forgotten: &Forgotten) -> Result<Plan, Contradiction> {
    let writes = writes(operations, forgotten)?;
    let told = told(&writes)?;
    let condition = |action: Action| match action.if_version() {
        None => Condition::None,
        Some(Version(0)) => Condition::Absent,
        Some(version) if told.contains(&version) => Condition::Version(version),
        Some(_) => Condition::Untold,
    };
    let mut plan = Plan::default();
    for (index, operation) in operations.iter().enumerate() {
        let condition = condition(operation.action);
        let mut returned = operation.returned;
        let effect = match operation.outcome {
            Outcome::Failed => continue,
            Outcome::Ok(_) if forgotten.contains(&index) => {
                let Some((version, read)) = observed(operation, &writes) else {
                    plan.optional.forget(operation);
                    continue;
                };
                returned = returned.min(read);
                Effect::Put(version, Condition::None)
            }
            Outcome::Ok(answer) => effect(answer, condition)
                .map_err(|why| Contradiction { why, operations: vec![index] })?,
            Outcome::Unknown => {
                let Some((version, read)) = observed(operation, &writes) else {
                    plan.optional.add(operation, condition);
                    continue;
                };
                returned = read;
                Effect::Put(version, condition)
            }
        };
        plan.steps.push(Step { called: operation.called, returned, effect });
    }
    Ok(plan)
}

/// What an answer tells, or why it cannot be.
fn effect(answer: Answer, condition: Condition) -> Result<Effect, &'static str> {
    Ok(match (answer, condition) {
        (Answer::Found(_, version), _) => Effect::Saw(Some(version)),
        (Answer::Missing, _) | (Answer::Deleted(false), Condition::None | Condition::Absent) => {
            Effect::Saw(None)
        }
        (Answer::Mismatch, condition) => Effect::Mismatch(condition),
        (Answer::Stored(version), condition) => Effect::Put(version, condition),
        (Answer::Deleted(true), Condition::Absent) => {
            return Err("removed a key that had to be absent");
        }
        (Answer::Deleted(true), condition) => Effect::Removed(condition),
        (Answer::Deleted(false), _) => {
            return Err("a delete whose condition did not hold was not refused");
        }
    })
}

/// Everything that is known of each value: who stored it, with which version, when it was read first.
fn writes(
    operations: &[Operation],
    forgotten: &Forgotten,
) -> Result<BTreeMap<Value, Write>, Contradiction> {
    let mut writes = BTreeMap::new();
    for (index, operation) in operations.iter().enumerate() {
        if let Action::Put { value, .. } = operation.action {
            let version = match operation.outcome {
                Outcome::Ok(Answer::Stored(version)) if !forgotten.contains(&index) => {
                    Some((version, index))
                }
                _ => None,
            };
            let write = Write { operation: index, version, read_by: None };
            let twice = writes.insert(value, write).is_some();
            assert!(!twice, "the value {value} was put twice: values of a key must be unique");
        }
    }
    for (index, operation) in operations.iter().enumerate() {
        let Outcome::Ok(Answer::Found(value, version)) = operation.outcome else { continue };
        if forgotten.contains(&index) {
            continue;
        }
        let contradiction = |why, operations| Err(Contradiction { why, operations });
        let Some(write) = writes.get_mut(&value) else {
            return contradiction("read a value that nobody wrote", vec![index]);
        };
        let writer = &operations[write.operation];
        let pair = vec![write.operation, index];
        if matches!(writer.outcome, Outcome::Failed | Outcome::Ok(Answer::Mismatch)) {
            return contradiction("read a value whose write was certainly not applied", pair);
        }
        if operation.returned < writer.called {
            return contradiction("read a value before it was written", pair);
        }
        match write.version {
            Some((known, told_by)) if known != version => {
                let why = "one write has two versions: it was applied twice";
                let mut all = vec![write.operation, told_by, index];
                all.dedup();
                return contradiction(why, all);
            }
            _ => write.version = Some((version, index)),
        }
        let earliest = write.read_by.map_or(operation.returned, |at| at.min(operation.returned));
        write.read_by = Some(earliest);
    }
    Ok(writes)
}

/// The versions that someone was told.
fn told(writes: &BTreeMap<Value, Write>) -> Result<HashSet<Version>, Contradiction> {
    let mut told: HashMap<Version, (usize, usize)> = HashMap::new();
    for write in writes.values() {
        let Some((version, told_by)) = write.version else { continue };
        if version.0 == 0 {
            let why = "a version is 0, which means absent";
            return Err(Contradiction { why, operations: vec![told_by] });
        }
        if let Some((other, other_by)) = told.insert(version, (write.operation, told_by)) {
            let mut operations = vec![write.operation, told_by, other, other_by];
            operations.sort_unstable();
            operations.dedup();
            return Err(Contradiction { why: "two writes have the same version", operations });
        }
    }
    Ok(told.into_keys().collect())
}

/// Version and latest moment of a write that was read.
fn observed(operation: &Operation, writes: &BTreeMap<Value, Write>) -> Option<(Version, u64)> {
    let Action::Put { value, .. } = operation.action else { return None };
    let write = &writes[&value];
    Some((write.version?.0, write.read_by?))
}

impl Optional {
    /// Adds a write that was answered. What was answered without having changed anything is gone.
    fn forget(&mut self, operation: &Operation) {
        let (called, returned) = (operation.called, operation.returned);
        match operation.outcome {
            Outcome::Ok(Answer::Stored(_)) => self.forgotten_puts.push(called, returned),
            Outcome::Ok(Answer::Deleted(true)) => self.forgotten_deletes.push(called, returned),
            _ => {}
        }
    }

    fn add(&mut self, operation: &Operation, condition: Condition) {
        let called = operation.called;
        match (operation.action, condition) {
            // They change nothing: the last one puts something unread in the place of something unread.
            (Action::Get, _)
            | (Action::Delete { .. }, Condition::Absent)
            | (Action::Put { .. }, Condition::Untold) => {}
            (Action::Delete { .. }, Condition::Untold) => self.guesses.push(called),
            (Action::Put { .. }, Condition::None) => self.puts.push(called),
            (Action::Delete { .. }, Condition::None) => self.deletes.push(called),
            (Action::Put { .. }, Condition::Absent) => self.creates.push(called),
            (Action::Put { .. }, Condition::Version(version)) => {
                self.replaces.entry(version).or_insert(called);
            }
            (Action::Delete { .. }, Condition::Version(version)) => {
                self.removes.entry(version).or_insert(called);
            }
        }
    }
}
