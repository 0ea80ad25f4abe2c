//! Whether this server is well: components by name, and the two states that orchestrators ask for.
//!
//! *Liveness* is about the process alone: down means that only a restart helps. It never depends on other nodes, or a lost
//! quorum would restart the healthy ones. *Readiness* is whether requests should come here: not while starting or
//! draining, and not while one of the conditions that parts have added does not hold.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use serde_json::{Map, Value};

/// A word of Spring's health, the worst first: an aggregate takes the first of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Does not work.
    Down,
    /// Works, but is not to be used now.
    OutOfService,
    /// Works.
    Up,
    /// Nobody knows.
    Unknown,
}

impl Status {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "DOWN",
            Self::OutOfService => "OUT_OF_SERVICE",
            Self::Up => "UP",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// Whether a load balancer should leave (HTTP 503).
    pub const fn is_unavailable(self) -> bool {
        matches!(self, Self::Down | Self::OutOfService)
    }
}

/// The state of a component: a status with details, or the sum of parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentHealth {
    /// The word.
    pub status: Status,
    /// What else is known; none for a composite.
    pub details: Map<String, Value>,
    /// The parts of a composite by name.
    pub components: BTreeMap<String, ComponentHealth>,
}

impl ComponentHealth {
    /// A leaf without details.
    pub fn new(status: Status) -> Self {
        Self { status, details: Map::new(), components: BTreeMap::new() }
    }

    /// With one more detail.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// The sum of `components`: the worst of them; unknown when there is none.
    pub fn composite(components: BTreeMap<String, Self>) -> Self {
        let worst = components.values().map(|component| component.status).min();
        Self { status: worst.unwrap_or(Status::Unknown), details: Map::new(), components }
    }

    /// The part at `path`, names from the outside in.
    pub fn at<'a>(&self, mut path: impl Iterator<Item = &'a str>) -> Option<&Self> {
        path.try_fold(self, |component, name| component.components.get(name))
    }
}

/// Tells the state of one component. Called on each request for health, by any thread; must not block for long.
pub type Check = Box<dyn Fn() -> ComponentHealth + Send + Sync>;

/// Whether requests should come here, as far as one part can tell. As cheap as a [`Check`].
pub type Condition = Box<dyn Fn() -> bool + Send + Sync>;

/// The health of one server. Starts live and not ready.
pub struct Health {
    broken: AtomicBool,
    accepting: AtomicBool,
    checks: RwLock<BTreeMap<String, Check>>,
    conditions: RwLock<Vec<Condition>>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Live, not ready, without components of others.
    pub fn new() -> Self {
        Self {
            broken: AtomicBool::new(false),
            accepting: AtomicBool::new(false),
            checks: RwLock::default(),
            conditions: RwLock::default(),
        }
    }

    /// Adds a component; a second one of the same name takes its place.
    pub fn register(&self, name: &str, check: Check) {
        self.checks.write().insert(name.to_owned(), check);
    }

    /// Adds what has to hold for the server to be ready.
    pub fn ready_while(&self, condition: Condition) {
        self.conditions.write().push(condition);
    }

    /// Says that start is complete, or (false) that the server drains.
    pub fn set_accepting(&self, accepting: bool) {
        self.accepting.store(accepting, Ordering::Release);
    }

    /// Says that only a restart helps. There is no way back.
    pub fn set_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Up, or down when only a restart helps.
    pub fn liveness(&self) -> Status {
        if self.broken.load(Ordering::Acquire) { Status::Down } else { Status::Up }
    }

    /// Up, or out of service while requests should go elsewhere.
    pub fn readiness(&self) -> Status {
        let ready = self.accepting.load(Ordering::Acquire)
            && self.liveness() == Status::Up
            && self.conditions.read().iter().all(|condition| condition());
        if ready { Status::Up } else { Status::OutOfService }
    }

    /// Everything, summed.
    pub fn overall(&self) -> ComponentHealth {
        let mut components: BTreeMap<String, ComponentHealth> =
            self.checks.read().iter().map(|(name, check)| (name.clone(), check())).collect();
        components.insert("ping".to_owned(), ComponentHealth::new(Status::Up));
        let states = [("livenessState", self.liveness()), ("readinessState", self.readiness())];
        for (name, status) in states {
            components.insert(name.to_owned(), ComponentHealth::new(status));
        }
        ComponentHealth::composite(components)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_whole_takes_the_worst_of_its_parts() {
        use Status::{Down, OutOfService, Unknown, Up};
        for (parts, whole) in [
            (vec![], Unknown),
            (vec![Unknown], Unknown),
            (vec![Up, Unknown], Up),
            (vec![Up, OutOfService, Unknown], OutOfService),
            (vec![OutOfService, Down, Up], Down),
        ] {
            let named = parts.iter().enumerate();
            let components =
                named.map(|(name, status)| (name.to_string(), ComponentHealth::new(*status)));
            assert_eq!(ComponentHealth::composite(components.collect()).status, whole, "{parts:?}");
        }
    }

    #[test]
    fn readiness_needs_acceptance_and_every_condition() {
        let health = Health::new();
        let leader = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&leader);
        health.ready_while(Box::new(move || seen.load(Ordering::Acquire)));
        assert_eq!((health.liveness(), health.readiness()), (Status::Up, Status::OutOfService));
        health.set_accepting(true);
        assert_eq!(health.readiness(), Status::Up);
        leader.store(false, Ordering::Release);
        assert_eq!((health.liveness(), health.readiness()), (Status::Up, Status::OutOfService));
        leader.store(true, Ordering::Release);
        health.set_accepting(false);
        assert_eq!(health.readiness(), Status::OutOfService);
        health.set_broken();
        assert_eq!(health.liveness(), Status::Down);
    }
}
