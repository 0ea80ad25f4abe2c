//! The command line: one program that serves a node, talks to nodes, and operates them.
//!
//! Data goes to standard output, talk to standard error. A failure is one line, `kvstore: REASON: what happened`. Exit codes:
//! 0 done, 1 failed, 2 wrong usage, 3 key not found. A reader that goes away (`kvstore scan | head`) ends a command quietly.
//!
//! One file for each group of commands; [`Command`] is the list. Clients run on a small runtime of one thread; `serve` builds
//! its own (`server::run`).

mod admin;
mod args;
mod backup;
mod batch;
mod cluster;
mod config;
mod engine;
mod error;
mod kv;
mod output;
mod range;

use std::env;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;

use self::args::ConfigArgs;
use self::error::{Error, Result};
use self::output::Output;
use crate::{bench, server};

const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("BUILD_GIT_COMMIT"),
    ", built ",
    env!("BUILD_TIME"),
    ")"
);

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 key not found.
Without a command a node is served, as by `kvstore serve`.";

/// A distributed, persistent key/value store for JSON documents.
#[derive(Parser)]
#[command(name = "kvstore", version = VERSION, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
struct Line {
    #[command(flatten)]
    serve: ConfigArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node until SIGTERM or Ctrl-C (also the default)
    Serve(ConfigArgs),
    /// Store a value under a key; prints its new version
    Put(kv::Put),
    /// Print the value of a key, byte for byte
    Get(kv::Get),
    /// Remove a key
    Delete(kv::Delete),
    /// Store many values from a file or a pipe, one JSON object on each line
    Batch(batch::Args),
    /// List one page of a range of keys
    Range(range::Range),
    /// Stream a whole range of keys as lines that `batch` takes back
    Scan(range::Scan),
    /// Count what a node stores and has done
    Stats(admin::Look),
    /// Tell what a node is doing
    Status(admin::Look),
    /// Exit with 0 when the node serves requests, else with 1 and the reason
    Health(admin::Look),
    /// Show and change the nodes of the cluster
    #[command(subcommand)]
    Node(cluster::NodeCommand),
    /// Show and steer the shards
    #[command(subcommand)]
    Shard(cluster::ShardCommand),
    /// Show and change what all nodes of the cluster share
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Give the space of deleted and expired keys back; returns when it is done
    Compact(admin::Compact),
    /// Make everything written so far durable in tables
    Flush(admin::Flush),
    /// Make, check and take back backups
    #[command(subcommand)]
    Backup(backup::Command),
    /// Check and print the files of a node that does not run
    #[command(subcommand)]
    Engine(engine::Command),
    /// Measure a node, or one of its own, under load
    Bench(bench::Args),
    /// Print the effective configuration with the origin of each value
    Config(config::Args),
    /// Print completions for a shell, to be sourced
    Completions {
        /// For this shell
        shell: Shell,
    },
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let line = match parse() {
        Ok(line) => line,
        Err(error) => {
            // To standard output for --help and --version, else to standard error; a reader that is gone is no failure.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let command = line.command.unwrap_or(Command::Serve(line.serve));
    let mut output = Output::stdout();
    match execute(command, &mut output).and_then(|()| output.finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What was found before the failure stands.
            let _ = output.finish();
            if !error.is_quiet() {
                let _ = writeln!(std::io::stderr(), "{error}");
            }
            error.exit_code()
        }
    }
}

fn parse() -> Result<Line, clap::Error> {
    let mut matches = without_empty_variables(Line::command()).try_get_matches()?;
    Line::from_arg_matches_mut(&mut matches)
}

/// Takes variables that are set to nothing for absent: that is what `NAME: ${NAME}` in a compose file leaves.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty =
        |arg: &clap::Arg| arg.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if is_empty(&arg) { arg.env(None::<&str>) } else { arg })
        .mut_subcommands(without_empty_variables)
}

fn execute(command: Command, output: &mut Output) -> Result<()> {
    match command {
        Command::Serve(config) => Ok(server::run(&config.load()?)?),
        Command::Put(put) => block_on(put.run(output)),
        Command::Get(get) => block_on(get.run(output)),
        Command::Delete(delete) => block_on(delete.run(output)),
        Command::Batch(batch) => block_on(batch.run(output)),
        Command::Range(range) => block_on(range.run(output)),
        Command::Scan(scan) => block_on(scan.run(output)),
        Command::Stats(look) => block_on(look.stats(output)),
        Command::Status(look) => block_on(look.status(output)),
        Command::Health(look) => block_on(look.health(output)),
        Command::Node(node) => block_on(node.run(output)),
        Command::Shard(shard) => block_on(shard.run(output)),
        Command::Cluster(cluster) => block_on(cluster.run(output)),
        Command::Compact(compact) => block_on(compact.run(output)),
        Command::Flush(flush) => block_on(flush.run(output)),
        Command::Backup(backup) => backup.run(output),
        Command::Engine(engine) => engine.run(output),
        Command::Bench(args) => {
            let mut report = Vec::new();
            let measured = bench::run(&args, &mut report);
            // Also of a run with too many errors.
            output.bytes(&report)?;
            Ok(measured?)
        }
        Command::Config(config) => config.run(output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Line::command(), "kvstore", &mut script);
            output.bytes(&script)
        }
    }
}

/// Runs a client's command.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Line::command().debug_assert();
    }
}
