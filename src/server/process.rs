//! A node as a process: its log, its runtime, its signals.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::level_filters::LevelFilter;

use super::workers::Threads;
use super::{Error, Server};
use crate::config::{Loaded, LogFormat, LogLevel, Logging, SyncMode};
use crate::telemetry::{LogOptions, Metrics, logs};

/// Files that are wanted beside those of tables: connections, logs, files that are being written.
const FILES_BESIDE_TABLES: u64 = 500;

/// Runs a node in this process until SIGTERM or SIGINT, then stops it in order. A second signal ends the process at once.
///
/// # Errors
///
/// See [`enum@Error`].
pub fn run(loaded: &Loaded) -> Result<(), Error> {
    let log = logs::init(&log_options(&loaded.config.logging)).map_err(Error::Log)?;
    let metrics = Arc::new(Metrics::new());
    log.watch(&metrics);
    for note in &loaded.notes {
        tracing::info!("{note}");
    }
    allow_open_files(loaded.config.storage.open_files_max as u64);
    let sync = loaded.config.storage.sync;
    if sync != SyncMode::Always {
        tracing::warn!(
            "kvstore.storage.sync is {sync}: a power cut may take writes that were acknowledged"
        );
    }
    let cluster = &loaded.config.cluster;
    if cluster.is_set() && cluster.insecure && cluster.secret.is_empty() {
        let address = loaded.config.server.address;
        tracing::warn!(
            "INSECURE CLUSTER: kvstore.cluster.insecure is true and there is no kvstore.cluster.secret: whoever reaches {address} can pass for a node of this cluster, and read and change everything in it"
        );
    }
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(Threads::new(cluster.is_set()).main)
        .enable_all()
        .thread_name("serve")
        .build()
        .map_err(Error::Thread)?;
    runtime.block_on(serve(loaded, metrics))
}

/// Lets the process open as many files as the system allows at all, and tells when `tables` of them leave few for the rest.
fn allow_open_files(tables: u64) {
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current else { return };
    let raised = Rlimit { current: limit.maximum, ..limit };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => current,
    };
    if allowed < tables.saturating_add(FILES_BESIDE_TABLES) {
        tracing::warn!(
            "this process may open {allowed} files (ulimit -n), of which tables may take {tables} (kvstore.storage.open-files-max): connections may be refused"
        );
    }
}

async fn serve(loaded: &Loaded, metrics: Arc<Metrics>) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Thread)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Thread)?;
    let mut server = Server::start(loaded, metrics).await?;
    let announce = |server: &Server, message: &str| {
        let config = &loaded.config;
        tracing::info!(
            node = config.node.id,
            version = env!("CARGO_PKG_VERSION"),
            engine = config.storage.engine.as_str(),
            data_dir = %config.storage.data_dir.display(),
            shards = config.hash_ring.shards,
            http = %server.http_address,
            grpc = server.grpc_address.map(tracing::field::display),
            "{message}"
        );
    };
    let cluster = &loaded.config.cluster;
    if !(cluster.members.is_empty() && cluster.join.is_empty()) {
        announce(&server, "waiting for the cluster");
    }
    let name = tokio::select! {
        biased;
        name = next(&mut terminate, &mut interrupt) => name,
        joined = server.joined() => {
            if let Err(error) = joined {
                // What it would have flushed it never had.
                let _ = server.stop().await;
                return Err(error);
            }
            announce(&server, "ready");
            next(&mut terminate, &mut interrupt).await
        }
    };
    tracing::info!(signal = name, "stopping");
    tokio::spawn(async move {
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "a second signal: ending at once");
        std::process::exit(1);
    });
    server.stop().await?;
    tracing::info!("stopped");
    Ok(())
}

/// Waits for the next signal to stop; its name.
async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

fn log_options(logging: &Logging) -> LogOptions {
    LogOptions {
        level: filter(logging.level),
        levels: logging
            .levels
            .iter()
            .map(|(logger, level)| (logger.clone(), filter(*level)))
            .collect(),
        json: logging.format == LogFormat::Json,
        file: logging.file.clone(),
    }
}

const fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
