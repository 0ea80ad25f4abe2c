//! `/actuator`: health, build, and metrics of a node, in the shapes of Spring Boot 3, so that dashboards, probes and scripts
//! written for a Spring service read this one.
//!
//! | path | answer |
//! |---|---|
//! | `/actuator` | links to the rest |
//! | `/actuator/health`, `/actuator/health/{component...}` | all components, or one of them |
//! | `/actuator/health/liveness`, `/actuator/health/readiness` | one word for an orchestrator |
//! | `/actuator/info` | build, process, node and its limits |
//! | `/actuator/metrics`, `/actuator/metrics/{name}?tag=k:v` | names, or one metric summed over what matches |
//! | `/actuator/prometheus?includedNames=a,b` | everything for Prometheus |
//!
//! All of it is read only: GET and HEAD. Errors have Spring's body (`timestamp`, `status`, `error`, `message`, `path`), not that of
//! `/api`. A health that a load balancer should act on (DOWN, OUT_OF_SERVICE) is HTTP 503.
//!
//! Checks and scrapes may touch the disk. They run on threads that may block, few at a time: a disk that hangs makes the
//! probes hang that ask for it, and nothing else. Liveness touches nothing and always answers.

mod accept;
mod health;
mod info;
mod metrics;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;

pub use self::info::Info;
use self::metrics::Query;
use crate::telemetry::{Health, Metrics, Status};
use crate::util::time::{Clock, SystemClock};

const ROOT: &str = "/actuator";

/// What JSON answers may be declared as; the first unless the caller prefers another.
const JSON: [&str; 3] = [
    "application/vnd.spring-boot.actuator.v3+json",
    "application/vnd.spring-boot.actuator.v2+json",
    "application/json",
];

/// Answers that are worked on at a time; further ones wait. More than one, so that a slow scrape does not hold up a probe;
/// few, so that a disk that hangs does not take the threads away from the store.
const AT_A_TIME: usize = 4;

/// Everything under `/actuator`, for the HTTP port.
pub fn router(metrics: Arc<Metrics>, health: Arc<Health>, info: Info) -> Router {
    with_clock(metrics, health, info, Arc::new(SystemClock))
}

fn with_clock(
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    info: Info,
    clock: Arc<dyn Clock>,
) -> Router {
    let info = encode(&info.into_document());
    let gate = Arc::new(Semaphore::new(AT_A_TIME));
    let actuator = Arc::new(Actuator { metrics, health, info, clock, gate });
    let refusing = Arc::clone(&actuator);
    let methods = get(move |request: Request| answer(actuator, request))
        .fallback(move |request: Request| async move { refusing.refuse_method(&request) });
    Router::new()
        .route(ROOT, methods.clone())
        .route("/actuator/", methods.clone())
        .route("/actuator/{*path}", methods)
}

struct Actuator {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// The body of `/actuator/info`, which does not change while the process runs.
    info: Bytes,
    clock: Arc<dyn Clock>,
    gate: Arc<Semaphore>,
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Endpoint {
    Links,
    Health,
    Liveness,
    Readiness,
    /// One component, by names from the outside in.
    Component(Vec<String>),
    Info,
    MetricNames,
    Metric(String),
    Prometheus,
}

impl Endpoint {
    /// Takes `path` apart, as it came: a segment is decoded once, after it was cut out.
    fn parse(path: &str) -> Option<Self> {
        let rest = path.strip_prefix(ROOT)?;
        if rest.is_empty() {
            return Some(Self::Links);
        }
        let segments: Vec<Cow<'_, str>> = rest
            .strip_prefix('/')?
            .split('/')
            .map(|segment| percent_decode_str(segment).decode_utf8().ok())
            .collect::<Option<_>>()?;
        let segments: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
        match segments[..] {
            ["health"] => Some(Self::Health),
            ["health", "liveness"] => Some(Self::Liveness),
            ["health", "readiness"] => Some(Self::Readiness),
            ["health", ref names @ ..] => {
                Some(Self::Component(names.iter().map(|name| (*name).to_owned()).collect()))
            }
            ["info"] => Some(Self::Info),
            ["metrics"] => Some(Self::MetricNames),
            ["metrics", name] => Some(Self::Metric(name.to_owned())),
            ["prometheus"] => Some(Self::Prometheus),
            _ => None,
        }
    }
}

/// What an endpoint has to say, before it is known how it is declared.
enum Answer {
    Json(StatusCode, Bytes),
    /// A body with a media type of its own.
    Text(&'static str, String),
    /// The request cannot be answered; the sentence says why.
    Refused(StatusCode, String),
}

impl Answer {
    fn ok(value: &impl Serialize) -> Self {
        Self::Json(StatusCode::OK, encode(value))
    }

    fn health(status: Status, value: &impl Serialize) -> Self {
        let unavailable = status.is_unavailable();
        let code = if unavailable { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        Self::Json(code, encode(value))
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::Refused(StatusCode::NOT_FOUND, message.into())
    }
}

fn encode(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("maps with names as keys, and numbers that JSON has").into()
}

/// Answers GET and HEAD; axum drops the body of the latter.
async fn answer(actuator: Arc<Actuator>, request: Request) -> Response {
    let (Parts { uri, headers, .. }, _) = request.into_parts();
    let answer = match Endpoint::parse(uri.path()) {
        Some(endpoint) => actuator.answer(endpoint, &uri, &headers).await,
        None => Answer::not_found(UNKNOWN_PATH),
    };
    actuator.respond(answer, uri.path(), &headers)
}

const UNKNOWN_PATH: &str = "no such path; GET /actuator lists what there is";

impl Actuator {
    async fn answer(&self, endpoint: Endpoint, uri: &Uri, headers: &HeaderMap) -> Answer {
        match endpoint {
            Endpoint::Links => Answer::ok(&links(&base(uri, headers))),
            Endpoint::Liveness => health::state(self.health.liveness()),
            Endpoint::Info => Answer::Json(StatusCode::OK, self.info.clone()),
            Endpoint::Health => self.ask(|_, health| health::whole(health)).await,
            Endpoint::Readiness => self.ask(|_, health| health::state(health.readiness())).await,
            Endpoint::Component(names) => {
                self.ask(move |_, health| health::component(health, &names)).await
            }
            Endpoint::MetricNames => self.ask(|metrics, _| metrics::names(metrics)).await,
            Endpoint::Metric(name) => {
                let query = Query::parse(uri);
                self.ask(move |metrics, _| metrics::one(metrics, &name, &query)).await
            }
            Endpoint::Prometheus => {
                let query = Query::parse(uri);
                let media_type = accept::choose(headers, &metrics::TEXTS);
                self.ask(move |metrics, _| metrics::prometheus(metrics, &query, media_type)).await
            }
        }
    }

    /// Does what may have to wait for the disk or for locks of others on a thread that may block.
    async fn ask<F>(&self, question: F) -> Answer
    where
        F: FnOnce(&Metrics, &Health) -> Answer + Send + 'static,
    {
        let (metrics, health) = (Arc::clone(&self.metrics), Arc::clone(&self.health));
        let permit =
            Arc::clone(&self.gate).acquire_owned().await.expect("the gate is never closed");
        let work = move || {
            // It came along: a caller who leaves does not make room for one more that blocks.
            let _permit = permit;
            question(&metrics, &health)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a health check or a metric failed");
            let message = "a health check or a metric failed; the node's log tells more";
            Answer::Refused(StatusCode::INTERNAL_SERVER_ERROR, message.to_owned())
        })
    }

    fn respond(&self, answer: Answer, path: &str, headers: &HeaderMap) -> Response {
        let (status, media_type, body) = match answer {
            Answer::Json(status, body) => (status, accept::choose(headers, &JSON), body.into()),
            Answer::Text(media_type, text) => (StatusCode::OK, media_type, Body::from(text)),
            Answer::Refused(status, message) => {
                (status, "application/json", self.error(status, &message, path).into())
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        response
    }

    /// Answers what is neither GET nor HEAD; axum adds `Allow`.
    fn refuse_method(&self, request: &Request) -> Response {
        let path = request.uri().path();
        let refused = if Endpoint::parse(path).is_some() {
            let message = format!("{} is not supported here; this is read only", request.method());
            Answer::Refused(StatusCode::METHOD_NOT_ALLOWED, message)
        } else {
            Answer::not_found(UNKNOWN_PATH)
        };
        self.respond(refused, path, request.headers())
    }

    /// The body that Spring gives an error.
    fn error(&self, status: StatusCode, message: &str, path: &str) -> Bytes {
        let millis = i64::try_from(self.clock.now().as_millis()).unwrap_or(i64::MAX);
        let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
        encode(&json!({
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S%.3f+00:00").to_string(),
            "status": status.as_u16(),
            "error": status.canonical_reason().unwrap_or_default(),
            "message": message,
            "path": path,
        }))
    }
}

/// Where the caller found this server: `http://host:port`. Empty, which makes links relative, when it did not say.
fn base(uri: &Uri, headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = uri.authority().map(http::uri::Authority::as_str).or(host);
    authority.map_or_else(String::new, |authority| {
        format!("{}://{authority}", uri.scheme_str().unwrap_or("http"))
    })
}

#[derive(Serialize)]
struct Links {
    _links: serde_json::Map<String, serde_json::Value>,
}

fn links(base: &str) -> Links {
    const PATHS: [(&str, &str); 7] = [
        ("self", ""),
        ("health", "/health"),
        ("health-path", "/health/{*path}"),
        ("info", "/info"),
        ("metrics", "/metrics"),
        ("metrics-requiredMetricName", "/metrics/{requiredMetricName}"),
        ("prometheus", "/prometheus"),
    ];
    let link = |(name, path): (&str, &str)| {
        let href = format!("{base}{ROOT}{path}");
        (name.to_owned(), json!({"href": href, "templated": path.contains('{')}))
    };
    Links { _links: PATHS.into_iter().map(link).collect() }
}
