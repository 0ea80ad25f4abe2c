//! What is wrong with a REST request that the generated router cannot say: it knows no reasons, takes a doubled key as one, and
//! drops a `key` in the body silently.
//!
//! [`before`] refuses what the router would take; [`after`] finds the field that it has stumbled over and gives the refusal its
//! reason. Only `after` costs anything on requests of one key, and it runs only when a request was refused.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use base64::Engine as _;
use http::Method;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{DOCUMENT_PATH, paths};
use crate::error::{Error, Reason, Result};
use crate::proto::v1::Consistency;
use crate::types::Limits;

const BATCH_PATH: &str = "/api/v1/kv/batch";

/// Refuses what the router would take for something else.
pub(super) fn before(method: &Method, path: &str, content: &[u8], limits: &Limits) -> Result<()> {
    let takes_body = *method == Method::PUT || (*method == Method::POST && paths::takes_post(path));
    if !takes_body {
        return Ok(());
    }
    if content.is_empty() {
        return Err(Error::new(
            Reason::InvalidRequest,
            "the body is empty; it must be a JSON object",
        ));
    }
    if *method == Method::POST && path == BATCH_PATH {
        return batch(content, limits);
    }
    // A key within a value is escaped there (\"key\"), so this rarely matches without cause.
    if *method == Method::PUT
        && std::str::from_utf8(content).is_ok_and(|text| text.contains("\"key\""))
    {
        return same_key(path, content);
    }
    Ok(())
}

/// Why the router refused with the answer `refusal`; `None` when an operation did, which has told its reason already.
pub(super) fn after(refusal: &[u8], path: &str, query: &str, content: &[u8]) -> Option<Error> {
    #[derive(Deserialize)]
    struct Refusal {
        code: i32,
        message: String,
        #[serde(default)]
        details: Vec<IgnoredAny>,
    }
    let refusal: Refusal = serde_json::from_slice(refusal).ok()?;
    if !refusal.details.is_empty() {
        return None;
    }
    if refusal.code != i32::from(tonic::Code::InvalidArgument) {
        return Some(Error::new(Reason::Internal, refusal.message));
    }
    let error = in_query(query)
        .or_else(|| in_body(path, content))
        .unwrap_or_else(|| Error::new(reason_of(&refusal.message), refusal.message.clone()));
    Some(with_position(error, &refusal.message))
}

fn reason_of(message: &str) -> Reason {
    if message.contains("unknown field") { Reason::UnknownField } else { Reason::InvalidRequest }
}

/// Adds line and column of the body, where the router's message names them.
fn with_position(error: Error, message: &str) -> Error {
    let Some((_, position)) = message.rsplit_once(" at line ") else { return error };
    let Some((line, column)) = position.split_once(" column ") else { return error };
    let column: String = column.chars().take_while(char::is_ascii_digit).collect();
    if line.bytes().all(|byte| byte.is_ascii_digit()) && !column.is_empty() {
        error.with("line", line).with("column", column)
    } else {
        error
    }
}

/// The parameter of the query that is wrong.
fn in_query(query: &str) -> Option<Error> {
    let mut seen = HashSet::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(name), Some(value)) = (paths::decode(name), paths::decode(value)) else {
            let message = format!("the parameter {pair:?} is not percent-encoded UTF-8");
            return Some(Error::new(Reason::InvalidRequest, message));
        };
        if !seen.insert(name.clone()) {
            let message = format!("the parameter {name} is given more than once");
            return Some(Error::new(Reason::InvalidRequest, message).with("field", name));
        }
        if let Some(error) = wrong_text(&name, &value) {
            return Some(error);
        }
    }
    None
}

/// The member of the body that is wrong.
fn in_body(path: &str, content: &[u8]) -> Option<Error> {
    if content.is_empty() {
        return None;
    }
    let Members(members) = match serde_json::from_slice(content) {
        Ok(members) => members,
        Err(error) => {
            let kind = if error.is_data() { "not a JSON object" } else { "not JSON" };
            let message =
                format!("the body is {kind}: {error}; documents as they are go to {DOCUMENT_PATH}");
            return Some(Error::new(Reason::InvalidJson, message));
        }
    };
    let mut seen = HashSet::new();
    for (name, value) in &members {
        if !seen.insert(name.as_ref()) {
            let message = format!("the member {name:?} is given more than once");
            return Some(Error::new(Reason::InvalidRequest, message).with("field", name));
        }
        let text = value.get();
        let is_string = text.starts_with('"');
        if path == BATCH_PATH || name == "value" {
            if !is_string {
                let message = format!(
                    "{name:?} is not a string; a value is JSON text in a string, documents as they are go to {DOCUMENT_PATH}"
                );
                return Some(Error::new(Reason::InvalidJson, message).with("field", name));
            }
            continue;
        }
        let unquoted = serde_json::from_str::<String>(text).unwrap_or_else(|_| text.to_owned());
        if let Some(error) =
            wrong_text(name, &unquoted).or_else(|| wrong_string(name, is_string, &unquoted))
        {
            return Some(error);
        }
    }
    if seen.contains("value") && seen.contains("raw") {
        let message = "value and raw are both given; a key holds one of them";
        return Some(Error::new(Reason::InvalidValue, message));
    }
    None
}

/// What is wrong with a number or word, by the name of its field.
fn wrong_text(name: &str, text: &str) -> Option<Error> {
    let (reason, allowed) = match name {
        "ttl" if text.parse::<u32>().is_err() => {
            (Reason::InvalidTtl, "a whole number of seconds from 1 to 4294967295")
        }
        "limit" if text.parse::<u64>().is_err() => (Reason::InvalidLimit, "a whole number from 1"),
        "ifVersion" | "if_version" if text.parse::<u64>().is_err() => {
            (Reason::InvalidVersion, "a version, or 0 for \"only if absent\"")
        }
        "consistency"
            if Consistency::from_str_name(text).is_none() && text.parse::<i32>().is_err() =>
        {
            (Reason::InvalidConsistency, "CONSISTENCY_LINEARIZABLE or CONSISTENCY_STALE")
        }
        "reverse" | "keysOnly" | "keys_only" if text.parse::<bool>().is_err() => {
            (Reason::InvalidRequest, "true or false")
        }
        _ => return None,
    };
    let shown: String = text.chars().take(64).collect();
    Some(
        Error::new(reason, format!("{name} is {shown:?}; it must be {allowed}"))
            .with("field", name),
    )
}

/// What is wrong with a field that is a string.
fn wrong_string(name: &str, is_string: bool, text: &str) -> Option<Error> {
    let (reason, expected) = match name {
        "requestId" | "request_id" if !is_string => (Reason::InvalidRequestId, "a string"),
        "key" if !is_string => (Reason::InvalidKey, "a string"),
        "raw" if !is_string || !is_base64(text) => (Reason::InvalidValue, "base64 in a string"),
        _ => return None,
    };
    Some(Error::new(reason, format!("{name} is not {expected}")).with("field", name))
}

fn is_base64(text: &str) -> bool {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD]
        .iter()
        .any(|alphabet| alphabet.decode(text).is_ok())
}

/// Counts the entries of a batch before they are built, and finds doubled ones.
fn batch(content: &[u8], limits: &Limits) -> Result<()> {
    struct Count {
        max: usize,
    }

    impl<'de> Visitor<'de> for Count {
        type Value = Result<()>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a map of keys to JSON texts")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut keys: HashSet<Cow<'de, str>> = HashSet::new();
            let mut count = 0;
            let mut doubled = None;
            while let Some(Text(key)) = map.next_key()? {
                map.next_value::<IgnoredAny>()?;
                count += 1;
                // Above the limit the rest is only counted.
                if count <= self.max && doubled.is_none() && !keys.insert(key.clone()) {
                    doubled = Some(key);
                }
            }
            if count > self.max {
                return Ok(super::validate::batch_entries(count, self.max));
            }
            Ok(match doubled {
                None => Ok(()),
                Some(key) => {
                    let shown: String = key.chars().take(64).collect();
                    let message = format!("the key {shown:?} is in the batch more than once");
                    Err(Error::new(Reason::InvalidRequest, message).with("key", shown))
                }
            })
        }
    }

    let mut deserializer = serde_json::Deserializer::from_slice(content);
    match deserializer.deserialize_map(Count { max: limits.batch_entries }) {
        Ok(checked) => checked,
        // The router will find it too, and `after` tells about it.
        Err(_) => Ok(()),
    }
}

/// Refuses a body whose key is not that of the path.
fn same_key(path: &str, content: &[u8]) -> Result<()> {
    let Ok(Members(members)) = serde_json::from_slice(content) else { return Ok(()) };
    let members: HashMap<_, _> = members.into_iter().collect();
    let Some(raw) = members.get("key") else { return Ok(()) };
    let in_path = path.rsplit('/').next().and_then(paths::decode);
    let in_body = serde_json::from_str::<String>(raw.get()).ok();
    if in_body.as_deref() == in_path.as_deref() {
        return Ok(());
    }
    let message = "the body names another key than the path; leave it out of the body";
    Err(Error::new(Reason::InvalidKey, message).with("field", "key"))
}

/// The members of an object, doubled ones included.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Text(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

/// A string, borrowed where it needs no unescaping.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn why(path: &str, query: &str, content: &str) -> Error {
        let refusal =
            br#"{"code":3,"message":"invalid type: map, expected a string at line 1 column 10"}"#;
        after(refusal, path, query, content.as_bytes()).expect("it has no reason yet")
    }

    #[test]
    fn the_field_that_is_wrong_is_named() {
        let put = "/api/v1/kv/k";
        for (query, body, reason) in [
            ("", r#"{"value": {"a": 1}}"#, Reason::InvalidJson),
            ("", r#"{"value": "1", "ttl": 1.5}"#, Reason::InvalidTtl),
            ("", r#"{"value": "1", "ttl": "x"}"#, Reason::InvalidTtl),
            ("", r#"{"value": "1", "if_version": -1}"#, Reason::InvalidVersion),
            ("", r#"{"value": "1", "requestId": 5}"#, Reason::InvalidRequestId),
            ("", r#"{"raw": "***"}"#, Reason::InvalidValue),
            ("", r#"{"value": "1", "value": "2"}"#, Reason::InvalidRequest),
            ("", r#"{"value": "1", "raw": "AA=="}"#, Reason::InvalidValue),
            ("", "{\"value\": ", Reason::InvalidJson),
            ("", "[]", Reason::InvalidJson),
            ("limit=many", "", Reason::InvalidLimit),
            ("limit=1&limit=2", "", Reason::InvalidRequest),
            ("consistency=SOMETIMES", "", Reason::InvalidConsistency),
            ("prefix=%zz", "", Reason::InvalidRequest),
        ] {
            assert_eq!(why(put, query, body).reason(), reason, "{query} {body}");
        }
        let error = why(put, "", r#"{"value": {"a": 1}}"#);
        assert!(error.message().contains(DOCUMENT_PATH));
        assert!(error.metadata().contains(&("column", "10".to_owned())), "{error:?}");
    }

    #[test]
    fn an_operations_own_refusal_stays() {
        let refusal = br#"{"code":5,"message":"m","details":[{"reason":"KEY_NOT_FOUND"}]}"#;
        assert!(after(refusal, "/api/v1/kv/k", "", b"").is_none());
    }

    #[test]
    fn a_batch_with_a_doubled_key_or_too_many_is_refused() {
        let limits = Limits { batch_entries: 2, ..Limits::default() };
        let check = |body: &str| before(&Method::POST, BATCH_PATH, body.as_bytes(), &limits);
        assert!(check(r#"{"a": "1", "b": "2"}"#).is_ok());
        assert_eq!(
            check(r#"{"a": "1", "\u0061": "2"}"#).expect_err("doubled").reason(),
            Reason::InvalidRequest
        );
        assert_eq!(
            check(r#"{"a":"1","b":"2","c":"3"}"#).expect_err("three").reason(),
            Reason::LimitExceeded
        );
        assert_eq!(check("").expect_err("empty").reason(), Reason::InvalidRequest);
    }

    #[test]
    fn the_key_in_a_body_must_be_that_of_the_path() {
        let check = |body: &str| {
            before(&Method::PUT, "/api/v1/kv/a%2Fb", body.as_bytes(), &Limits::default())
        };
        assert!(check(r#"{"key": "a/b", "value": "1"}"#).is_ok());
        assert!(check(r#"{"key": "a", "value": "1"}"#).is_err());
        assert!(check(r#"{"value": "{\"key\": 1}"}"#).is_ok());
    }
}
