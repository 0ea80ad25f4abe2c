//! `/actuator/health`: the components of [`Health`] as Spring writes them.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::Answer;
use crate::telemetry::{ComponentHealth, Health, Status};

/// Names that `/actuator/health` says can be asked for as one word each.
const GROUPS: [&str; 2] = ["liveness", "readiness"];

/// A component; `status` stands first.
#[derive(Serialize)]
struct Document<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    components: BTreeMap<&'a str, Document<'a>>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    details: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    groups: &'static [&'static str],
}

impl<'a> Document<'a> {
    fn new(component: &'a ComponentHealth) -> Self {
        let parts = component.components.iter();
        Self {
            status: component.status.as_str(),
            components: parts.map(|(name, part)| (name.as_str(), Self::new(part))).collect(),
            details: &component.details,
            groups: &[],
        }
    }
}

/// Everything.
pub(super) fn whole(health: &Health) -> Answer {
    let whole = health.overall();
    Answer::health(whole.status, &Document { groups: &GROUPS, ..Document::new(&whole) })
}

/// The part that `names` lead to, from the outside in.
pub(super) fn component(health: &Health, names: &[String]) -> Answer {
    let whole = health.overall();
    match whole.at(names.iter().map(String::as_str)) {
        Some(component) => Answer::health(component.status, &Document::new(component)),
        None => Answer::not_found("there is no such component; GET /actuator/health lists them"),
    }
}

/// One word.
pub(super) fn state(status: Status) -> Answer {
    Answer::health(status, &Document::new(&ComponentHealth::new(status)))
}
