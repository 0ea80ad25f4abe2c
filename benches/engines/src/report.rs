//! The tables: medians over the rounds, and ratios in which more than 1 is better for kvstore.

use std::collections::BTreeMap;

use crate::contestants::{Class, Kind};
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
        println!("\n\\* promises less than the class of the row says");
    }

    fn print_ratios(&self, options: &Options, measured: &[Row]) {
        let others = options.engines.iter().filter(|kind| **kind != Kind::Kvstore);
        let names: Vec<_> = others.clone().map(|kind| kind.name()).collect();
        println!(
            "\nHow many times as good kvstore is as each (more than 1 is better for kvstore):\n"
        );
        print_head("| row | writes | kvstore |", &names);
        for row in measured {
            let own = self.median(row, Kind::Kvstore).map(|own| figure(own, row.unit));
            print!("| {} | {} | {} |", row.name, class(row), own.as_deref().unwrap_or("-"));
            for other in others.clone() {
                let ratio = self.ratio(row, *other).map(|ratio| format!("{ratio:.2}"));
                print_cell(row, *other, ratio);
            }
            println!();
        }
    }

    fn print_means(&self, measured: &[Row]) {
        const RIVALS: [Kind; 3] = [Kind::RocksdbTuned, Kind::Fjall, Kind::Sled];
        let against = |row: &Row, rivals: &[Kind], marked: bool| {
            let equal = |kind: &&Kind| marked || !is_marked(row, **kind);
            let ratios = rivals.iter().filter(equal).filter_map(|kind| self.ratio(row, *kind));
            ratios.min_by(f64::total_cmp)
        };
        println!("\nGeometric means of the ratios over all rows:\n");
        for (name, rivals, marked) in [
            ("rocksdb-tuned", &RIVALS[..1], false),
            ("the best of rocksdb-tuned, fjall and sled, without what is marked", &RIVALS[..], false),
            ("the best of rocksdb-tuned, fjall and sled, with what is marked", &RIVALS[..], true),
        ] {
            let ratios: Vec<f64> =
                measured.iter().filter_map(|row| against(row, rivals, marked)).collect();
            let logarithms = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>();
            let mean = (logarithms / ratios.len().max(1) as f64).exp();
            let ahead = ratios.iter().filter(|ratio| **ratio > 1.0).count();
            println!("- kvstore / {name}: {mean:.2}, ahead in {ahead} of {} rows", ratios.len());
        }
    }

    fn print_figures(&self, options: &Options, measured: &[Row]) {
        println!(
            "\nMedians{}:\n",
            if options.rounds > 1 { " (lowest to highest round)" } else { "" }
        );
        let names: Vec<_> = options.engines.iter().map(|kind| kind.name()).collect();
        print_head("| row | writes |", &names);
        for row in measured {
            print!("| {} | {} |", row.name, class(row));
            for kind in &options.engines {
                print_cell(row, *kind, self.spread(row, *kind));
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

fn print_head(head: &str, engines: &[&str]) {
    println!("{head} {} |", engines.join(" | "));
    let columns = head.matches('|').count() - 1 + engines.len();
    println!("|{}", "---|".repeat(columns));
}

fn print_cell(row: &Row, kind: Kind, figure: Option<String>) {
    let mark = if is_marked(row, kind) { "\\*" } else { "" };
    print!(" {}{mark} |", figure.as_deref().unwrap_or("-"));
}

fn is_marked(row: &Row, kind: Kind) -> bool {
    row.class.is_some_and(|class| kind.promises_less(class))
}

fn class(row: &Row) -> &'static str {
    row.class.map_or("none", Class::name)
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
