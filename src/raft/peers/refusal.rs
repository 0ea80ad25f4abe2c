//! Why a node does not speak to another: a reason for programs, a sentence for people that says what to do. Travels as `google.rpc.Status`
//! with `google.rpc.ErrorInfo`.

use std::collections::HashMap;
use std::fmt;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// `ErrorInfo.domain` of everything that a node refuses.
const DOMAIN: &str = "kvstore";

/// Which refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is not of this protocol.
    Malformed,
    /// A proof is wrong.
    SecretsDiffer,
    /// The node that was called is not the one that was meant.
    AnotherNode,
    /// The two belong to different clusters.
    AnotherCluster,
    /// The node that called is none of the cluster.
    NotAMember,
    /// The node has another data directory than the cluster knows it with.
    AnotherIncarnation,
    /// Nodes that want to form a cluster disagree about what it is.
    MembersDiffer,
    /// A node wants to join a cluster that has another number of shards.
    ShardsDiffer,
    /// The cluster does not take the node as a member, as it is or as it says of itself.
    NotAdmitted,
    /// The cluster of the node that was called is not formed yet, or it is starting or stopping.
    NotReady,
    /// A stream without a token that was given out for it.
    NoSession,
    /// A limit on number or time is reached.
    Busy,
    /// A file or its name is not what was announced, or is not allowed.
    BadFile,
    /// The disk of the node that was called does not take files.
    Disk,
}

impl Reason {
    const ALL: [Self; 14] = [
        Self::Malformed,
        Self::SecretsDiffer,
        Self::AnotherNode,
        Self::AnotherCluster,
        Self::NotAMember,
        Self::AnotherIncarnation,
        Self::MembersDiffer,
        Self::ShardsDiffer,
        Self::NotAdmitted,
        Self::NotReady,
        Self::NoSession,
        Self::Busy,
        Self::BadFile,
        Self::Disk,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "PEER_MALFORMED",
            Self::SecretsDiffer => "PEER_SECRETS_DIFFER",
            Self::AnotherNode => "PEER_ANOTHER_NODE",
            Self::AnotherCluster => "PEER_ANOTHER_CLUSTER",
            Self::NotAMember => "PEER_NOT_A_MEMBER",
            Self::AnotherIncarnation => "PEER_ANOTHER_INCARNATION",
            Self::MembersDiffer => "PEER_MEMBERS_DIFFER",
            Self::ShardsDiffer => "PEER_SHARDS_DIFFER",
            Self::NotAdmitted => "PEER_NOT_ADMITTED",
            Self::NotReady => "PEER_NOT_READY",
            Self::NoSession => "PEER_NO_SESSION",
            Self::Busy => "PEER_BUSY",
            Self::BadFile => "PEER_BAD_FILE",
            Self::Disk => "PEER_DISK",
        }
    }

    const fn code(self) -> Code {
        match self {
            Self::Malformed => Code::InvalidArgument,
            Self::SecretsDiffer | Self::NoSession => Code::Unauthenticated,
            Self::AnotherCluster | Self::NotAMember | Self::AnotherIncarnation => {
                Code::PermissionDenied
            }
            Self::AnotherNode | Self::MembersDiffer | Self::ShardsDiffer | Self::NotAdmitted => {
                Code::FailedPrecondition
            }
            Self::NotReady => Code::Unavailable,
            Self::Busy => Code::ResourceExhausted,
            Self::BadFile => Code::DataLoss,
            Self::Disk => Code::Internal,
        }
    }

    /// Whether a node that is told so while it forms or joins its cluster has to be set up in another way: to ask again would not help.
    pub(super) const fn is_final(self) -> bool {
        matches!(
            self,
            Self::AnotherCluster
                | Self::NotAMember
                | Self::AnotherIncarnation
                | Self::MembersDiffer
                | Self::ShardsDiffer
                | Self::NotAdmitted
        )
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Which one.
    pub reason: Reason,
    /// The sentence.
    pub message: String,
}

impl Refusal {
    /// A refusal for `reason`; `message` says what to do.
    pub fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self { reason, message: message.to_string() }
    }

    pub(super) fn malformed(what: &str) -> Self {
        let message =
            format!("{what} is not what this version speaks; run one version on all nodes");
        Self::new(Reason::Malformed, message)
    }

    /// As gRPC carries it.
    pub(super) fn to_status(&self) -> Status {
        let details =
            ErrorDetails::with_error_info(self.reason.as_str(), DOMAIN, HashMap::default());
        Status::with_error_details(self.reason.code(), self.message.clone(), details)
    }

    /// The refusal that `status` is, if it is one.
    pub(super) fn of_status(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
        let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == info.reason)?;
        Some(Self::new(reason, status.message()))
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        refusal.to_status()
    }
}

/// What `status` says, in one sentence: the refusal, or else what became of the connection.
pub(super) fn describe(status: &Status) -> String {
    let mut deepest: &dyn std::error::Error = status;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match status.code() {
        Code::Unimplemented => {
            "the node there serves no peers; is it started with kvstore.cluster.members or kvstore.cluster.join?".to_owned()
        }
        _ if std::error::Error::source(status).is_some() => deepest.to_string(),
        _ => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_the_same_on_the_other_side() {
        for reason in Reason::ALL {
            let refusal = Refusal::new(reason, "no: try n2");
            assert_eq!(Refusal::of_status(&refusal.to_status()), Some(refusal));
        }
        assert_eq!(Refusal::of_status(&Status::unavailable("broken pipe")), None);
    }
}
