//! Registers with clients that work at the same time, and the faults that can be built into them. Every operation takes effect at one
//! moment between its call and its return, writes of unknown outcome at one moment after their call, or never.

use linz::{Action, Answer, Call, History, Operation, Outcome, Value, Version};

/// How many clients do how much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) clients: u32,
    pub(crate) keys: usize,
    pub(crate) operations: usize,
    /// Outcomes are unknown now and then, not often.
    pub(crate) calm: bool,
}

/// What a register does wrong, now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Answers a Get with what was there before the last write.
    StaleRead,
    /// Forgets a write that it acknowledges.
    LostWrite,
    /// Applies a write that it calls failed.
    FailedIsApplied,
    /// Applies a write twice, the second time later.
    AppliedTwice,
    /// Gives out a version that is not above all others.
    VersionGoesBack,
    /// Ignores the condition of a write.
    ConditionIgnored,
}

impl Fault {
    pub(crate) const ALL: [Self; 6] = [
        Self::StaleRead,
        Self::LostWrite,
        Self::FailedIsApplied,
        Self::AppliedTwice,
        Self::VersionGoesBack,
        Self::ConditionIgnored,
    ];
}

/// Where decisions come from: a list of bytes, then zeros; or a seed.
pub(crate) struct Decisions<'a> {
    bytes: std::slice::Iter<'a, u8>,
    state: Option<u64>,
}

impl<'a> Decisions<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.iter(), state: None }
    }

    pub(crate) fn seeded(seed: u64) -> Self {
        Self { bytes: [].iter(), state: Some(seed) }
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        let Some(state) = &mut self.state else {
            return usize::from(*self.bytes.next().unwrap_or(&0)) % end;
        };
        // SplitMix64.
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).expect("it is below a usize")
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }
}

struct Client {
    key: usize,
    action: Action,
    call: Option<Call>,
    outcome: Option<Outcome>,
}

struct World<'a, 'b> {
    decisions: &'a mut Decisions<'b>,
    keys: Vec<Register>,
    /// Writes that are given up and may still be applied.
    late: Vec<(usize, Action)>,
    versions: u64,
    fault: Fault,
    faults: usize,
}

#[derive(Default, Clone, Copy)]
struct Register {
    now: Option<(Value, Version)>,
    before: Option<(Value, Version)>,
}

/// Runs the clients to their end; the history, and how often the fault happened.
pub(crate) fn run(shape: Shape, decisions: &mut Decisions<'_>, fault: Fault) -> (History, usize) {
    let history = History::new(shape.operations);
    let keys = vec![Register::default(); shape.keys];
    let mut world = World { decisions, keys, late: Vec::new(), versions: 0, fault, faults: 0 };
    let mut clients: Vec<Option<Client>> = (0..shape.clients).map(|_| None).collect();
    let (mut at, mut begun) = (0, 0);
    while begun < shape.operations || clients.iter().any(Option::is_some) {
        at += 1;
        if !world.late.is_empty() && world.decisions.one_in(8) {
            let (key, action) = world.late.swap_remove(world.decisions.below(world.late.len()));
            world.apply(key, action);
        }
        // Whoever can go on: with no more decisions the first one does.
        let start = world.decisions.below(clients.len());
        let can_go_on = |at: &usize| clients[*at].is_some() || begun < shape.operations;
        let Some(number) =
            (start..start + clients.len()).map(|at| at % clients.len()).find(can_go_on)
        else {
            break;
        };
        clients[number] = match clients[number].take() {
            None => {
                begun += 1;
                let key = world.decisions.below(shape.keys);
                let action = world.action(key, begun as u64);
                let name = u32::try_from(number).expect("few clients");
                let call = history.call(name, &format!("k{key}"), action, at);
                Some(Client { key, action, call, outcome: None })
            }
            Some(mut client) if client.outcome.is_none() => {
                client.outcome = Some(world.serve(client.key, client.action, shape.calm));
                Some(client)
            }
            Some(client) => {
                let (call, outcome) = (client.call, client.outcome.expect("it was served"));
                history.returns(call.expect("there is room"), outcome, at);
                None
            }
        };
    }
    (history, world.faults)
}

impl World<'_, '_> {
    /// What a client does next.
    fn action(&mut self, key: usize, number: u64) -> Action {
        let value = Value(number);
        let known = self.keys[key].now.or(self.keys[key].before).map(|(_, version)| version);
        let guess = match self.decisions.below(4) {
            0 => Some(Version(0)),
            _ => known,
        };
        match self.decisions.below(8) {
            0..=2 => Action::Get,
            3 | 4 => Action::put(value),
            5 => Action::Put { value, if_version: guess },
            6 => Action::delete(),
            _ => Action::Delete { if_version: guess },
        }
    }

    /// Serves an operation or fails it.
    fn serve(&mut self, key: usize, action: Action, calm: bool) -> Outcome {
        let failure = self.decisions.below(if calm { 60 } else { 8 });
        match failure {
            1 => {
                if self.misbehaves(Fault::FailedIsApplied, matches!(action, Action::Put { .. })) {
                    self.apply(key, action);
                }
                Outcome::Failed
            }
            2 => {
                self.apply(key, action);
                Outcome::Unknown
            }
            3 => {
                self.late.push((key, action));
                Outcome::Unknown
            }
            4 if !calm => Outcome::Unknown,
            _ => Outcome::Ok(self.apply(key, action)),
        }
    }

    fn apply(&mut self, key: usize, action: Action) -> Answer {
        let register = self.keys[key];
        let version = register.now.map_or(Version(0), |(_, version)| version);
        let refuses = action.if_version().is_some_and(|wanted| wanted != version);
        if refuses && !self.misbehaves(Fault::ConditionIgnored, true) {
            return Answer::Mismatch;
        }
        let answer = match action {
            Action::Get => {
                let stale = register.before.is_some() && register.before != register.now;
                let stale = self.misbehaves(Fault::StaleRead, stale);
                return match if stale { register.before } else { register.now } {
                    Some((value, version)) => Answer::Found(value, version),
                    None => Answer::Missing,
                };
            }
            Action::Put { value, .. } => {
                self.versions += 1 + self.decisions.below(2) as u64;
                let back = self.misbehaves(Fault::VersionGoesBack, version.0 > 1);
                let version = Version(if back { version.0 - 1 } else { self.versions });
                self.keys[key].now = Some((value, version));
                Answer::Stored(version)
            }
            Action::Delete { .. } => {
                self.keys[key].now = None;
                Answer::Deleted(register.now.is_some())
            }
        };
        self.keys[key].before = register.now;
        if self.misbehaves(Fault::LostWrite, self.keys[key].now != register.now) {
            self.keys[key] = register;
        } else if self.misbehaves(Fault::AppliedTwice, matches!(answer, Answer::Stored(_))) {
            self.late.push((key, action));
        }
        answer
    }

    /// Whether the fault happens here, where it would make a difference.
    fn misbehaves(&mut self, fault: Fault, here: bool) -> bool {
        let happens = self.fault == fault && here && self.decisions.one_in(4);
        self.faults += usize::from(happens);
        happens
    }
}

/// The operations of the one key of a history.
pub(crate) fn operations(history: &History) -> Vec<Operation> {
    history.keys().into_iter().next().map(|(_, operations)| operations).unwrap_or_default()
}

/// A history of these operations.
pub(crate) fn replay(operations: &[Operation]) -> History {
    let mut events: Vec<(u64, usize)> = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        events.push((operation.called, index));
        if operation.returned != u64::MAX {
            events.push((operation.returned, index));
        }
    }
    events.sort_unstable();
    let history = History::new(operations.len());
    let mut calls: Vec<Option<Call>> = operations.iter().map(|_| None).collect();
    for (at, index) in events {
        let operation = &operations[index];
        match calls[index].take() {
            None => calls[index] = history.call(operation.client, "k", operation.action, at),
            Some(call) => history.returns(call, operation.outcome, at),
        }
    }
    history
}

/// Changes how one operation ended.
pub(crate) fn change(operations: &mut [Operation], [which, how, number]: [u8; 3]) {
    if operations.is_empty() {
        return;
    }
    let index = usize::from(which) % operations.len();
    let number = u64::from(number % 12);
    let outcome = match operations[index].action {
        _ if how % 7 == 0 => Outcome::Failed,
        _ if how % 7 == 1 => Outcome::Unknown,
        action if how % 7 == 2 && action.if_version().is_some() => Outcome::Ok(Answer::Mismatch),
        Action::Get if how % 2 == 0 => Outcome::Ok(Answer::Missing),
        Action::Get => {
            let version = Version(u64::from(how) % 12);
            Outcome::Ok(Answer::Found(Value(number), version))
        }
        Action::Put { .. } => Outcome::Ok(Answer::Stored(Version(number))),
        Action::Delete { .. } => Outcome::Ok(Answer::Deleted(number % 2 == 0)),
    };
    operations[index].outcome = outcome;
}

pub(crate) fn show(operations: &[Operation]) -> String {
    operations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
