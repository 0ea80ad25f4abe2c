//! The program: see `kvstore::cli`.

use std::process::ExitCode;

use kvstore::{config, server};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
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
