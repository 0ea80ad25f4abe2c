//! The program: see `kvstore::cli`.

use std::process::ExitCode;

use kvstore::{config, server};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(clap::Parser)]
struct Bench {
    #[command(flatten)]
    args: kvstore::bench::Args,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("bench") {
        let bench = <Bench as clap::Parser>::parse_from(std::env::args().skip(1));
        return match kvstore::bench::run(&bench.args, &mut std::io::stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("kvstore: {error}");
                ExitCode::from(if error.is_usage() { 2 } else { 1 })
            }
        };
    }
    let sources = config::Sources {
        working_dir: ".".into(),
        file: None,
        profile: None,
        set: std::env::args().skip(1).filter(|a| a != "serve" && a != "--set").collect(),
        environment: config::environment(),
    };
    let loaded = match config::load(&sources) {
        Ok(l) => l,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(1);
        }
    };
    match server::run(&loaded) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kvstore: {e}");
            ExitCode::from(1)
        }
    }
}
