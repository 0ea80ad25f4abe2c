//! Why a call failed: code, reason, facts, and whether it may have had an effect all the same.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

use crate::net::Endpoint;

/// `ErrorInfo.domain` of every error that a node itself answers.
const DOMAIN: &str = "kvstore";

/// A call that failed for good, after all retries.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The gRPC code.
    pub code: Code,
    /// `ErrorInfo.reason`, such as `VERSION_MISMATCH`; empty when no node answered.
    pub reason: String,
    /// The sentence for people, on one line.
    pub message: String,
    /// The facts for programs, `ErrorInfo.metadata`.
    pub metadata: BTreeMap<String, String>,
    /// The call may have been carried out.
    pub maybe_applied: bool,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    fn new(code: Code, reason: &str, message: String, maybe_applied: bool) -> Self {
        let (metadata, retry_after) = (BTreeMap::new(), None);
        Self { code, reason: reason.to_owned(), message, metadata, maybe_applied, retry_after }
    }

    /// Nothing was sent.
    pub(super) fn unconnected(endpoint: &Endpoint, why: impl fmt::Display) -> Self {
        let message = format!("cannot connect to {}: {why}", endpoint.url());
        Self::new(Code::Unavailable, "", message, false)
    }

    /// The caller's own deadline passed while `endpoint` worked on it.
    pub(super) fn late(endpoint: &Endpoint, timeout: Duration, is_write: bool) -> Self {
        let message = format!("no answer from {} within {timeout:?}", endpoint.url());
        if is_write {
            return Self::new(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", message, true);
        }
        Self::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message, false)
    }

    /// What `endpoint` answered, or what became of the connection to it.
    pub(super) fn of_status(status: &Status, endpoint: &Endpoint) -> Self {
        let details = status.get_error_details();
        let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) else {
            let message = one_line(&format!("{}: {}", endpoint.url(), with_root(status)));
            return Self::new(status.code(), "", message, true);
        };
        Self {
            code: status.code(),
            reason: info.reason.clone(),
            message: one_line(status.message()),
            metadata: info.metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            maybe_applied: info.reason == "OUTCOME_UNKNOWN",
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }

    /// Whether tonic's own timer, set from the deadline, ended the call.
    pub(super) fn is_own_deadline(status: &Status) -> bool {
        let mut next = status.source();
        while let Some(error) = next {
            if error.is::<TimeoutExpired>() {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// Whether another try, here or elsewhere, may succeed.
    pub(super) fn is_passing(&self) -> bool {
        match self.code {
            Code::Unavailable | Code::ResourceExhausted => true,
            Code::DeadlineExceeded => self.reason == "OUTCOME_UNKNOWN",
            // What a connection that broke looks like; a node that answers says its reason.
            Code::Unknown | Code::Internal | Code::Cancelled => self.reason.is_empty(),
            _ => false,
        }
    }

    /// Whether no node answered: the connection is of no use any more.
    pub(super) fn is_transport(&self) -> bool {
        self.reason.is_empty() && self.is_passing()
    }

    /// Whether it tells what became of the earlier tries too: a node that refuses a request for what it asks knows the request id.
    fn settles(&self) -> bool {
        let settling =
            matches!(self.code, Code::InvalidArgument | Code::Aborted | Code::FailedPrecondition);
        settling && !self.reason.is_empty()
    }

    /// The same failure of a change of which an earlier try may have been carried out. A node that answers for good knows the
    /// request id: what it says holds for the earlier tries too.
    pub(super) fn of_change(mut self, maybe_applied: bool) -> Self {
        self.maybe_applied = !self.settles() && (maybe_applied || self.maybe_applied);
        if self.maybe_applied && self.reason != "OUTCOME_UNKNOWN" {
            self.code = Code::DeadlineExceeded;
            "OUTCOME_UNKNOWN".clone_into(&mut self.reason);
            self.message = format!("it may or may not have been applied: {}", self.message);
        }
        self
    }

    /// The reason, or the code's name where there is none.
    pub fn word(&self) -> &str {
        if self.reason.is_empty() { code_name(self.code) } else { &self.reason }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word(), self.message)
    }
}

impl std::error::Error for Failure {}

/// The message with the deepest cause, which is the one that tells something ("transport error" does not).
fn with_root(status: &Status) -> String {
    let mut root = None;
    let mut next = status.source();
    while let Some(error) = next {
        root = Some(error.to_string());
        next = error.source();
    }
    match root {
        Some(root) if !status.message().contains(&root) => format!("{}: {root}", status.message()),
        _ => status.message().to_owned(),
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The name of a code as gRPC writes it.
const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
