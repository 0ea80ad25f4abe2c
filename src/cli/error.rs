//! How a command ends when it does not end well: one line and an exit code.

use std::fmt;
use std::process::ExitCode;

use crate::bench;
use crate::config::ConfigError;
use crate::net::Failure;
use crate::server;

/// The result of a command.
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(super) enum Error {
    /// The node refused, or no node answered.
    Call(Failure),
    /// The key is not there.
    KeyNotFound(String),
    /// The configuration cannot be used; one line for each problem.
    Config(ConfigError),
    /// The command line asks for what cannot be done.
    Usage(String),
    /// Anything else, in a sentence without full stop.
    Failed(String),
    /// It was told already, on a line for each part that failed.
    Told,
    /// Nobody reads the output any more.
    ClosedPipe,
}

impl Error {
    /// Whether nothing is to be said about it.
    pub(super) const fn is_quiet(&self) -> bool {
        matches!(self, Self::Told | Self::ClosedPipe)
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::ClosedPipe => 0,
            Self::Call(_) | Self::Config(_) | Self::Failed(_) | Self::Told => 1,
            Self::Usage(_) => 2,
            Self::KeyNotFound(_) => 3,
        })
    }
}

impl From<bench::Error> for Error {
    fn from(error: bench::Error) -> Self {
        if error.is_usage() {
            Self::Usage(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(failure) => write!(f, "kvstore: {failure}"),
            Self::KeyNotFound(key) => write!(f, "kvstore: KEY_NOT_FOUND: there is no key {key:?}"),
            Self::Config(error) => {
                let lines: Vec<_> =
                    error.problems.iter().map(|problem| format!("kvstore: {problem}")).collect();
                f.write_str(&lines.join("\n"))
            }
            Self::Failed(message) | Self::Usage(message) => write!(f, "kvstore: {message}"),
            Self::Told | Self::ClosedPipe => Ok(()),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Call(failure)
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<server::Error> for Error {
    fn from(error: server::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<crate::storage::Error> for Error {
    fn from(error: crate::storage::Error) -> Self {
        use crate::storage::Error as E;
        match error {
            // What was asked for cannot be done there.
            E::Invalid(_) | E::Locked { .. } => {
                Self::Failed(format!("FAILED_PRECONDITION: {error}"))
            }
            _ => crate::error::Error::from(error).into(),
        }
    }
}

impl From<crate::error::Error> for Error {
    fn from(error: crate::error::Error) -> Self {
        Self::Failed(error.to_string())
    }
}
