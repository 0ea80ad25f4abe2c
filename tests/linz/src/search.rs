//! Looks for an order of a key's steps: Wing and Gong's search with Lowe's memory of states ("Testing for linearizability", 2017).
//!
//! The search takes steps one by one. A step may come next if it was called before any of those that are left returned; trying them all
//! is exponential in the number of clients, so:
//!
//! * a step that only looks (Get, mismatch, nothing to remove) and is right in the present state is taken at once: it hinders nothing;
//! * of the Puts only the one with the next version may come;
//! * an optional write is put in only right before a step that waits and is not right without it. Put in earlier it would do the same,
//!   and where nothing needs it, leaving it out changes nothing. Of each kind the number is what counts;
//! * a state (what was taken, what the register holds, how many optional writes were used) is entered once.
//!
//! What is left to try is where Deletes and optional writes go.

use std::collections::HashSet;

use crate::history::Version;
use crate::plan::{Condition, Effect, Optional, Plan, Step};

/// What came of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// There is an order.
    Order,
    /// There is none.
    None,
    /// More states than allowed.
    GaveUp,
}

/// What the register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Register {
    Absent,
    Version(Version),
    /// What an optional write stored.
    Unread,
}

/// How many optional writes of each kind were put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Used {
    puts: u32,
    creates: u32,
    deletes: u32,
    guesses: u32,
}

/// The state of a search but for the steps that were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    register: Register,
    used: Used,
}

/// A way to go on: the state after it, and the step it takes, if it is not an optional write.
#[derive(Debug, Clone, Copy)]
struct Move {
    state: State,
    step: Option<usize>,
}

/// Where the search has been: `(state, first word that is not full, words from there on)`.
type Seen = HashSet<(State, usize, Box<[u64]>)>;

/// A place to come back to.
struct Frame {
    state: State,
    /// How many steps were taken.
    depth: usize,
    moves: Vec<Move>,
}

/// Searches, through at most so many states.
pub(crate) fn search(plan: &Plan, states_max: usize) -> Found {
    let mut search = Search::new(plan);
    let mut seen = Seen::new();
    let mut frames: Vec<Frame> = Vec::new();
    loop {
        search.look();
        if search.left.is_empty() {
            return Found::Order;
        }
        let (first, words) = search.taken.trimmed();
        if seen.insert((search.state, first, words)) {
            if seen.len() > states_max {
                return Found::GaveUp;
            }
            let moves = search.moves();
            frames.push(Frame { state: search.state, depth: search.order.len(), moves });
        }
        let next = loop {
            let Some(frame) = frames.last_mut() else { return Found::None };
            search.back_to(frame.depth, frame.state);
            match frame.moves.pop() {
                Some(next) => break next,
                None => frames.pop(),
            };
        };
        search.state = next.state;
        if let Some(step) = next.step {
            search.take(step);
        }
    }
}

struct Search<'a> {
    plan: &'a Plan,
    state: State,
    /// Steps in the order in which they were taken, each with the latest call of it and those before it. What saw an absent key or a
    /// mismatch does not count: it may as well come later, when the key is absent again.
    order: Vec<(usize, u64)>,
    taken: Bits,
    left: Events,
    /// Versions of the Puts, in order.
    versions: Vec<Version>,
    /// How many Puts were taken.
    puts: usize,
}

impl<'a> Search<'a> {
    fn new(plan: &'a Plan) -> Self {
        let mut versions: Vec<_> = plan
            .steps
            .iter()
            .filter_map(|step| match step.effect {
                Effect::Put(version, _) => Some(version),
                _ => None,
            })
            .collect();
        versions.sort_unstable();
        Self {
            plan,
            state: State { register: Register::Absent, used: Used::default() },
            order: Vec::new(),
            taken: Bits::new(plan.steps.len()),
            left: Events::new(plan),
            versions,
            puts: 0,
        }
    }

    fn take(&mut self, step: usize) {
        self.left.remove(step);
        self.taken.set(step, true);
        let Step { called, effect, .. } = self.plan.steps[step];
        let counts = !matches!(effect, Effect::Mismatch(_) | Effect::Saw(None));
        self.order.push((step, self.until().max(if counts { called } else { 0 })));
        self.puts += usize::from(matches!(effect, Effect::Put(..)));
    }

    /// The latest call of what was taken.
    fn until(&self) -> u64 {
        self.order.last().map_or(0, |(_, until)| *until)
    }

    fn back_to(&mut self, depth: usize, state: State) {
        while self.order.len() > depth {
            let (step, _) = self.order.pop().expect("it is longer than the depth");
            self.left.restore(step);
            self.taken.set(step, false);
            self.puts -= usize::from(matches!(self.plan.steps[step].effect, Effect::Put(..)));
        }
        self.state = state;
    }

    /// Takes every step that only looks and is right as things are.
    fn look(&mut self) {
        let (steps, register) = (&self.plan.steps, self.state.register);
        loop {
            let mut right =
                self.left.next_ones().filter(|step| looks(steps[*step].effect, register));
            let Some(step) = right.next() else { return };
            drop(right);
            self.take(step);
        }
    }

    /// The ways to go on, the likeliest last.
    fn moves(&self) -> Vec<Move> {
        let mut takes = Vec::new();
        let mut wanted = Wanted::default();
        for step in self.left.next_ones() {
            let effect = self.plan.steps[step].effect;
            if !self.has_its_turn(effect) {
                continue;
            }
            match after(effect, self.state.register) {
                Ok(register) => {
                    let state = State { register, used: self.state.used };
                    takes.push(Move { state, step: Some(step) });
                }
                Err(wants) => wanted.add(wants),
            }
        }
        let mut moves = Vec::new();
        if let Some(now) = self.left.first_return() {
            let able = Able { optional: &self.plan.optional, now, until: self.until() };
            // One way may lead over the other: removed, then created; stored unread, then removed by a guess.
            let guess = able.has_more(&self.plan.optional.guesses, self.state.used.guesses);
            if wanted.absent || wanted.unread {
                able.become_absent(self.state, &mut moves);
            }
            if wanted.unread || wanted.absent && guess {
                able.become_unread(self.state, &mut moves);
            }
        }
        moves.extend(takes);
        moves
    }

    /// False for a Put whose turn it is not.
    fn has_its_turn(&self, effect: Effect) -> bool {
        match effect {
            Effect::Put(version, _) => self.versions.get(self.puts) == Some(&version),
            _ => true,
        }
    }
}

/// What steps that are not right now would need.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    absent: bool,
    /// A version that nobody read; where anything but the present version will do, also that.
    unread: bool,
}

impl Wanted {
    const NOTHING: Self = Self { absent: false, unread: false };
    const ABSENT: Self = Self { absent: true, unread: false };
    const UNREAD: Self = Self { absent: false, unread: true };

    fn add(&mut self, other: Self) {
        self.absent |= other.absent;
        self.unread |= other.unread;
    }
}

/// Whether a step changes nothing and is right.
fn looks(effect: Effect, register: Register) -> bool {
    matches!(effect, Effect::Saw(_) | Effect::Mismatch(_)) && after(effect, register).is_ok()
}

/// The register after a step, or what it would need.
fn after(effect: Effect, register: Register) -> Result<Register, Wanted> {
    match effect {
        Effect::Saw(None) if register != Register::Absent => Err(Wanted::ABSENT),
        Effect::Saw(Some(version)) if register != Register::Version(version) => {
            Err(Wanted::NOTHING)
        }
        Effect::Saw(_) => Ok(register),
        Effect::Mismatch(condition) => match condition {
            Condition::Absent if register == Register::Absent => Err(Wanted::UNREAD),
            Condition::Version(version) if register == Register::Version(version) => {
                Err(Wanted::UNREAD)
            }
            _ => Ok(register),
        },
        Effect::Put(version, condition) => {
            holds(condition, register).map(|()| Register::Version(version))
        }
        Effect::Removed(condition) => {
            holds(condition, register)?;
            if register == Register::Absent { Err(Wanted::UNREAD) } else { Ok(Register::Absent) }
        }
    }
}

fn holds(condition: Condition, register: Register) -> Result<(), Wanted> {
    let (right, wanted) = match condition {
        Condition::None => (true, Wanted::NOTHING),
        Condition::Absent => (register == Register::Absent, Wanted::ABSENT),
        Condition::Version(version) => (register == Register::Version(version), Wanted::NOTHING),
        Condition::Untold => (register == Register::Unread, Wanted::UNREAD),
    };
    if right { Ok(()) } else { Err(wanted) }
}

/// The optional writes that may come now.
struct Able<'a> {
    optional: &'a Optional,
    /// The first return of what is left: what was called before it may come.
    now: u64,
    /// The latest call of what was taken: what returned after it may come.
    until: u64,
}

impl Able<'_> {
    fn has_more(&self, calls: &[u64], used: u32) -> bool {
        calls.get(used as usize).is_some_and(|called| *called < self.now)
    }

    fn is_called(&self, call: Option<&u64>) -> bool {
        call.is_some_and(|called| *called < self.now)
    }

    /// Optional writes after which the key is absent.
    fn become_absent(&self, state: State, moves: &mut Vec<Move>) {
        let State { register, used } = state;
        if register == Register::Absent {
            return;
        }
        let mut push = |used| {
            moves.push(Move { state: State { register: Register::Absent, used }, step: None });
        };
        if register == Register::Unread && self.has_more(&self.optional.guesses, used.guesses) {
            push(Used { guesses: used.guesses + 1, ..used });
        }
        if self.optional.forgotten_deletes.is_open(self.now, self.until) {
            push(used);
        }
        if self.has_more(&self.optional.deletes, used.deletes) {
            push(Used { deletes: used.deletes + 1, ..used });
        }
        if let Register::Version(version) = register
            && self.is_called(self.optional.removes.get(&version))
        {
            push(used);
        }
    }

    /// Optional writes after which the key has a version that nobody read.
    fn become_unread(&self, state: State, moves: &mut Vec<Move>) {
        let State { register, used } = state;
        if register == Register::Unread {
            return;
        }
        let mut push = |used| {
            moves.push(Move { state: State { register: Register::Unread, used }, step: None });
        };
        if self.optional.forgotten_puts.is_open(self.now, self.until) {
            push(used);
        }
        if self.has_more(&self.optional.puts, used.puts) {
            push(Used { puts: used.puts + 1, ..used });
        }
        if register == Register::Absent && self.has_more(&self.optional.creates, used.creates) {
            push(Used { creates: used.creates + 1, ..used });
        }
        if let Register::Version(version) = register
            && self.is_called(self.optional.replaces.get(&version))
        {
            push(used);
        }
    }
}

/// Which steps were taken.
struct Bits {
    words: Vec<u64>,
}

impl Bits {
    fn new(bits: usize) -> Self {
        Self { words: vec![0; bits.div_ceil(64)] }
    }

    fn set(&mut self, bit: usize, on: bool) {
        let (word, mask) = (bit / 64, 1 << (bit % 64));
        if on {
            self.words[word] |= mask;
        } else {
            self.words[word] &= !mask;
        }
    }

    /// Without the full words at the beginning and the empty ones at the end: steps are in the order of their calls, so what is between
    /// is short.
    fn trimmed(&self) -> (usize, Box<[u64]>) {
        let first = self.words.iter().position(|word| *word != u64::MAX);
        let first = first.unwrap_or(self.words.len());
        let end = self.words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        (first, self.words[first..end.max(first)].into())
    }
}

/// Calls and returns of the steps that are left, in their order: a doubly linked list over 0 (before the first event), `2 * step + 1` (its
/// call) and `2 * step + 2` (its return). Steps come back in the opposite order of their removal.
struct Events {
    next: Vec<usize>,
    previous: Vec<usize>,
    /// When each event was.
    at: Vec<u64>,
}

/// Behind the last event.
const END: usize = 0;

impl Events {
    fn new(plan: &Plan) -> Self {
        let mut at = vec![0];
        for step in &plan.steps {
            at.extend([step.called, step.returned]);
        }
        let mut events: Vec<usize> = (1..at.len()).collect();
        events.sort_unstable_by_key(|event| at[*event]);
        let (mut next, mut previous) = (vec![END; at.len()], vec![END; at.len()]);
        let mut last = 0;
        for event in events {
            next[last] = event;
            previous[event] = last;
            last = event;
        }
        next[last] = END;
        previous[END] = last;
        Self { next, previous, at }
    }

    fn is_empty(&self) -> bool {
        self.next[0] == END
    }

    fn remove(&mut self, step: usize) {
        for event in [2 * step + 1, 2 * step + 2] {
            let (previous, next) = (self.previous[event], self.next[event]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
    }

    fn restore(&mut self, step: usize) {
        for event in [2 * step + 2, 2 * step + 1] {
            let (previous, next) = (self.previous[event], self.next[event]);
            self.next[previous] = event;
            self.previous[next] = event;
        }
    }

    /// The steps that may come next: those called before any that is left returned.
    fn next_ones(&self) -> impl Iterator<Item = usize> {
        let calls = std::iter::successors(Some(self.next[0]), |event| Some(self.next[*event]));
        calls.take_while(|event| event % 2 == 1).map(|event| event / 2)
    }

    /// When the first of the steps that are left returned.
    fn first_return(&self) -> Option<u64> {
        let mut event = self.next[0];
        while event % 2 == 1 {
            event = self.next[event];
        }
        (event != END).then(|| self.at[event])
    }
}
