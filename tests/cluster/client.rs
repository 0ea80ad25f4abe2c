//! One client: calls with a deadline, and what each ending says about the operation.
//!
//! | ending | of a write | of a read |
//! |---|---|---|
//! | an answer, KEY_NOT_FOUND, VERSION_MISMATCH | what it says | what it says |
//! | a refusal that says "not applied" (NO_LEADER, NO_QUORUM, OVERLOADED, NOT_SERVING, ...) | failed | failed |
//! | nobody listens there: it was never sent | failed | failed |
//! | OUTCOME_UNKNOWN, the transport, the deadline, anything else | unknown | failed |

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use kvstore::proto::v1::kv_service_client::KvServiceClient;
use kvstore::proto::v1::{DeleteRequest, GetRequest, PutRequest, get_response, put_request};
use linz::{Action, Answer, Outcome, Value, Version};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

use crate::cluster::Reach;

/// How long one call may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(1);

/// How much later than the deadline a node may answer before the client gives up on its own.
const GRACE: Duration = Duration::from_millis(500);

/// How long it may take to reach a node.
const CONNECT_MAX: Duration = Duration::from_millis(500);

/// Bytes of a value, so that entries have some weight.
const VALUE_BYTES: usize = 100;

/// Reasons with which a write was certainly not applied.
const NOT_APPLIED: [&str; 8] = [
    "NO_LEADER",
    "NO_QUORUM",
    "NOT_LEADER",
    "OVERLOADED",
    "DISK_FULL",
    "QUOTA",
    "NOT_SERVING",
    "READ_ONLY",
];

/// A client of all nodes, which holds one connection. When there are others than before, it turns to one of them: so nodes that come get their part.
pub(crate) struct Client {
    nodes: watch::Receiver<Vec<Reach>>,
    /// The node that it begins with.
    first: usize,
    /// The node it talks to.
    node: usize,
    connection: Option<KvServiceClient<Channel>>,
}

impl Client {
    /// A client that begins with one of the nodes.
    pub(crate) fn new(nodes: watch::Receiver<Vec<Reach>>, first: usize) -> Self {
        Self { nodes, first, node: first, connection: None }
    }

    /// Turns to the next node.
    pub(crate) fn turn(&mut self) {
        self.connection = None;
        self.node += 1;
    }

    /// Connects if it is not connected; turns to the next node if that fails. What was not sent needs no record.
    pub(crate) async fn connect(&mut self) -> bool {
        if self.nodes.has_changed().is_ok_and(|changed| changed) {
            self.connection = None;
            self.node = self.first;
        }
        if self.connection.is_none() {
            let endpoint = {
                let nodes = self.nodes.borrow_and_update();
                format!("http://{}", nodes[self.node % nodes.len()].grpc)
            };
            let endpoint = Endpoint::from_shared(endpoint).expect("an address");
            match endpoint.connect_timeout(CONNECT_MAX).connect().await {
                Ok(channel) => self.connection = Some(KvServiceClient::new(channel)),
                Err(_) => self.turn(),
            }
        }
        self.connection.is_some()
    }

    /// One call. After one that did not end with an answer the client turns to another node.
    pub(crate) async fn call(
        &mut self,
        key: &str,
        action: Action,
        request_id: Option<&str>,
        deadline: Duration,
    ) -> (Outcome, Option<Status>) {
        let Some(connection) = &mut self.connection else {
            return (Outcome::Failed, Some(Status::unavailable("not connected")));
        };
        let call = send(connection, key, action, request_id, deadline);
        let result = match tokio::time::timeout(deadline + GRACE, call).await {
            Ok(result) => result,
            Err(_) => Err(Status::deadline_exceeded("no answer")),
        };
        match result {
            Ok(answer) => (Outcome::Ok(answer), None),
            Err(status) => {
                let outcome = outcome(action, &status);
                if !matches!(outcome, Outcome::Ok(_)) {
                    self.turn();
                }
                (outcome, Some(status))
            }
        }
    }
}

async fn send(
    connection: &mut KvServiceClient<Channel>,
    key: &str,
    action: Action,
    request_id: Option<&str>,
    deadline: Duration,
) -> Result<Answer, Status> {
    let key = key.to_owned();
    let if_version = action.if_version().map(|version| version.0);
    let request_id = request_id.map(str::to_owned);
    match action {
        Action::Get => {
            let found = connection
                .get(within(deadline, GetRequest { key, ..GetRequest::default() }))
                .await?;
            let found = found.into_inner();
            Ok(Answer::Found(decode(found.content), Version(found.version)))
        }
        Action::Put { value, .. } => {
            let content = Some(put_request::Content::Value(encode(value)));
            let put = PutRequest { key, content, if_version, request_id, ttl: None };
            let stored = connection.put(within(deadline, put)).await?;
            Ok(Answer::Stored(Version(stored.into_inner().version)))
        }
        Action::Delete { .. } => {
            let delete = DeleteRequest { key, if_version, request_id };
            let deleted = connection.delete(within(deadline, delete)).await?;
            Ok(Answer::Deleted(deleted.into_inner().deleted))
        }
    }
}

fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// What a status says about an operation.
pub(crate) fn outcome(action: Action, status: &Status) -> Outcome {
    let details = status.get_error_details();
    let reason = details.error_info().map_or("", |info| info.reason.as_str());
    assert!(!is_our_fault(reason), "the test asks for what is not allowed: {status}");
    match (reason, action) {
        ("KEY_NOT_FOUND", Action::Get) => Outcome::Ok(Answer::Missing),
        ("VERSION_MISMATCH", _) => Outcome::Ok(Answer::Mismatch),
        // A read changes nothing, however it ends.
        (_, Action::Get) => Outcome::Failed,
        (reason, _) if NOT_APPLIED.contains(&reason) => Outcome::Failed,
        _ if was_never_sent(status) => Outcome::Failed,
        _ => Outcome::Unknown,
    }
}

/// Whether a connection that ended could not be made again.
fn was_never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let refused = error.downcast_ref::<io::Error>();
        if refused.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        source = error.source();
    }
    false
}

/// In a few words, why a call did not end with an answer.
pub(crate) fn why(status: &Status) -> String {
    match status.get_error_details().error_info() {
        Some(info) => info.reason.clone(),
        None if was_never_sent(status) => "nobody listens".to_owned(),
        None => {
            let mut why = format!("transport: {:?}: {}", status.code(), status.message());
            let mut source = std::error::Error::source(status);
            while let Some(error) = source {
                let _ = write!(why, ": {error}");
                source = error.source();
            }
            why
        }
    }
}

fn is_our_fault(reason: &str) -> bool {
    reason.starts_with("INVALID_") || reason == "LIMIT_EXCEEDED" || reason == "CORRUPTION"
}

/// JSON text that carries a value.
fn encode(value: Value) -> String {
    format!("{:<VALUE_BYTES$}", value.0)
}

/// The value of JSON text. What no client wrote becomes a value that none did.
pub(crate) fn decode(content: Option<get_response::Content>) -> Value {
    match content {
        Some(get_response::Content::Value(text)) => parse(&text),
        _ => NOBODYS,
    }
}

/// The value of JSON text, as [`decode`].
pub(crate) fn parse(text: &str) -> Value {
    let value = text.trim().parse().map_or(NOBODYS, Value);
    if encode(value) == text { value } else { NOBODYS }
}

/// No client writes it.
const NOBODYS: Value = Value(u64::MAX);

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn refused(code: tonic::Code, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "kvstore", []);
        Status::with_error_details(code, "no", details)
    }

    #[test]
    fn endings_are_told_apart() {
        let put = Action::put(Value(1));
        let no_leader = refused(tonic::Code::Unavailable, "NO_LEADER");
        assert_eq!(outcome(put, &no_leader), Outcome::Failed);
        assert_eq!(outcome(put, &Status::unavailable("connection reset")), Outcome::Unknown);
        let unknown = refused(tonic::Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
        assert_eq!(outcome(put, &unknown), Outcome::Unknown);
        assert_eq!(outcome(Action::Get, &unknown), Outcome::Failed);
        let missing = refused(tonic::Code::NotFound, "KEY_NOT_FOUND");
        assert_eq!(outcome(Action::Get, &missing), Outcome::Ok(Answer::Missing));
        let mismatch = refused(tonic::Code::Aborted, "VERSION_MISMATCH");
        let condition = Action::delete_if(Version(1));
        assert_eq!(outcome(condition, &mismatch), Outcome::Ok(Answer::Mismatch));
    }

    #[test]
    fn a_value_that_was_changed_is_nobodys() {
        assert_eq!(parse(&encode(Value(17))), Value(17));
        assert_eq!(parse("17"), NOBODYS);
        assert_eq!(parse(&encode(Value(17)).replace('1', "x")), NOBODYS);
    }
}
