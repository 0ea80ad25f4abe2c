//! The tables: medians over the rounds, and ratios in which more than 1 is better for kvstore.

use std::collections::BTreeMap;

use crate::contestants::Kind;
use crate::options::Options;
use crate::rows::{self, Row, Unit};

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Report {
    figures: BTreeMap<(&'static str, Kind), Vec<f64>>,
}

impl Report {
    pub fn add(&mut self, kind: Kind, figures: &[(&'static str, f64)]) {
        for (row, figure) in figures {
            self.figures.entry((row, kind)).or_default().push(*figure);
        }
    }

    /// Prints everything.
    pub fn print(&self, options: &Options) {
        let measured: Vec<Row> = rows::all()
            .filter(|row| options.wants(row.name))
            .filter(|row| self.figures.keys().any(|(name, _)| *name == row.name))
            .collect();
        if options.engines.contains(&Kind::Kvstore) {
            self.print_ratios(options, &measured);
            self.print_means(&measured);
        }
        self.print_figures(options, &measured);
        if options.engines.iter().any(|kind| kind.loses_when_killed()) {
            println!("\n\\* keeps writes in the memory of its process: promises less in rows of the page cache.");
        }
    }

    fn print_ratios(&self, options: &Options, measured: &[Row]) {
        let others: Vec<Kind> =
            options.engines.iter().copied().filter(|kind| *kind != Kind::Kvstore).collect();
        println!("\nHow many times as good kvstore is as each (more than 1 is better for kvstore):\n");
        print!("| row | class | kvstore |");
        others.iter().for_each(|kind| print!(" {} |", title(*kind)));
        println!("\n|---|---|---|{}", "---|".repeat(others.len()));
        for row in measured {
            let own = self.median(row, Kind::Kvstore).map_or("-".to_owned(), |own| figure(own, row.unit));
            print!("| {} | {} | {own} |", row.name, row.class.name());
            for other in &others {
                let ratio = self.ratio(row, *other);
                print!(" {} |", ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
            }
            println!();
        }
    }

    fn print_means(&self, measured: &[Row]) {
        let tuned = measured.iter().filter_map(|row| self.ratio(row, Kind::RocksdbTuned));
        let best = measured.iter().filter_map(|row| {
            [Kind::RocksdbTuned, Kind::Fjall, Kind::Sled]
                .into_iter()
                .filter_map(|kind| self.ratio(row, kind))
                .min_by(f64::total_cmp)
        });
        println!("\nGeometric mean of the ratios over all rows:\n");
        for (against, ratios) in
            [("rocksdb-tuned", tuned.collect()), ("the best of rocksdb-tuned, fjall and sled", best.collect())]
        {
            let ratios: Vec<f64> = ratios;
            if !ratios.is_empty() {
                let logarithms = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>();
                let mean = (logarithms / ratios.len() as f64).exp();
                let ahead = ratios.iter().filter(|ratio| **ratio > 1.0).count();
                println!("- kvstore / {against}: {mean:.2} ({ahead} of {} rows ahead)", ratios.len());
            }
        }
    }

    fn print_figures(&self, options: &Options, measured: &[Row]) {
        println!("\nMedians{}:\n", if options.rounds > 1 { " (lowest to highest round)" } else { "" });
        print!("| row | class |");
        options.engines.iter().for_each(|kind| print!(" {} |", title(*kind)));
        println!("\n|---|---|{}", "---|".repeat(options.engines.len()));
        for row in measured {
            print!("| {} | {} |", row.name, row.class.name());
            for kind in &options.engines {
                print!(" {} |", self.spread(row, *kind).unwrap_or_else(|| "-".to_owned()));
            }
            println!();
        }
    }

    fn sorted(&self, row: &Row, kind: Kind) -> Option<Vec<f64>> {
        let mut figures = self.figures.get(&(row.name, kind))?.clone();
        figures.sort_by(f64::total_cmp);
        Some(figures)
    }

    fn median(&self, row: &Row, kind: Kind) -> Option<f64> {
        let figures = self.sorted(row, kind)?;
        let (low, high) = (figures.get((figures.len() - 1) / 2)?, figures.get(figures.len() / 2)?);
        Some(f64::midpoint(*low, *high))
    }

    fn spread(&self, row: &Row, kind: Kind) -> Option<String> {
        let figures = self.sorted(row, kind)?;
        let median = figure(self.median(row, kind)?, row.unit);
        let (low, high) = (figures.first()?, figures.last()?);
        if figures.len() < 2 {
            return Some(median);
        }
        Some(format!("{median} ({} to {})", number(*low), number(*high)))
    }

    fn ratio(&self, row: &Row, other: Kind) -> Option<f64> {
        let (own, other) = (self.median(row, Kind::Kvstore)?, self.median(row, other)?);
        Some(if row.unit.is_cost() { other / own } else { own / other })
    }
}

fn title(kind: Kind) -> String {
    format!("{}{}", kind.name(), if kind.loses_when_killed() { "\\*" } else { "" })
}

fn figure(figure: f64, unit: Unit) -> String {
    format!("{} {}", number(figure), unit.name())
}

/// With three or four digits.
fn number(figure: f64) -> String {
    match figure {
        0.0..10.0 => format!("{figure:.2}"),
        10.0..100.0 => format!("{figure:.1}"),
        100.0..10_000.0 => format!("{figure:.0}"),
        10_000.0..1e6 => format!("{:.0} k", figure / 1e3),
        _ => format!("{:.2} M", figure / 1e6),
    }
}
