//! The log: text or JSON to standard output and, where configured, to a file as well.
//!
//! Lines go through a bounded queue for each destination to a thread of their own. A full queue drops lines and counts
//! them: a terminal that nobody reads or a slow disk must not stop the store. The file is appended to and never rotated
//! or truncated here (logrotate with `copytruncate` works). No line holds a value; keys only at debug.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt as _};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::metrics::Metrics;

/// Lines that wait for a destination before others are dropped.
const LINES_MAX: usize = 16_384;

/// Where openraft sends a leader's signs of life.
const HEARTBEATS: &str = "openraft::core::heartbeat::worker";

/// What is logged, how, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Of every target that `levels` does not name.
    pub level: LevelFilter,
    /// By target; the longest that fits wins.
    pub levels: Vec<(String, LevelFilter)>,
    /// One JSON object for each line, instead of text.
    pub json: bool,
    /// A file that receives the lines too; its directory is created.
    pub file: Option<PathBuf>,
}

/// Keeps the log running; dropping it writes out what waits. Hold it until the end of `main`.
pub struct LogGuard {
    workers: Vec<WorkerGuard>,
    dropped: Vec<ErrorCounter>,
}

impl LogGuard {
    /// Shows the lines that were dropped in `metrics`.
    pub fn watch(&self, metrics: &Metrics) {
        let (counters, shown) = (self.dropped.clone(), metrics.log_lines_dropped.clone());
        metrics.on_scrape(Box::new(move || {
            let dropped: usize = counters.iter().map(ErrorCounter::dropped_lines).sum();
            let dropped = u64::try_from(dropped).unwrap_or(u64::MAX);
            shown.inc_by(dropped.saturating_sub(shown.get()));
        }));
    }
}

/// Starts the log of this process. Fails when the file cannot be opened or the process has a log already.
pub fn init(options: &LogOptions) -> io::Result<LogGuard> {
    let (dispatch, guard) = build(options, io::stdout())?;
    dispatch.try_init().map_err(io::Error::other)?;
    Ok(guard)
}

/// The log that `options` describe, with `output` in the place of standard output.
fn build<W>(options: &LogOptions, output: W) -> io::Result<(Dispatch, LogGuard)>
where
    W: io::Write + Send + 'static,
{
    let (output, worker) = queued(output, "log-output");
    let mut guard = LogGuard { dropped: vec![output.error_counter()], workers: vec![worker] };
    let Some(path) = &options.file else {
        return Ok((Dispatch::new(subscriber(options, output)), guard));
    };
    let (file, worker) = queued(append(path)?, "log-file");
    guard.dropped.push(file.error_counter());
    guard.workers.push(worker);
    Ok((Dispatch::new(subscriber(options, output.and(file))), guard))
}

fn queued<W: io::Write + Send + 'static>(writer: W, thread: &str) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_MAX)
        .thread_name(thread)
        .finish(writer)
}

fn append(path: &Path) -> io::Result<fs::File> {
    let name = |error: io::Error| {
        io::Error::new(error.kind(), format!("log file {}: {error}", path.display()))
    };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(name)?;
    }
    OpenOptions::new().create(true).append(true).open(path).map_err(name)
}

fn subscriber<M>(options: &LogOptions, writer: M) -> impl Subscriber + Send + Sync + use<M>
where
    M: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let mut filter = Targets::new()
        .with_default(options.level)
        // It tells every message of every group, and every one that did not arrive; said otherwise below where somebody wants that.
        .with_target("openraft", options.level.min(LevelFilter::ERROR));
    if !options.levels.iter().any(|(target, _)| target.starts_with("openraft")) {
        // Its only error is that the group whose leader it served has ended: so it does at every stop, and what ends one otherwise is told
        // where it happens.
        filter = filter.with_target(HEARTBEATS, LevelFilter::OFF);
    }
    let levels = options.levels.iter().map(|(target, level)| (target.as_str(), *level));
    let filter = filter.with_targets(levels);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false);
    let lines = lines.with_writer(BoxMakeWriter::new(writer));
    let lines = if options.json { lines.json().flatten_event(true).boxed() } else { lines.boxed() };
    tracing_subscriber::registry().with(lines.with_filter(filter))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// A writer that can be looked into.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(options: &LogOptions) -> String {
        let output = Output::default();
        let (dispatch, guard) = build(options, output.clone()).expect("the log starts");
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::info!(target: "kvstore::raft", shard = 3, "elected");
            tracing::warn!(target: "kvstore::api", "slow");
            tracing::info!(target: "h2::codec", "chatter");
        });
        // Both hold the queue; its end writes everything out.
        drop((dispatch, guard));
        String::from_utf8(output.0.lock().clone()).expect("the log is UTF-8")
    }

    fn options() -> LogOptions {
        LogOptions { level: LevelFilter::INFO, levels: Vec::new(), json: false, file: None }
    }

    #[test]
    fn levels_hold_for_each_logger() {
        let levels = vec![
            ("h2".to_owned(), LevelFilter::OFF),
            ("kvstore::api".to_owned(), LevelFilter::ERROR),
        ];
        let text = logged(&LogOptions { levels, ..options() });
        assert!(text.contains("INFO kvstore::raft: elected shard=3"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn openraft_is_heard_in_errors_but_not_that_a_stop_ends_its_groups() {
        let lines = |levels: &[(&str, LevelFilter)]| {
            let levels = levels.iter().map(|(target, level)| ((*target).to_owned(), *level));
            let output = Output::default();
            let options = LogOptions { levels: levels.collect(), ..options() };
            let (dispatch, guard) = build(&options, output.clone()).expect("the log starts");
            tracing::dispatcher::with_default(&dispatch, || {
                tracing::error!(target: "openraft::core::raft_core", "broken");
                tracing::warn!(target: "openraft::core::raft_core", "not so bad");
                tracing::error!(target: "openraft::core::heartbeat::worker", "ended");
            });
            drop((dispatch, guard));
            let text = String::from_utf8(output.0.lock().clone()).expect("the log is UTF-8");
            let said = |word: &&str| text.contains(word);
            ["broken", "not so bad", "ended"].into_iter().filter(said).collect::<Vec<_>>()
        };
        assert_eq!(lines(&[]), ["broken"]);
        assert_eq!(lines(&[("openraft", LevelFilter::WARN)]), ["broken", "not so bad", "ended"]);
    }

    #[test]
    fn json_lines_are_one_object_each() {
        let text = logged(&LogOptions { json: true, ..options() });
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
        assert_eq!(lines.len(), 3);
        let first = lines.first().expect("three lines");
        assert_eq!((&first["message"], &first["shard"]), (&"elected".into(), &3.into()));
        assert_eq!(first["target"], "kvstore::raft");
    }

    #[test]
    fn the_file_receives_the_same_lines_after_the_older_ones() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("logs/kvstore.log");
        let options = LogOptions { file: Some(path.clone()), ..options() };
        let both = [logged(&options), logged(&options)].concat();
        assert_eq!(fs::read_to_string(&path).expect("the file is there"), both);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = LogOptions { file: Some(dir.path().to_path_buf()), ..options() };
        let error = build(&options, io::sink()).err().expect("a directory is no file");
        assert!(error.to_string().contains("log file "), "{error}");
    }
}
