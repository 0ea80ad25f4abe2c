//! Documents as they are: `/api/v1/json/{key}`, the paths for a person with curl and jq.
//!
//! PUT stores the body byte for byte, GET answers it with its version as ETag. Plain HTTP and not transcoded, because
//! `google.api.http` has no body that is kept as it is; below the surface they are the operations of `kv`.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde::Serialize;

use super::call::Call;
use super::rest::{Body, json_answer};
use super::{Api, paths};
use crate::error::{Error, Reason, Result};
use crate::proto::v1::{
    Consistency, DeleteRequest, GetRequest, PutRequest, get_response, put_request,
};

impl Api {
    /// Serves one request for the document under `key`; `None` when the method is none of GET, PUT and DELETE.
    pub(super) async fn document(
        &self,
        method: &Method,
        key: String,
        query: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Option<Result<Response<Body>>> {
        let call = Call::new(headers, self.limits());
        match *method {
            Method::GET => Some(self.get_document(key, query, headers, call).await),
            Method::PUT => Some(self.put_document(key, query, body, call).await),
            Method::DELETE => Some(self.delete_document(key, query, call).await),
            _ => None,
        }
    }

    async fn put_document(
        &self,
        key: String,
        query: &str,
        body: Bytes,
        call: Call,
    ) -> Result<Response<Body>> {
        let parameters = Parameters::parse(query, &["ttl", "ifVersion", "requestId"])?;
        let text = String::from_utf8(body.into()).map_err(|error| {
            let message =
                format!("the document is not UTF-8 at byte {}", error.utf8_error().valid_up_to());
            Error::new(Reason::InvalidJson, message)
        })?;
        let request = PutRequest {
            key,
            ttl: parameters.number("ttl", Reason::InvalidTtl)?,
            if_version: parameters.number("ifVersion", Reason::InvalidVersion)?,
            request_id: parameters.text("requestId"),
            content: Some(put_request::Content::Value(text)),
        };
        answer(&self.put(request, call).await?)
    }

    async fn get_document(
        &self,
        key: String,
        query: &str,
        headers: &HeaderMap,
        call: Call,
    ) -> Result<Response<Body>> {
        let parameters = Parameters::parse(query, &["consistency"])?;
        let found =
            self.get(GetRequest { key, consistency: parameters.consistency()? }, call).await?;
        let Some(get_response::Content::Value(text)) = found.content else {
            let message =
                "the key holds raw bytes, which are no document; read it at /api/v1/kv/{key}";
            return Err(Error::new(Reason::InvalidValue, message));
        };
        let tag = format!("\"{}\"", found.version);
        let unchanged = headers.get(header::IF_NONE_MATCH).is_some_and(|tags| names(tags, &tag));
        let response = Response::builder().header(header::ETAG, &tag);
        let response = if unchanged {
            response.status(StatusCode::NOT_MODIFIED).body(Body::empty())
        } else {
            response.header(header::CONTENT_TYPE, "application/json").body(Body::from(text))
        };
        response.map_err(|error| Error::new(Reason::Internal, error.to_string()))
    }

    async fn delete_document(
        &self,
        key: String,
        query: &str,
        call: Call,
    ) -> Result<Response<Body>> {
        let parameters = Parameters::parse(query, &["ifVersion", "requestId"])?;
        let request = DeleteRequest {
            key,
            if_version: parameters.number("ifVersion", Reason::InvalidVersion)?,
            request_id: parameters.text("requestId"),
        };
        answer(&self.delete(request, call).await?)
    }
}

fn answer(message: &impl Serialize) -> Result<Response<Body>> {
    let body = serde_json::to_vec(message)
        .map_err(|error| Error::new(Reason::Internal, error.to_string()))?;
    Ok(json_answer(StatusCode::OK, body))
}

/// Whether a list of entity tags names `tag` (RFC 9110, 13.1.2: compared weakly).
fn names(tags: &HeaderValue, tag: &str) -> bool {
    let Ok(tags) = tags.to_str() else { return false };
    tags.split(',')
        .map(str::trim)
        .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

/// Parameters of a query, each at most once.
struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    /// Reads `query`, of which only the names in `allowed` may be there, in lowerCamelCase or snake_case.
    fn parse(query: &str, allowed: &[&'static str]) -> Result<Self> {
        let mut found: Vec<(&'static str, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = paths::decode(name).zip(paths::decode(value));
            let Some((name, value)) = decoded else {
                let message = format!("the parameter {pair:?} is not percent-encoded UTF-8");
                return Err(Error::new(Reason::InvalidRequest, message));
            };
            let Some(&name) = allowed.iter().find(|known| same_name(known, &name)) else {
                let message = format!(
                    "there is no parameter {name:?} here; allowed are {}",
                    allowed.join(", ")
                );
                return Err(Error::new(Reason::UnknownField, message).with("field", name));
            };
            if found.iter().any(|(other, _)| *other == name) {
                let message = format!("the parameter {name} is given more than once");
                return Err(Error::new(Reason::InvalidRequest, message).with("field", name));
            }
            found.push((name, value.into_owned()));
        }
        Ok(Self(found))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value.clone())
    }

    fn number<T: std::str::FromStr>(
        &self,
        name: &'static str,
        reason: Reason,
    ) -> Result<Option<T>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            let message =
                format!("{name} is {text:?}; it must be a whole number that is not negative");
            Error::new(reason, message).with("field", name)
        })
    }

    fn consistency(&self) -> Result<i32> {
        let Some(text) = self.text("consistency") else { return Ok(0) };
        Consistency::from_str_name(&text)
            .or_else(|| Consistency::from_str_name(&format!("CONSISTENCY_{text}")))
            .map(i32::from)
            .ok_or_else(|| {
                let message = format!("consistency {text:?} does not exist; use CONSISTENCY_LINEARIZABLE or CONSISTENCY_STALE");
                Error::new(Reason::InvalidConsistency, message)
            })
    }
}

/// Whether `name` is `known`, which is lowerCamelCase, in either spelling.
fn same_name(known: &str, name: &str) -> bool {
    if known == name {
        return true;
    }
    let mut snake = String::with_capacity(known.len() + 2);
    for character in known.chars() {
        if character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake == name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_strict() {
        let allowed = ["ttl", "ifVersion"];
        let parsed = Parameters::parse("ttl=60&if_version=%37", &allowed).expect("legal");
        assert_eq!(parsed.number::<u32>("ttl", Reason::InvalidTtl).expect("a number"), Some(60));
        assert_eq!(
            parsed.number::<u64>("ifVersion", Reason::InvalidVersion).expect("a number"),
            Some(7)
        );
        for (query, reason) in [
            ("ttl=1&ttl=2", Reason::InvalidRequest),
            ("expires=1", Reason::UnknownField),
            ("ttl=%zz", Reason::InvalidRequest),
        ] {
            assert_eq!(
                Parameters::parse(query, &allowed).err().map(|error| error.reason()),
                Some(reason),
                "{query}"
            );
        }
        let fraction = Parameters::parse("ttl=1.5", &allowed).expect("a text");
        assert!(fraction.number::<u32>("ttl", Reason::InvalidTtl).is_err());
    }

    #[test]
    fn entity_tags_match_weakly_and_in_lists() {
        let matches = |tags: &'static str| names(&HeaderValue::from_static(tags), "\"7\"");
        assert!(matches("\"7\"") && matches("W/\"7\"") && matches("\"6\", \"7\"") && matches("*"));
        assert!(!matches("\"6\"") && !matches("7"));
    }
}
