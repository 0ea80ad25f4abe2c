//! The tables: medians over the rounds, ratios in which more than 1 is better for kvstore, and the bars.

use std::collections::BTreeMap;

use crate::System;
use crate::options::Options;
use crate::rows::{Figures, ROWS, Row};

/// A number of a row, and whether less of it is better.
struct Measure {
    name: &'static str,
    is_cost: bool,
    of: fn(&Figures) -> f64,
}

const RATE: Measure = Measure { name: "calls/s", is_cost: false, of: rate };
const P99: Measure = Measure { name: "p99 ms", is_cost: true, of: |f| millis(f, 0.99) };

const MEASURES: [Measure; 7] = [
    RATE,
    Measure { name: "p50 ms", is_cost: true, of: |f| millis(f, 0.5) },
    P99,
    Measure { name: "p99.9 ms", is_cost: true, of: |f| millis(f, 0.999) },
    Measure {
        name: "server CPU us/call",
        is_cost: true,
        of: |f| per_call(f.servers.cpu.as_secs_f64() * 1e6, f),
    },
    Measure {
        name: "disk bytes/call",
        is_cost: true,
        of: |f| per_call(f.servers.written_bytes as f64, f),
    },
    Measure {
        name: "client CPU us/call",
        is_cost: true,
        of: |f| per_call(f.client.cpu.as_secs_f64() * 1e6, f),
    },
];

fn rate(figures: &Figures) -> f64 {
    figures.latencies.len() as f64 / figures.time.as_secs_f64()
}

fn millis(figures: &Figures, quantile: f64) -> f64 {
    figures.latencies.value_at_quantile(quantile) as f64 / 1e3
}

fn per_call(sum: f64, figures: &Figures) -> f64 {
    sum / (figures.latencies.len() as f64).max(1.0)
}

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Report {
    figures: BTreeMap<(&'static str, System), Vec<Figures>>,
}

impl Report {
    pub fn add(&mut self, row: Row, system: System, figures: Figures) {
        let cores = |cpu: std::time::Duration| cpu.as_secs_f64() / figures.time.as_secs_f64();
        eprintln!(
            "{:8} {:15} {:>8.0}/s  p50 {:7.2} ms  p99 {:7.2} ms  p99.9 {:7.2} ms  cores {:.2} client {:.2}  errors {}",
            system.name(),
            row.name,
            rate(&figures),
            millis(&figures, 0.5),
            millis(&figures, 0.99),
            millis(&figures, 0.999),
            cores(figures.servers.cpu),
            cores(figures.client.cpu),
            figures.failures.count,
        );
        self.figures.entry((row.name, system)).or_default().push(figures);
    }

    /// Prints everything; tells how many calls failed.
    pub fn print(&self, options: &Options) -> u64 {
        let rows: Vec<&Row> = ROWS.iter().filter(|row| options.wants(row.name)).collect();
        self.print_figures(options, &rows);
        if options.systems.len() == System::ALL.len() {
            self.print_ratios(options, &rows);
            self.print_bars(&rows);
        }
        self.print_failures()
    }

    fn print_figures(&self, options: &Options, rows: &[&Row]) {
        println!("\nMedians of {} rounds (calls/s: lowest to highest):\n", options.rounds);
        let names: Vec<_> = MEASURES.iter().map(|measure| measure.name).collect();
        println!("| row | system | {} | errors |", names.join(" | "));
        println!("|{}", "---|".repeat(MEASURES.len() + 3));
        for row in rows {
            for system in &options.systems {
                let Some(rounds) = self.figures.get(&(row.name, *system)) else { continue };
                print!("| {} | {} |", row.name, system.name());
                for measure in &MEASURES {
                    let values = sorted(rounds.iter().map(measure.of));
                    print!(" {}", number(median(&values)));
                    if !measure.is_cost && values.len() > 1 {
                        let ends = [values.first(), values.last()];
                        let [low, high] = ends.map(|end| number(*end.unwrap_or(&0.0)));
                        print!(" ({low} to {high})");
                    }
                    print!(" |");
                }
                println!(" {} |", rounds.iter().map(|figures| figures.failures.count).sum::<u64>());
            }
        }
    }

    fn print_ratios(&self, options: &Options, rows: &[&Row]) {
        println!(
            "\nHow many times as good kvstore is as etcd (more than 1 is better for kvstore); medians (calls/s: worst to best pair of rounds):\n"
        );
        let measures = || MEASURES.iter().take(MEASURES.len() - 1);
        let names: Vec<_> = measures().map(|measure| measure.name).collect();
        println!("| row | {} |", names.join(" | "));
        println!("|{}", "---|".repeat(names.len() + 1));
        for row in rows {
            print!("| {} |", row.name);
            for measure in measures() {
                let Some(ratios) = self.ratios(row, measure) else { continue };
                print!(" {}", number(ratios.of_medians));
                if !measure.is_cost && options.rounds > 1 {
                    print!(" ({:.2} to {:.2})", ratios.min, ratios.max);
                }
                print!(" |");
            }
            println!();
        }
    }

    fn print_bars(&self, rows: &[&Row]) {
        println!();
        for row in rows {
            let Some(bar) = row.bar else { continue };
            let (Some(rate), Some(p99)) = (self.ratios(row, &RATE), self.ratios(row, &P99)) else {
                continue;
            };
            let met = rate.of_medians >= bar && p99.of_medians > 1.0;
            println!(
                "{}: {:.2} times the calls of etcd, at {:.2} of its p99; the bar is {bar:.0} times at a lower p99: {}",
                row.name,
                rate.of_medians,
                1.0 / p99.of_medians,
                if met { "met" } else { "MISSED" }
            );
        }
    }

    fn print_failures(&self) -> u64 {
        let mut count = 0;
        for ((row, system), rounds) in &self.figures {
            for (round, figures) in rounds.iter().enumerate() {
                if let Some(example) = &figures.failures.example {
                    let (name, failed) = (system.name(), figures.failures.count);
                    println!("{name} {row} round {round}: {failed} calls failed: {example}");
                }
                count += figures.failures.count;
            }
        }
        count
    }

    fn ratios(&self, row: &Row, measure: &Measure) -> Option<Ratios> {
        let of = |system| {
            let rounds = self.figures.get(&(row.name, system))?;
            Some(rounds.iter().map(measure.of).collect::<Vec<f64>>())
        };
        let (own, other) = (of(System::Kvstore)?, of(System::Etcd)?);
        let ratio = |own: f64, other: f64| if measure.is_cost { other / own } else { own / other };
        let pairs = sorted(own.iter().zip(&other).map(|(own, other)| ratio(*own, *other)));
        Some(Ratios {
            of_medians: ratio(median(&sorted(own.into_iter())), median(&sorted(other.into_iter()))),
            min: *pairs.first()?,
            max: *pairs.last()?,
        })
    }
}

/// Kvstore over etcd, more than 1 being better for kvstore.
struct Ratios {
    of_medians: f64,
    /// Of pairs of rounds.
    min: f64,
    max: f64,
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    let middle = |at: usize| sorted.get(at).copied().unwrap_or(f64::NAN);
    f64::midpoint(middle(sorted.len().saturating_sub(1) / 2), middle(sorted.len() / 2))
}

/// With three or four digits; `-` when it is none, as a ratio of nothing to nothing.
fn number(figure: f64) -> String {
    match figure {
        _ if !figure.is_finite() => "-".to_owned(),
        0.0..10.0 => format!("{figure:.2}"),
        10.0..100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}
