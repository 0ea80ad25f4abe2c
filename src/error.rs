//! Why a request failed: one [`Reason`] for each case that a caller can tell apart, and its consequence ([`Kind`]).
//!
//! The codes of gRPC and HTTP follow from the kind, in `api/` and only there. Reasons are part of the public API: they are
//! never renamed.

use std::fmt;
use std::time::Duration;

use crate::storage;

/// The result of everything above the engines.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller has to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Fix the request; repeating it cannot help.
    Invalid,
    /// The key is not there.
    NotFound,
    /// `if_version` did not hold; read again, then decide.
    Mismatch,
    /// Certainly not applied: a limit of this node is reached. Slow down.
    Overloaded,
    /// Certainly not applied: nobody can serve it now. Try again, here or elsewhere.
    Unavailable,
    /// May or may not have been applied. Repeat only with the same request id.
    Unknown,
    /// A read did not end in time.
    Deadline,
    /// The request is fine, the state of the system does not allow it.
    Precondition,
    /// There is no such path or method.
    Unimplemented,
    /// Data on this node is damaged; another replica can answer.
    Corruption,
    /// A defect of this program.
    Internal,
}

/// Which failure it is; `as_str` is what clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The key does not exist or has expired.
    KeyNotFound,
    /// A key is empty or not UTF-8.
    InvalidKey,
    /// A value is not JSON text.
    InvalidJson,
    /// No value was given.
    InvalidValue,
    /// A ttl is below one second or not a whole number.
    InvalidTtl,
    /// A range ends before it begins.
    InvalidRange,
    /// A page limit of zero.
    InvalidLimit,
    /// A page token that this query did not give out.
    InvalidPageToken,
    /// A request id that is empty, too long, or was used for another kind of write.
    InvalidRequestId,
    /// A consistency that does not exist or is not switched on.
    InvalidConsistency,
    /// A condition on the version that is no version.
    InvalidVersion,
    /// A field or parameter that does not exist.
    UnknownField,
    /// Something else is malformed.
    InvalidRequest,
    /// A limit on size or number is exceeded.
    LimitExceeded,
    /// `if_version` does not match.
    VersionMismatch,
    /// Too much is in flight.
    Overloaded,
    /// The disk is full, or no more files can be opened; the message says which.
    DiskFull,
    /// The node is starting or stopping.
    NotServing,
    /// The node refuses writes after a failed disk.
    ReadOnly,
    /// The shard has no leader now.
    NoLeader,
    /// The shard's leader has no quorum behind it now.
    NoQuorum,
    /// The write may or may not have been applied.
    OutcomeUnknown,
    /// A read did not end in time.
    DeadlineExceeded,
    /// The state of the node or cluster does not allow it.
    FailedPrecondition,
    /// There is no such path.
    UnknownPath,
    /// The path does not take this method.
    MethodNotAllowed,
    /// Stored data is damaged.
    Corruption,
    /// A defect of this program.
    Internal,
}

impl Reason {
    /// All there are, in order.
    const ALL: [Self; 28] = [
        Self::KeyNotFound,
        Self::InvalidKey,
        Self::InvalidJson,
        Self::InvalidValue,
        Self::InvalidTtl,
        Self::InvalidRange,
        Self::InvalidLimit,
        Self::InvalidPageToken,
        Self::InvalidRequestId,
        Self::InvalidConsistency,
        Self::InvalidVersion,
        Self::UnknownField,
        Self::InvalidRequest,
        Self::LimitExceeded,
        Self::VersionMismatch,
        Self::Overloaded,
        Self::DiskFull,
        Self::NotServing,
        Self::ReadOnly,
        Self::NoLeader,
        Self::NoQuorum,
        Self::OutcomeUnknown,
        Self::DeadlineExceeded,
        Self::FailedPrecondition,
        Self::UnknownPath,
        Self::MethodNotAllowed,
        Self::Corruption,
        Self::Internal,
    ];

    /// The stable name, as in `ErrorInfo.reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyNotFound => "KEY_NOT_FOUND",
            Self::InvalidKey => "INVALID_KEY",
            Self::InvalidJson => "INVALID_JSON",
            Self::InvalidValue => "INVALID_VALUE",
            Self::InvalidTtl => "INVALID_TTL",
            Self::InvalidRange => "INVALID_RANGE",
            Self::InvalidLimit => "INVALID_LIMIT",
            Self::InvalidPageToken => "INVALID_PAGE_TOKEN",
            Self::InvalidRequestId => "INVALID_REQUEST_ID",
            Self::InvalidConsistency => "INVALID_CONSISTENCY",
            Self::InvalidVersion => "INVALID_VERSION",
            Self::UnknownField => "UNKNOWN_FIELD",
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::LimitExceeded => "LIMIT_EXCEEDED",
            Self::VersionMismatch => "VERSION_MISMATCH",
            Self::Overloaded => "OVERLOADED",
            Self::DiskFull => "DISK_FULL",
            Self::NotServing => "NOT_SERVING",
            Self::ReadOnly => "READ_ONLY",
            Self::NoLeader => "NO_LEADER",
            Self::NoQuorum => "NO_QUORUM",
            Self::OutcomeUnknown => "OUTCOME_UNKNOWN",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::UnknownPath => "UNKNOWN_PATH",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::Corruption => "CORRUPTION",
            Self::Internal => "INTERNAL",
        }
    }

    /// The reason with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// What the caller has to do about it.
    pub const fn kind(self) -> Kind {
        match self {
            Self::KeyNotFound | Self::UnknownPath => Kind::NotFound,
            Self::InvalidKey
            | Self::InvalidJson
            | Self::InvalidValue
            | Self::InvalidTtl
            | Self::InvalidRange
            | Self::InvalidLimit
            | Self::InvalidPageToken
            | Self::InvalidRequestId
            | Self::InvalidConsistency
            | Self::InvalidVersion
            | Self::UnknownField
            | Self::InvalidRequest
            | Self::LimitExceeded => Kind::Invalid,
            Self::VersionMismatch => Kind::Mismatch,
            Self::Overloaded | Self::DiskFull => Kind::Overloaded,
            Self::NotServing | Self::ReadOnly | Self::NoLeader | Self::NoQuorum => {
                Kind::Unavailable
            }
            Self::OutcomeUnknown => Kind::Unknown,
            Self::DeadlineExceeded => Kind::Deadline,
            Self::FailedPrecondition => Kind::Precondition,
            Self::MethodNotAllowed => Kind::Unimplemented,
            Self::Corruption => Kind::Corruption,
            Self::Internal => Kind::Internal,
        }
    }
}

/// A failed request: reason, a sentence for people, facts for programs.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    reason: Reason,
    message: String,
    metadata: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
}

impl Error {
    /// A failure for `reason`; `message` names the thing and what is allowed, in lower case without a full stop.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let inner =
            Inner { reason, message: message.into(), metadata: Vec::new(), retry_after: None };
        Self(Box::new(inner))
    }

    /// `what` is larger or more than `max` allows.
    pub fn limit(
        limit: &'static str,
        what: &str,
        max: usize,
        got: impl fmt::Display,
        unit: &'static str,
    ) -> Self {
        Self::new(
            Reason::LimitExceeded,
            format!("{what} is {got} {unit}; at most {max} {unit} are allowed ({limit})"),
        )
        .with("limit", limit)
        .with("max", max)
        .with("got", got)
        .with("unit", unit)
    }

    /// Too much of `what` is waiting on this node. Certainly not applied.
    pub fn overloaded(message: impl Into<String>, retry_after: Duration) -> Self {
        let mut error = Self::new(Reason::Overloaded, message);
        error.0.retry_after = Some(retry_after);
        error
    }

    /// Adds a fact for programs.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.metadata.push((name, value.to_string()));
        self
    }

    /// Which failure it is.
    pub const fn reason(&self) -> Reason {
        self.0.reason
    }

    /// What the caller has to do about it.
    pub const fn kind(&self) -> Kind {
        self.0.reason.kind()
    }

    /// The sentence for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The facts for programs.
    pub fn metadata(&self) -> &[(&'static str, String)] {
        &self.0.metadata
    }

    /// When trying again makes sense, where that is known.
    pub const fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What a failed **write** means that may have been applied all the same.
    pub fn from_failed_write(error: &storage::Error) -> Self {
        // The engine cannot tell how much of it reached the disk.
        Self::new(
            Reason::OutcomeUnknown,
            format!(
                "the write may or may not survive a restart, this node takes no more writes: {error}"
            ),
        )
    }
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        use storage::Error as E;
        let reason = match &error {
            // File and offset are for operators (admin calls, the log), not for the public: see `api/`.
            E::Corruption { .. } => Reason::Corruption,
            // Two things that a node runs out of, with one consequence: not applied, and again when there is more.
            E::DiskFull { .. } | E::NoHandles { .. } => Reason::DiskFull,
            E::Poisoned { .. } => Reason::ReadOnly,
            E::Invalid(_) | E::Io { .. } | E::Locked { .. } => Reason::Internal,
        };
        Self::new(reason, error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.reason.as_str(), self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {:?}", self.0.metadata)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_known_by_its_name() {
        for (position, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position, "{reason:?} stands where it is declared");
            assert_eq!(Reason::from_name(reason.as_str()), Some(reason));
        }
        assert_eq!(Reason::Internal as usize + 1, Reason::ALL.len(), "the last one");
        assert_eq!(Reason::from_name("NO_SUCH_REASON"), None);
    }
}
