//! What a REST path asks for: the one place that takes paths apart.
//!
//! A key stands behind its prefix as it is or percent-encoded, slashes included: `a/b` and `a%2Fb` are the same key. It is
//! decoded once. Every path that reaches the router of the generated paths has its key in one segment.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::error::{Error, Reason, Result};
use crate::proto::v1::Consistency;

/// Under these the rest of the path is a key.
const TRANSCODED: [&str; 2] = ["/api/v1/kv", "/api/v1/keys"];

/// As are documents, which are not transcoded.
const DOCUMENTS: &str = "/api/v1/json";

/// Paths that take POST beside the methods of a key.
const POSTED: [&str; 2] = ["/api/v1/kv/batch", "/api/v1/kv/batch-get"];

/// Where a client learns which node leads each shard: outside of the paths below which everything is a key.
const RING: &str = "/api/v1/ring";

/// What the names of [`Consistency`] begin with in proto3 JSON.
const CONSISTENCY_PREFIX: &str = "CONSISTENCY_";

/// Methods of a path that is only read.
const READ_METHODS: &str = "GET, HEAD";

/// Methods of a path that names a key.
const KEY_METHODS: &str = "GET, HEAD, PUT, DELETE";

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// A path for the generated router, with the slashes of its key encoded.
    Transcoded(Cow<'a, str>),
    /// The document under this key.
    Document(String),
    /// Nothing that is served.
    Unknown,
}

impl<'a> Target<'a> {
    /// Takes `path`, as it came, apart.
    ///
    /// # Errors
    ///
    /// INVALID_KEY when the key is empty, malformed percent-encoding or not UTF-8.
    pub(super) fn parse(path: &'a str) -> Result<Self> {
        if path == RING {
            return Ok(Self::Transcoded(path.into()));
        }
        for prefix in TRANSCODED {
            if let Some(encoded) = below(path, prefix) {
                decode_key(encoded)?;
                if !encoded.contains('/') {
                    return Ok(Self::Transcoded(path.into()));
                }
                return Ok(Self::Transcoded(
                    format!("{prefix}/{}", encoded.replace('/', "%2F")).into(),
                ));
            }
        }
        match below(path, DOCUMENTS) {
            Some(encoded) => decode_key(encoded).map(|key| Self::Document(key.into_owned())),
            None => Ok(Self::Unknown),
        }
    }
}

/// The methods that a path which is served takes, for `Allow`.
pub(super) fn allowed_methods(path: &str) -> String {
    match path {
        RING => READ_METHODS.to_owned(),
        path if takes_post(path) => format!("{KEY_METHODS}, POST"),
        _ => KEY_METHODS.to_owned(),
    }
}

/// Whether the path takes POST, which paths of a key do not.
pub(super) fn takes_post(path: &str) -> bool {
    POSTED.contains(&path)
}

/// What stands behind `prefix` and its slash; nothing when the slash is missing too.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

fn decode_key(encoded: &str) -> Result<Cow<'_, str>> {
    if encoded.is_empty() {
        return Err(Error::new(
            Reason::InvalidKey,
            "the path ends where the key should stand; a key has at least 1 byte",
        ));
    }
    decode(encoded).ok_or_else(|| {
        let message = "the key in the path is not percent-encoded UTF-8; each % must be followed by two hexadecimal digits";
        Error::new(Reason::InvalidKey, message)
    })
}

/// Percent-decodes `text`; `None` when that is malformed or not UTF-8.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    let malformed = text.split('%').skip(1).any(|escape| {
        let digits = escape.as_bytes().get(..2);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if malformed {
        return None;
    }
    percent_decode_str(text).decode_utf8().ok()
}

/// The query with `consistency=STALE` and its like written out as proto3 JSON names them: `CONSISTENCY_STALE`.
pub(super) fn full_consistency(query: &str) -> Cow<'_, str> {
    const NAME: &str = "consistency=";
    let is_short = |pair: &str| {
        pair.strip_prefix(NAME).is_some_and(|word| {
            Consistency::from_str_name(&format!("{CONSISTENCY_PREFIX}{word}")).is_some()
        })
    };
    if !query.split('&').any(is_short) {
        return query.into();
    }
    let pairs = query.split('&').map(|pair| match pair.strip_prefix(NAME) {
        Some(word) if is_short(pair) => format!("{NAME}{CONSISTENCY_PREFIX}{word}"),
        _ => pair.to_owned(),
    });
    pairs.collect::<Vec<_>>().join("&").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcoded(path: &str) -> Option<String> {
        match Target::parse(path) {
            Ok(Target::Transcoded(path)) => Some(path.into_owned()),
            _ => None,
        }
    }

    #[test]
    fn slashes_of_a_key_become_one_segment() {
        assert_eq!(transcoded("/api/v1/ring").as_deref(), Some("/api/v1/ring"));
        assert_eq!(transcoded("/api/v1/kv/a").as_deref(), Some("/api/v1/kv/a"));
        assert_eq!(transcoded("/api/v1/kv/a/b%2Fc").as_deref(), Some("/api/v1/kv/a%2Fb%2Fc"));
        assert_eq!(transcoded("/api/v1/keys//a/").as_deref(), Some("/api/v1/keys/%2Fa%2F"));
    }

    #[test]
    fn documents_are_decoded_once() {
        let target = Target::parse("/api/v1/json/a%252Fb/c+d").expect("legal");
        assert_eq!(target, Target::Document("a%2Fb/c+d".to_owned()));
    }

    #[test]
    fn a_key_that_is_empty_or_malformed_is_refused() {
        for path in [
            "/api/v1/kv",
            "/api/v1/kv/",
            "/api/v1/keys/",
            "/api/v1/json",
            "/api/v1/json/",
            "/api/v1/kv/%",
            "/api/v1/kv/%z0",
            "/api/v1/kv/a%f",
            "/api/v1/kv/%ff",
            "/api/v1/json/%c3",
        ] {
            let error = Target::parse(path).expect_err(path);
            assert_eq!(error.reason(), Reason::InvalidKey, "{path}");
        }
    }

    #[test]
    fn a_consistency_may_be_written_short() {
        assert_eq!(
            full_consistency("limit=1&consistency=STALE"),
            "limit=1&consistency=CONSISTENCY_STALE"
        );
        for as_it_is in ["", "consistency=CONSISTENCY_STALE", "consistency=stale", "a=STALE"] {
            assert_eq!(full_consistency(as_it_is), as_it_is);
        }
    }

    #[test]
    fn other_paths_are_nobodys() {
        for path in ["/", "/api/v1/ring/", "/api/v1/kvs", "/api/v1/keysx/a", "/api/v2/kv/a"] {
            assert_eq!(Target::parse(path).expect("legal"), Target::Unknown, "{path}");
        }
    }
}
