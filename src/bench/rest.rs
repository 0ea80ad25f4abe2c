//! One HTTP/1.1 call with JSON for each operation, one at a time on each connection, as most programs speak to REST.

use std::borrow::Cow;
use std::cell::RefCell;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Deserialize;

use super::Error;
use super::lanes::Caller;
use super::tally::Failure;
use super::wire::{Ask, KEY_PREFIX, Messages, Wrong, check_count};
use crate::net::{self, Endpoint};

/// A pool of connections.
pub(super) struct Rest<'a> {
    messages: &'a Messages,
    /// Those that no call uses.
    idle: RefCell<Vec<Pooled>>,
}

struct Pooled {
    endpoint: Endpoint,
    host: HeaderValue,
    sender: SendRequest<Full<Bytes>>,
}

/// What a read answers; other members are passed over.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(borrow)]
    version: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    items: Vec<Item<'a>>,
}

#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    version: Cow<'a, str>,
}

/// What a refusal answers.
#[derive(Deserialize)]
struct Refusal {
    message: String,
}

async fn open(endpoint: &Endpoint) -> std::io::Result<SendRequest<Full<Bytes>>> {
    let stream = net::connect(endpoint).await?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    // Its error is told to the call that it breaks.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

impl<'a> Rest<'a> {
    /// A connection to each of `endpoints`, which may repeat.
    pub(super) async fn new(endpoints: &[Endpoint], messages: &'a Messages) -> Result<Self, Error> {
        let mut idle = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let failed = |error: &dyn std::fmt::Display| {
                Error::Server(format!("cannot connect to {}: {error}", endpoint.url()))
            };
            let sender = open(endpoint).await.map_err(|error| failed(&error))?;
            let host =
                HeaderValue::try_from(endpoint.to_string()).map_err(|error| failed(&error))?;
            idle.push(Pooled { endpoint: endpoint.clone(), host, sender });
        }
        Ok(Self { messages, idle: RefCell::new(idle) })
    }

    fn request(&self, ask: &Ask, host: &HeaderValue) -> Request<Full<Bytes>> {
        let mut path = BytesMut::with_capacity(128);
        let (method, body) = match *ask {
            Ask::Get { key } => {
                path.extend_from_slice(b"/api/v1/kv/");
                self.messages.write_key(key, &mut path);
                (Method::GET, Bytes::new())
            }
            Ask::Put { key, revision, if_version } => {
                path.extend_from_slice(b"/api/v1/kv/");
                self.messages.write_key(key, &mut path);
                (Method::PUT, self.put_body(key, revision, if_version))
            }
            Ask::Range { first, limit, .. } => {
                path.extend_from_slice(b"/api/v1/kv/range?startKey=");
                self.messages.write_key(first, &mut path);
                path.extend_from_slice(format!("&prefix={KEY_PREFIX}&limit={limit}").as_bytes());
                (Method::GET, Bytes::new())
            }
        };
        let mut request = Request::new(Full::new(body));
        if method == Method::PUT {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, json);
        }
        *request.method_mut() = method;
        *request.uri_mut() = http::Uri::from_maybe_shared(path.freeze()).expect("ASCII letters");
        request.headers_mut().insert(HOST, host.clone());
        request
    }

    /// `{"value": "..."}`; the value itself is a JSON string, so its quotes are escaped.
    fn put_body(&self, key: u64, revision: u64, if_version: Option<u64>) -> Bytes {
        let mut value = BytesMut::new();
        self.messages.write_value(key, revision, &mut value);
        let mut body = BytesMut::with_capacity(value.len() + 64);
        body.extend_from_slice(b"{\"value\":\"");
        for &byte in &value {
            if byte == b'"' {
                body.extend_from_slice(b"\\");
            }
            body.extend_from_slice(&[byte]);
        }
        body.extend_from_slice(b"\"");
        if let Some(version) = if_version {
            body.extend_from_slice(format!(",\"ifVersion\":\"{version}\"").as_bytes());
        }
        body.extend_from_slice(b"}");
        body.freeze()
    }

    fn check(&self, ask: &Ask, body: &[u8]) -> Result<u64, Wrong> {
        match *ask {
            Ask::Get { key } => {
                let item: Item<'_> = parse(body)?;
                self.messages.check_text(key, &item.key, &item.value)?;
                version(&item.version)
            }
            Ask::Put { .. } => version(&parse::<Written<'_>>(body)?.version),
            Ask::Range { first, limit, least } => {
                let page: Page<'_> = parse(body)?;
                if let Some(item) = page.items.first() {
                    self.messages.check_text(first, &item.key, &item.value)?;
                }
                let count = u32::try_from(page.items.len()).unwrap_or(u32::MAX);
                check_count(count, limit, least)
            }
        }
    }

    async fn exchange(&self, pooled: &mut Pooled, ask: &Ask) -> Result<u64, Failure> {
        let broken = |error: &dyn std::fmt::Display| Failure::Transport(error.to_string());
        // A server may close a connection between two calls; that breaks none.
        if pooled.sender.is_closed() {
            pooled.sender = open(&pooled.endpoint).await.map_err(|error| broken(&error))?;
        }
        pooled.sender.ready().await.map_err(|error| broken(&error))?;
        let request = self.request(ask, &pooled.host);
        let response = pooled.sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| broken(&error))?.to_bytes();
        if status != http::StatusCode::OK {
            let refusal = serde_json::from_slice::<Refusal>(&body).map(|refusal| refusal.message);
            return Err(Failure::Http(status.as_u16(), refusal.unwrap_or_default()));
        }
        Ok(self.check(ask, &body)?)
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Wrong> {
    serde_json::from_slice(body).map_err(|_| Wrong("the answer is not the JSON of the API"))
}

fn version(text: &str) -> Result<u64, Wrong> {
    text.parse().ok().filter(|&version| version > 0).ok_or(Wrong("the answer has no version"))
}

impl Caller for Rest<'_> {
    async fn call(&self, ask: Ask) -> Result<u64, Failure> {
        let idle = self.idle.borrow_mut().pop();
        let mut pooled = idle.expect("a lane has as many connections as calls in flight");
        let outcome = self.exchange(&mut pooled, &ask).await;
        self.idle.borrow_mut().push(pooled);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(messages: &Messages) -> Rest<'_> {
        Rest { messages, idle: RefCell::new(Vec::new()) }
    }

    #[test]
    fn requests_are_paths_and_json_of_the_api() {
        let messages = Messages::new(16, 100);
        let rest = rest(&messages);
        let host = HeaderValue::from_static("h:1");
        let get = rest.request(&Ask::Get { key: 7 }, &host);
        assert_eq!((get.method(), get.uri().path()), (&Method::GET, "/api/v1/kv/bench00000000007"));
        let range = rest.request(&Ask::Range { first: 7, limit: 9, least: 1 }, &host);
        let query = "startKey=bench00000000007&prefix=bench&limit=9";
        assert_eq!(range.uri().query(), Some(query));
        let body = rest.put_body(7, 1, Some(3));
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let value = body["value"].as_str().expect("a string");
        assert_eq!((value.len(), body["ifVersion"].as_str()), (100, Some("3")));
        serde_json::from_str::<String>(value).expect("JSON inside of JSON");
    }

    #[test]
    fn answers_are_checked() {
        let messages = Messages::new(16, 100);
        let rest = rest(&messages);
        let mut value = BytesMut::new();
        messages.write_value(7, 0, &mut value);
        let value = String::from_utf8(value.to_vec()).expect("text");
        let item = |key: &str| serde_json::json!({"key": key, "value": value, "version": "5"});
        let check = |ask: Ask, body: serde_json::Value| {
            rest.check(&ask, body.to_string().as_bytes()).map_err(|wrong| wrong.0)
        };
        let get = Ask::Get { key: 7 };
        assert_eq!(check(get, item("bench00000000007")), Ok(5));
        assert!(check(get, item("bench00000000008")).is_err());
        assert!(check(get, serde_json::json!({})).is_err());
        let put = Ask::Put { key: 7, revision: 0, if_version: None };
        assert_eq!(check(put, serde_json::json!({"version": "6"})), Ok(6));
        assert!(check(put, serde_json::json!({"version": "0"})).is_err());
        let range = Ask::Range { first: 7, limit: 2, least: 1 };
        let page = |count: usize| serde_json::json!({"items": vec![item("bench00000000007"); count], "nextPageToken": ""});
        assert!(check(range, page(1)).is_ok() && check(range, page(2)).is_ok());
        assert!(check(range, page(0)).is_err() && check(range, page(3)).is_err());
    }
}
