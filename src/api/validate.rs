//! Checks what a request carries, in one place for gRPC and REST. What passes is valid for every layer below.

use std::num::NonZeroU32;

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::DOCUMENT_PATH;
use crate::cluster::NodeName;
use crate::command::TtlSeconds;
use crate::config;
use crate::error::{Error, Reason, Result};
use crate::proto::admin::{ReplaceNodeRequest, UpdateClusterSettingsRequest};
use crate::proto::v1::Consistency;
use crate::router::{Freshness, PageLimits};
use crate::types::{Key, Limits, REQUEST_ID_BYTES_MAX, RequestId, Value};

/// Deepest nesting of arrays and objects in a document: deeper ones many JSON parsers cannot read.
pub(super) const JSON_DEPTH_MAX: usize = 128;

/// Most replicas that may move at a time in a cluster.
const MOVES_MAX: u64 = 1_000;

/// Characters of a key that an error message repeats.
const SHOWN_KEY_CHARACTERS: usize = 64;

pub(super) fn key(text: String, limits: &Limits) -> Result<Key> {
    if text.is_empty() {
        let message = format!("the key is empty; it must have 1 to {} bytes", limits.key_bytes);
        return Err(Error::new(Reason::InvalidKey, message));
    }
    if text.len() > limits.key_bytes {
        return Err(Error::limit(
            "kvstore.limits.key-size",
            "the key",
            limits.key_bytes,
            text.len(),
            "bytes",
        ));
    }
    Key::new(text).map_err(|text| {
        Error::limit("kvstore.limits.key-size", "the key", limits.key_bytes, text.len(), "bytes")
    })
}

/// A bound of a range: like a key, but may be empty.
pub(super) fn bound(text: &str, name: &str, limits: &Limits) -> Result<()> {
    if text.len() > limits.key_bytes {
        return Err(Error::limit(
            "kvstore.limits.key-size",
            name,
            limits.key_bytes,
            text.len(),
            "bytes",
        ));
    }
    Ok(())
}

pub(super) fn json(text: String, limits: &Limits) -> Result<Value> {
    value_size(text.len(), limits)?;
    json_text(&text)?;
    Ok(Value::Json(Bytes::from(text.into_bytes())))
}

pub(super) fn raw(bytes: Bytes, limits: &Limits) -> Result<Value> {
    value_size(bytes.len(), limits)?;
    Ok(Value::Raw(bytes))
}

fn value_size(bytes: usize, limits: &Limits) -> Result<()> {
    if bytes > limits.value_bytes {
        return Err(Error::limit(
            "kvstore.limits.value-size",
            "the value",
            limits.value_bytes,
            bytes,
            "bytes",
        ));
    }
    Ok(())
}

/// Whether `text` is one JSON document. Builds nothing; any text and depth is safe.
fn json_text(text: &str) -> Result<()> {
    // The skipping parser uses no stack for depth, so the order of the checks is free; most texts have few brackets.
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = format!(
            "the value is not JSON: {error}; a value is JSON text in a string, documents as they are go to {DOCUMENT_PATH}"
        );
        Error::new(Reason::InvalidJson, message).with("line", line).with("column", column)
    })?;
    let brackets = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if brackets > JSON_DEPTH_MAX && depth(text) > JSON_DEPTH_MAX {
        let message = format!("the value nests deeper than {JSON_DEPTH_MAX} arrays and objects");
        return Err(Error::new(Reason::InvalidJson, message).with("max", JSON_DEPTH_MAX));
    }
    Ok(())
}

/// Deepest nesting in a text that is JSON.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

pub(super) fn ttl(seconds: Option<u32>) -> Result<Option<TtlSeconds>> {
    seconds
        .map(|seconds| {
            NonZeroU32::new(seconds).ok_or_else(|| {
                let message = "ttl is 0; it must be at least 1 second, and absent for a key that does not expire";
                Error::new(Reason::InvalidTtl, message)
            })
        })
        .transpose()
}

pub(super) fn request_id(text: Option<&str>) -> Result<Option<RequestId>> {
    text.map(|text| {
        RequestId::new(text).ok_or_else(|| {
            let message = format!(
                "request_id has {} bytes; it must have 1 to {REQUEST_ID_BYTES_MAX}",
                text.len()
            );
            Error::new(Reason::InvalidRequestId, message)
        })
    })
    .transpose()
}

pub(super) fn freshness(consistency: i32, limits: &Limits) -> Result<Freshness> {
    match Consistency::try_from(consistency) {
        Ok(Consistency::Unspecified | Consistency::Linearizable) => Ok(Freshness::Linearizable),
        Ok(Consistency::Stale) => Ok(Freshness::Stale),
        Ok(Consistency::Lease) if limits.leases => Ok(Freshness::Lease),
        Ok(Consistency::Lease) => Err(Error::new(
            Reason::InvalidConsistency,
            "consistency LEASE is not switched on (kvstore.raft.leases); use LINEARIZABLE or STALE",
        )),
        Err(_) => Err(Error::new(
            Reason::InvalidConsistency,
            format!("consistency {consistency} does not exist; use LINEARIZABLE or STALE"),
        )),
    }
}

pub(super) fn page_limits(limit: Option<u32>, limits: &Limits) -> Result<PageLimits> {
    let items = match limit {
        None => limits.page_items_default,
        Some(0) => {
            let message = format!("limit is 0; it must be 1 to {}", limits.page_items);
            return Err(Error::new(Reason::InvalidLimit, message));
        }
        Some(limit) => limit as usize,
    };
    if items > limits.page_items {
        return Err(Error::limit(
            "kvstore.limits.page-items",
            "limit",
            limits.page_items,
            items,
            "items",
        ));
    }
    Ok(PageLimits { items, bytes: limits.page_bytes })
}

/// Checks number and size of a batch before anything is built from it.
pub(super) fn batch_size(entries: usize, bytes: usize, limits: &Limits) -> Result<()> {
    batch_entries(entries, limits.batch_entries)?;
    if bytes > limits.batch_bytes {
        return Err(Error::limit(
            "kvstore.limits.batch-size",
            "the batch",
            limits.batch_bytes,
            bytes,
            "bytes",
        ));
    }
    Ok(())
}

/// Checks the number of a batch's entries.
pub(super) fn batch_entries(entries: usize, max: usize) -> Result<()> {
    if entries > max {
        return Err(Error::limit(
            "kvstore.limits.batch-entries",
            "the batch",
            max,
            entries,
            "entries",
        ));
    }
    Ok(())
}

/// Says which entry of a batch an error is about.
pub(super) fn in_entry(error: Error, key: &str) -> Error {
    let shown: String = key.chars().take(SHOWN_KEY_CHARACTERS).collect();
    let mut named = Error::new(error.reason(), format!("entry {shown:?}: {}", error.message()))
        .with("key", shown);
    for (name, value) in error.metadata() {
        named = named.with(name, value);
    }
    named
}

/// The name of a node, in the field `field`.
pub(super) fn node(field: &'static str, name: String) -> Result<NodeName> {
    if crate::cluster::is_name(&name) {
        return Ok(NodeName(name));
    }
    let message = format!(
        "{field} is {name:?}; a node has a name of 1 to 64 characters of A-Z a-z 0-9 . _ -"
    );
    Err(Error::new(Reason::InvalidRequest, message).with("field", field))
}

/// Where others reach a node.
pub(super) fn address(address: String) -> Result<String> {
    if config::endpoint(&address) {
        return Ok(address);
    }
    let message = format!(
        "address is {address:?}; it must be host:port with a port of 1 to 65535, an IPv6 address in brackets"
    );
    Err(Error::new(Reason::InvalidRequest, message).with("field", "address"))
}

/// A node that leaves and the one that takes its place.
pub(super) fn exchange(request: ReplaceNodeRequest) -> Result<(NodeName, NodeName)> {
    let (leaving, by) = (node("id", request.id)?, node("by", request.by)?);
    if leaving == by {
        let message = format!("{by} cannot take its own place; name another node in by");
        return Err(Error::new(Reason::InvalidRequest, message).with("field", "by"));
    }
    Ok((leaving, by))
}

/// A change of what all nodes of a cluster share.
pub(super) fn settings_change(
    change: UpdateClusterSettingsRequest,
) -> Result<UpdateClusterSettingsRequest> {
    let within = |field: &'static str, value: Option<u32>, max: u64| match value {
        Some(value) if !(1..=max).contains(&u64::from(value)) => {
            let message = format!("{field} is {value}; it must be 1 to {max}");
            Err(Error::new(Reason::InvalidRequest, message).with("field", field))
        }
        _ => Ok(()),
    };
    if change == UpdateClusterSettingsRequest::default() {
        let message =
            "nothing is to be changed; set replication_factor, replace_after_seconds or moves_max";
        return Err(Error::new(Reason::InvalidRequest, message));
    }
    within("replication_factor", change.replication_factor, config::REPLICATION_FACTOR_MAX)?;
    within("moves_max", change.moves_max, MOVES_MAX)?;
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_json_is_refused_with_line_and_column() {
        let error = json_text("{\"a\": 1,\n oops}").expect_err("not JSON");
        assert_eq!(error.reason(), Reason::InvalidJson);
        assert_eq!(error.metadata()[0], ("line", "2".to_owned()));
        assert!(error.message().contains(DOCUMENT_PATH));
    }

    #[test]
    fn deep_documents_are_refused_without_recursion() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(json_text(&nested(JSON_DEPTH_MAX)).is_ok());
        assert!(json_text(&nested(JSON_DEPTH_MAX + 1)).is_err());
        assert!(json_text(&nested(1_000_000)).is_err());
        let brackets_in_text = format!("\"\\\"{}\"", "[".repeat(1_000));
        assert!(json_text(&brackets_in_text).is_ok());
        let flat = format!("[{}[]]", "[],".repeat(1_000));
        assert!(json_text(&flat).is_ok());
    }

    #[test]
    fn limits_name_themselves() {
        let limits = Limits { key_bytes: 3, ..Limits::default() };
        let error = key("four".to_owned(), &limits).expect_err("too long");
        assert_eq!(error.reason(), Reason::LimitExceeded);
        assert!(error.message().contains("kvstore.limits.key-size"), "{error}");
        assert_eq!(key(String::new(), &limits).expect_err("empty").reason(), Reason::InvalidKey);
    }

    #[test]
    fn a_page_has_1_to_10_000_items() {
        let limits = Limits::default();
        assert_eq!(page_limits(None, &limits).expect("default").items, 1_000);
        assert_eq!(page_limits(Some(0), &limits).expect_err("none").reason(), Reason::InvalidLimit);
        assert!(page_limits(Some(10_000), &limits).is_ok());
        assert_eq!(
            page_limits(Some(10_001), &limits).expect_err("more").reason(),
            Reason::LimitExceeded
        );
    }
}
