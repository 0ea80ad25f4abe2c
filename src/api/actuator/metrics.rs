//! `/actuator/metrics` and `/actuator/prometheus`: the readings of [`Metrics`] in the forms that others expect.

use std::collections::BTreeSet;

use http::Uri;
use serde_json::{Value, json};

use super::Answer;
use crate::telemetry::{Measurements, Metrics, Reading, Refusal};

const TEXT: &str = "text/plain;version=0.0.4;charset=utf-8";

const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0;charset=utf-8";

/// What `/actuator/prometheus` can send.
pub(super) const TEXTS: [&str; 2] = [TEXT, OPEN_METRICS];

/// The parameters of a request by name; unknown ones are none of our business.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(uri: &Uri) -> Self {
        let pairs = axum::extract::Query::try_from_uri(uri);
        Self(pairs.map(|axum::extract::Query(pairs)| pairs).unwrap_or_default())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// All names, sorted.
pub(super) fn names(metrics: &Metrics) -> Answer {
    Answer::ok(&json!({ "names": metrics.names() }))
}

/// One metric, of the series that carry every `tag=NAME:VALUE`.
pub(super) fn one(metrics: &Metrics, name: &str, query: &Query) -> Answer {
    let mut tags = Vec::new();
    for tag in query.all("tag") {
        let Some(pair) = tag.split_once(':') else {
            let message = format!("each tag parameter must be 'key:value', but one was {tag:?}");
            return Answer::Refused(http::StatusCode::BAD_REQUEST, message);
        };
        tags.push(pair);
    }
    match metrics.reading(name, &tags) {
        Ok(reading) => Answer::ok(&document(&reading)),
        Err(Refusal::UnknownName) => {
            Answer::not_found("there is no such metric; GET /actuator/metrics lists them")
        }
        Err(Refusal::UnknownTag) => {
            let message = "no series has these tags; without tags the answer lists them";
            Answer::not_found(message)
        }
    }
}

fn document(reading: &Reading) -> Value {
    let measurement = |statistic: &str, value: f64| json!({"statistic": statistic, "value": value});
    let measurements = match reading.measurements {
        Measurements::Count(value) => vec![measurement("COUNT", value)],
        Measurements::Value(value) => vec![measurement("VALUE", value)],
        Measurements::Distribution { count, total, max } => vec![
            measurement("COUNT", count),
            measurement(
                if reading.base_unit == Some("seconds") { "TOTAL_TIME" } else { "TOTAL" },
                total,
            ),
            measurement("MAX", max),
        ],
    };
    let tags = reading.available_tags.iter();
    let mut document = json!({
        "name": reading.name,
        "description": reading.description,
        "measurements": measurements,
        "availableTags":
            tags.map(|(tag, values)| json!({"tag": tag, "values": values})).collect::<Vec<_>>(),
    });
    if let Some(unit) = reading.base_unit {
        document["baseUnit"] = unit.into();
    }
    document
}

/// The families that `includedNames` names, or all of them, as one of [`TEXTS`]. A family is also known by the names of its
/// samples.
pub(super) fn prometheus(metrics: &Metrics, query: &Query, media_type: &'static str) -> Answer {
    let included: BTreeSet<&str> = query
        .all("includedNames")
        .flat_map(|names| names.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    let wanted = |family: &str| {
        let plain = family.strip_suffix("_total").unwrap_or(family);
        let sample = |suffix| included.contains(format!("{family}{suffix}").as_str());
        included.is_empty()
            || included.contains(family)
            || included.contains(plain)
            || ["_bucket", "_count", "_sum"].into_iter().any(sample)
    };
    let text = if media_type == OPEN_METRICS {
        metrics.open_metrics(&wanted)
    } else {
        metrics.text(&wanted)
    };
    Answer::Text(media_type, text)
}
