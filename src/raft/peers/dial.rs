//! Reaching a node: a connection, then the handshake over it.

use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::handshake::{Calling, Peer};
use super::local::Local;
use super::refusal::{Refusal, describe};
use super::{HANDSHAKE_BYTES_MAX, MESSAGE_BYTES_MAX, TOKEN_HEADER};
use crate::cluster::NodeName;
use crate::net::{Endpoint, KeepAlive, open};
use crate::proto::raft::raft_service_client::RaftServiceClient;
use crate::proto::raft::{
    HandshakeRequest, HandshakeResponse, handshake_request, handshake_response,
};

/// Wait for a connection and the handshake, and then for a stream.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// A silent node is found within two seconds.
const KEEP_ALIVE: KeepAlive = KeepAlive {
    interval: Duration::from_secs(1),
    timeout: Duration::from_secs(1),
    while_idle: true,
};

/// A node that was reached.
pub(super) struct Dialled {
    pub(super) client: RaftServiceClient<Channel>,
    pub(super) peer: Peer,
}

/// Why a node was not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DialError {
    /// No connection, or it broke: why.
    Unreachable(String),
    /// One of the two does not speak to the other.
    Refused(Refusal),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => f.write_str(why),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl From<Refusal> for DialError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Status> for DialError {
    fn from(status: Status) -> Self {
        Refusal::of_status(&status)
            .map_or_else(|| Self::Unreachable(describe(&status)), Self::Refused)
    }
}

/// Connects to `node`, or whichever it is, at `endpoint`; both prove who they are.
pub(super) async fn dial(
    local: &Local,
    node: Option<&NodeName>,
    endpoint: &Endpoint,
) -> Result<Dialled, DialError> {
    within(async {
        let channel = open(endpoint, KEEP_ALIVE).await.map_err(DialError::Unreachable)?;
        let client = |bytes_max| {
            RaftServiceClient::new(channel.clone())
                .max_decoding_message_size(bytes_max)
                .max_encoding_message_size(bytes_max)
        };
        let peer =
            handshake(local, node, client(HANDSHAKE_BYTES_MAX)).await.inspect_err(|error| {
                if let DialError::Refused(refusal) = error {
                    local.heed(refusal);
                }
            })?;
        Ok(Dialled { client: client(MESSAGE_BYTES_MAX), peer })
    })
    .await
}

/// Awaits `step` of reaching a node for as long as one may take.
pub(super) async fn within<T>(
    step: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    let late = || DialError::Unreachable(format!("no answer within {DIAL_TIMEOUT:?}"));
    timeout(DIAL_TIMEOUT, step).await.unwrap_or_else(|_| Err(late()))
}

async fn handshake(
    local: &Local,
    node: Option<&NodeName>,
    mut client: RaftServiceClient<Channel>,
) -> Result<Peer, DialError> {
    let standing = local.standing();
    let calling = Calling::new(&local.who, &standing, node);
    // Room for both steps.
    let (steps, outgoing) = mpsc::channel(2);
    let step = |step| HandshakeRequest { step: Some(step) };
    let broken = |_| DialError::Unreachable("the connection broke during the handshake".to_owned());
    steps.send(step(handshake_request::Step::Hello(calling.hello()))).await.map_err(broken)?;
    let mut answers = client.handshake(ReceiverStream::new(outgoing)).await?.into_inner();
    let handshake_response::Step::Challenge(challenge) = next(&mut answers).await? else {
        return Err(Refusal::malformed("the handshake").into());
    };
    let proof = calling.prove(&local.secret, &challenge)?;
    steps.send(step(handshake_request::Step::Proof(proof))).await.map_err(broken)?;
    let handshake_response::Step::Welcome(welcome) = next(&mut answers).await? else {
        return Err(Refusal::malformed("the handshake").into());
    };
    Ok(calling.check(&local.secret, &standing, &challenge, &welcome)?)
}

async fn next(
    answers: &mut Streaming<HandshakeResponse>,
) -> Result<handshake_response::Step, DialError> {
    let answer = answers.message().await?.and_then(|answer| answer.step);
    answer.ok_or_else(|| Refusal::malformed("the handshake").into())
}

impl Dialled {
    /// A request that opens the stream, or makes the call, which the handshake allowed.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let token = MetadataValue::from_bytes(&self.peer.token);
        request.metadata_mut().insert_bin(TOKEN_HEADER, token);
        request
    }
}
