//! The program: see `kvstore::cli`.

use std::process::ExitCode;
use std::sync::Arc;

use kvstore::{config, server, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let sources = config::Sources {
        working_dir: ".".into(), file: None, profile: None, set: std::env::args().skip(1).filter(|a| a != "serve" && a != "--set").collect(),
        environment: config::environment(),
    };
    let loaded = match config::load(&sources) { Ok(l) => l, Err(e) => { eprintln!("{e}"); return ExitCode::from(1) } };
    let runtime = tokio::runtime::Runtime::new().expect("rt");
    match runtime.block_on(server::run(&loaded, Arc::new(telemetry::Metrics::new()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => { eprintln!("kvstore: {e}"); ExitCode::from(1) }
    }
}
