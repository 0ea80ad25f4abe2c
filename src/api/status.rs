//! The one place that turns an [`Error`] into what gRPC and HTTP carry.
//!
//! | kind | gRPC | HTTP |
//! |---|---|---|
//! | invalid | INVALID_ARGUMENT | 400 |
//! | not found | NOT_FOUND | 404 |
//! | mismatch | ABORTED | 409 |
//! | overloaded | RESOURCE_EXHAUSTED | 429 |
//! | unavailable | UNAVAILABLE | 503 |
//! | unknown, deadline | DEADLINE_EXCEEDED | 504 |
//! | precondition | FAILED_PRECONDITION | 400 |
//! | unimplemented | UNIMPLEMENTED | 405 |
//! | corruption | DATA_LOSS | 500 |
//! | internal | INTERNAL | 500 |
//!
//! Both carry `google.rpc.ErrorInfo` with domain `kvstore` and the reason, in the trailer `grpc-status-details-bin` and as JSON in the
//! body. Where files are damaged or a defect shows, the details go to the log and not to the public.

use std::borrow::Cow;
use std::collections::HashMap;

use http::StatusCode;
use prost::Message;
use rest_over_grpc::handling;
use serde::Serialize;
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{Error, Kind, Reason};

/// `ErrorInfo.domain` of every error of this server.
pub(super) const DOMAIN: &str = "kvstore";

/// The code and HTTP status of a kind.
pub(super) const fn codes(kind: Kind) -> (Code, StatusCode) {
    match kind {
        Kind::Invalid => (Code::InvalidArgument, StatusCode::BAD_REQUEST),
        Kind::NotFound => (Code::NotFound, StatusCode::NOT_FOUND),
        Kind::Mismatch => (Code::Aborted, StatusCode::CONFLICT),
        Kind::Overloaded => (Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS),
        Kind::Unavailable => (Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
        Kind::Unknown | Kind::Deadline => (Code::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT),
        Kind::Precondition => (Code::FailedPrecondition, StatusCode::BAD_REQUEST),
        Kind::Unimplemented => (Code::Unimplemented, StatusCode::METHOD_NOT_ALLOWED),
        Kind::Corruption => (Code::DataLoss, StatusCode::INTERNAL_SERVER_ERROR),
        Kind::Internal => (Code::Internal, StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// What the public is told. Paths and offsets of damaged files are for the operator.
fn public_message(error: &Error) -> Cow<'_, str> {
    match error.kind() {
        Kind::Corruption => {
            tracing::error!(%error, "damaged data");
            "stored data is damaged on this node; its log names the file".into()
        }
        Kind::Internal => {
            tracing::error!(%error, "internal error");
            "internal error; the node's log tells more".into()
        }
        _ => error.message().into(),
    }
}

/// As gRPC carries it.
pub(super) fn to_tonic(error: &Error) -> tonic::Status {
    let metadata: HashMap<String, String> =
        error.metadata().iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let mut details = ErrorDetails::with_error_info(error.reason().as_str(), DOMAIN, metadata);
    if let Some(delay) = error.retry_after() {
        details.set_retry_info(Some(delay));
    }
    tonic::Status::with_error_details(codes(error.kind()).0, public_message(error), details)
}

/// As an answer of a session carries it.
pub(super) fn to_rpc(error: &Error) -> tonic_types::Status {
    let status = to_tonic(error);
    tonic_types::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
        code: i32::from(status.code()),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// As the REST router carries it.
pub(super) fn to_rest(error: &Error) -> handling::Status {
    let code = i32::from(codes(error.kind()).0);
    let code = handling::Code::try_from(code).unwrap_or(handling::Code::Internal);
    handling::Status::new(code, public_message(error)).with_details(json_details(error))
}

/// As an HTTP body carries it: `{"code", "message", "details"}`.
pub(super) fn to_json(error: &Error) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        code: i32,
        message: &'a str,
        details: Vec<Value>,
    }
    let code = i32::from(codes(error.kind()).0);
    let body = Body { code, message: &public_message(error), details: json_details(error) };
    serde_json::to_string(&body).expect("names are strings and numbers finite")
}

fn json_details(error: &Error) -> Vec<Value> {
    let metadata: serde_json::Map<String, Value> = error
        .metadata()
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
        .collect();
    let mut details = vec![json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.reason().as_str(),
        "domain": DOMAIN,
        "metadata": metadata,
    })];
    if let Some(delay) = error.retry_after() {
        details.push(json!({
            "@type": "type.googleapis.com/google.rpc.RetryInfo",
            "retryDelay": format!("{}.{:03}s", delay.as_secs(), delay.subsec_millis()),
        }));
    }
    details
}

/// What tonic itself refused before a handler saw it, with the code and reason that this API gives such a request; other statuses come
/// back as they are.
pub(super) fn of_transport(status: tonic::Status, request_bytes_max: usize) -> tonic::Status {
    let message = status.message();
    let too_large =
        message.contains("message length too large") || message.contains("size limit, of");
    if too_large {
        let got = message.split("found ").nth(1).and_then(|rest| rest.split(' ').next());
        let got = got.map_or_else(|| format!("more than {request_bytes_max}"), str::to_owned);
        return to_tonic(&Error::limit(
            "kvstore.limits.request-size",
            "the request",
            request_bytes_max,
            got,
            "bytes",
        ));
    }
    let malformed = message.starts_with("failed to decode Protobuf message")
        || message.starts_with("Error decompressing")
        || message.starts_with("protocol error: received message with invalid compression flag");
    if malformed && status.code() == Code::Internal {
        let key = message.contains(".key:") && message.contains("UTF-8");
        let reason = if key { Reason::InvalidKey } else { Reason::InvalidRequest };
        return to_tonic(&Error::new(reason, message));
    }
    status
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn reason_and_facts_travel_in_both_forms() {
        let error = Error::limit("kvstore.limits.key-size", "the key", 4, 5, "bytes");
        let status = to_tonic(&error);
        let info = status.get_error_details().error_info().expect("always there").clone();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("LIMIT_EXCEEDED", DOMAIN));
        assert_eq!(info.metadata["max"], "4");
        let json: Value = serde_json::from_str(&to_json(&error)).expect("JSON");
        assert_eq!(json["code"], 3);
        assert_eq!(json["details"][0]["reason"], "LIMIT_EXCEEDED");
        assert_eq!(json["details"][0]["metadata"]["got"], "5");
        assert_eq!(to_rpc(&error).code, 3);
    }

    #[test]
    fn damage_is_not_described_to_the_public() {
        let storage = crate::storage::Error::corruption("/data/secret", 7, "bad checksum");
        let status = to_tonic(&Error::from(storage));
        assert_eq!(status.code(), Code::DataLoss);
        assert!(!status.message().contains("secret"));
    }

    #[test]
    fn an_overload_says_when_to_come_back() {
        let json = to_json(&Error::overloaded("full", Duration::from_millis(50)));
        let json: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["details"][1]["retryDelay"], "0.050s");
    }
}
