//! Options that several commands share, and how their values are read.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::error::Result;
use crate::config::{self, Loaded, Sources};
use crate::net::{Client, Endpoint};
use crate::proto::v1::Consistency;

/// Where the configuration of a node comes from.
#[derive(clap::Args)]
pub(super) struct ConfigArgs {
    /// Configuration file; else application.yml in the working directory, if there is one
    #[arg(long, env = "KVSTORE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Profiles whose application-{profile}.yml is laid over the file, separated by commas
    #[arg(long, env = "KVSTORE_PROFILE", value_name = "NAME")]
    profile: Option<String>,
    /// One value, over files and environment; may be repeated. `kvstore config` lists all keys
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    /// Reads all layers.
    pub(super) fn load(self) -> Result<Loaded> {
        let sources = Sources {
            working_dir: ".".into(),
            file: self.config,
            profile: self.profile,
            set: self.set,
            environment: config::environment(),
        };
        Ok(config::load(&sources)?)
    }
}

/// The node to talk to, and how.
#[derive(clap::Args)]
pub(super) struct Connection {
    /// Address of a node; may be repeated: the next one is tried when one does not answer
    #[arg(
        long = "endpoint",
        env = "KVSTORE_ENDPOINTS",
        value_delimiter = ',',
        value_name = "URL",
        default_value = Endpoint::DEFAULT
    )]
    pub(super) endpoints: Vec<Endpoint>,
    /// How long to try: 500ms, 5s, 2m, or a number of seconds; work such as compact is waited for in any case
    #[arg(long, env = "KVSTORE_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "5s")]
    timeout: Duration,
}

impl Connection {
    /// A client of all the endpoints.
    pub(super) fn client(&self) -> Client {
        Client::new(self.endpoints.iter().cloned(), self.timeout)
    }

    /// A client of each endpoint, for commands that look at single nodes.
    pub(super) fn clients(&self) -> impl Iterator<Item = Client> {
        self.endpoints.iter().map(|endpoint| Client::new([endpoint.clone()], self.timeout))
    }
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// For people
    Text,
    /// One JSON object; one for each line where there are many
    Json,
}

/// `--output`.
#[derive(clap::Args)]
pub(super) struct FormArgs {
    /// Form of what is printed [default: text]
    #[arg(long = "output", short = 'o', env = "KVSTORE_OUTPUT", value_name = "FORM")]
    pub(super) form: Option<Form>,
}

impl FormArgs {
    pub(super) fn is_json(&self) -> bool {
        self.form == Some(Form::Json)
    }
}

/// How fresh a read has to be.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Freshness {
    /// Sees every write acknowledged before
    Linearizable,
    /// From the copy at hand, which may lag behind
    Stale,
    /// From the leader's lease, where the operator allows it
    Lease,
}

/// `--consistency`.
#[derive(clap::Args)]
pub(super) struct Reading {
    /// How fresh the answer has to be
    #[arg(long, value_name = "KIND", default_value = "linearizable")]
    consistency: Freshness,
}

impl Reading {
    pub(super) fn consistency(&self) -> i32 {
        i32::from(match self.consistency {
            Freshness::Linearizable => Consistency::Linearizable,
            Freshness::Stale => Consistency::Stale,
            Freshness::Lease => Consistency::Lease,
        })
    }
}

/// A time to wait: `500ms`, `5s`, `2m`, `1h`, or a bare number of seconds. More than nothing.
fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let millis = with_unit(text, &units, 1_000).filter(|millis| *millis > 0);
    let refused = || "expected 500ms, 5s, 2m, 1h or a number of seconds, above 0".to_owned();
    millis.map(Duration::from_millis).ok_or_else(refused)
}

/// A lifetime in whole seconds: `90`, `90s`, `15m`, `12h`, `7d`. At least one second.
pub(super) fn ttl(text: &str) -> Result<u32, String> {
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    let seconds = with_unit(text, &units, 1).and_then(|seconds| u32::try_from(seconds).ok());
    let refused = || "expected whole seconds, at least 1, or 90s, 15m, 12h, 7d".to_owned();
    seconds.filter(|seconds| *seconds > 0).ok_or_else(refused)
}

/// A time in whole seconds, as [`ttl`] reads it, or 0.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    if text == "0" { Ok(0) } else { ttl(text).map_err(|refused| format!("{refused}; or 0")) }
}

/// A whole number times its unit, or times `bare` without one.
fn with_unit(text: &str, units: &[(&str, u64)], bare: u64) -> Option<u64> {
    let found = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)));
    let (digits, unit) = found.unwrap_or((text, bare));
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_a_bare_number_is_seconds() {
        for (text, millis) in [("500ms", 500), ("5s", 5_000), ("5", 5_000), ("2m", 120_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "0", "0ms", "-1", "1.5s", "1 s", "99999999999999999999h", "1d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lifetimes_are_whole_seconds() {
        for (text, seconds) in [("1", 1), ("90s", 90), ("15m", 900), ("7d", 604_800)] {
            assert_eq!(ttl(text), Ok(seconds), "{text}");
        }
        for text in ["", "0", "0s", "-1", "500ms", "1.5", "4294967296", "50000d"] {
            assert!(ttl(text).is_err(), "{text}");
        }
    }
}
