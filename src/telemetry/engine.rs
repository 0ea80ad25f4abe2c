//! The figures of the storage engine as metrics. Which figures there are is the engine's business (`storage`): an engine
//! without figures has no such metrics.
//!
//! A figure `name` is the gauge `kvstore_engine_name`, but for families that have a label:
//!
//! | figure | metric |
//! |---|---|
//! | `l0_tables`, `l0_bytes`, ... | `kvstore_engine_level_tables`, `kvstore_engine_level_bytes`, by `level` |
//! | `compactions_size`, ... | `kvstore_engine_compactions`, by `reason` |
//! | `delays_debt`, `stops_debt`, ... | `kvstore_engine_delays`, `kvstore_engine_stops`, by `reason` |
//! | `delayed_debt_millis`, ... | `kvstore_engine_delayed_millis`, by `reason` |

use std::collections::BTreeMap;

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::metrics::{desc, family, labelled};

/// Tells the figures by name. Called when the metrics are read; must not block for long.
pub type Figures = Box<dyn Fn() -> BTreeMap<&'static str, f64> + Send + Sync>;

/// See the [module](self).
pub struct EngineCollector(Figures);

impl EngineCollector {
    /// Of what `figures` tells.
    pub fn new(figures: Figures) -> Self {
        Self(figures)
    }
}

impl Collector for EngineCollector {
    fn desc(&self) -> Vec<&Desc> {
        // Not known before they are asked for.
        Vec::new()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut families = BTreeMap::new();
        for (figure, value) in (self.0)() {
            let (name, label) = place(figure);
            let mut metric = match &label {
                Some((label, value)) => labelled(&[(label, value)]),
                None => labelled(&[]),
            };
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
            families
                .entry((name, label.map(|(label, _)| label)))
                .or_insert_with(Vec::new)
                .push(metric);
        }
        let make = |((name, label), metrics): ((String, Option<&str>), _)| {
            let name = format!("kvstore_engine_{name}");
            let labels: Vec<&str> = label.into_iter().collect();
            let desc =
                desc((&name, "A figure of the storage engine, see `kvstore status`"), &labels);
            family(&desc, proto::MetricType::GAUGE, metrics)
        };
        families.into_iter().map(make).collect()
    }
}

/// The metric that a figure belongs to, without its prefix, and its label there.
fn place(figure: &str) -> (String, Option<(&'static str, String)>) {
    if let Some((level, what)) = figure.strip_prefix('l').and_then(|rest| rest.split_once('_'))
        && level.bytes().all(|byte| byte.is_ascii_digit())
    {
        return (format!("level_{what}"), Some(("level", level.to_owned())));
    }
    if let Some(reason) = figure.strip_prefix("delayed_").and_then(|r| r.strip_suffix("_millis")) {
        return ("delayed_millis".to_owned(), Some(("reason", reason.to_owned())));
    }
    for family in ["compactions", "delays", "stops"] {
        if let Some(reason) = figure.strip_prefix(family).and_then(|rest| rest.strip_prefix('_')) {
            return (family.to_owned(), Some(("reason", reason.to_owned())));
        }
    }
    (figure.to_owned(), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn figures_become_gauges_and_those_of_one_kind_a_family() {
        let metrics = Metrics::new();
        let figures = BTreeMap::from([
            ("cache_blocks", 7.0),
            ("l0_tables", 3.0),
            ("l6_tables", 9.0),
            ("log_bytes", 5.0),
            ("compactions_level_zero", 2.0),
            ("delayed_debt_millis", 1.5),
            ("stops_memtables", 1.0),
        ]);
        let collector = EngineCollector::new(Box::new(move || figures.clone()));
        metrics.register(Box::new(collector)).expect("the names are free");
        let text = metrics.text(&|name: &str| name.starts_with("kvstore_engine_"));
        for line in [
            "kvstore_engine_cache_blocks 7",
            "kvstore_engine_level_tables{level=\"0\"} 3",
            "kvstore_engine_level_tables{level=\"6\"} 9",
            "kvstore_engine_log_bytes 5",
            "kvstore_engine_compactions{reason=\"level_zero\"} 2",
            "kvstore_engine_delayed_millis{reason=\"debt\"} 1.5",
            "kvstore_engine_stops{reason=\"memtables\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn an_engine_without_figures_has_no_metrics() {
        let metrics = Metrics::new();
        let collector = EngineCollector::new(Box::new(BTreeMap::new));
        metrics.register(Box::new(collector)).expect("the names are free");
        assert!(!metrics.gather().iter().any(|family| family.name().starts_with("kvstore_engine")));
    }
}
