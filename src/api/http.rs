//! The HTTP port: REST, gRPC-Web, gRPC, the actuator and the OpenAPI document, one router.

use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse as _;
use axum::routing::get;
use http::{HeaderName, HeaderValue, Method, header};
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::Api;
use super::epoch::EPOCH_HEADER;
use super::rest::Rest;
use crate::proto::OPENAPI;

/// How long a browser may keep the answer to a preflight.
const PREFLIGHT_KEPT: Duration = Duration::from_hours(1);

/// Everything that the HTTP port serves. Browsers may call from `origins`; `*` is every page.
pub fn http_router(api: &Api, grpc: Routes, actuator: Router, origins: &[String]) -> Router {
    // The gRPC-Web layer comes before the fallback: it answers plain HTTP/1.1 requests, too, which are REST's.
    let rest = Rest::new(api.clone());
    grpc.into_axum_router()
        .layer(GrpcWebLayer::new())
        .merge(actuator)
        .route("/openapi.json", get(openapi))
        .fallback(move |request| Rest::serve(rest, request))
        .layer(cors(origins))
}

async fn openapi() -> axum::response::Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

fn cors(origins: &[String]) -> CorsLayer {
    let origins = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        // The configuration has checked them.
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE])
        .allow_headers([
            header::CONTENT_TYPE,
            header::CONTENT_ENCODING,
            header::AUTHORIZATION,
            header::IF_NONE_MATCH,
            name("x-grpc-web"),
            name("x-user-agent"),
            name("grpc-timeout"),
            name("connect-protocol-version"),
            EPOCH_HEADER,
        ])
        .expose_headers([
            name("grpc-status"),
            name("grpc-message"),
            name("grpc-status-details-bin"),
            header::ETAG,
            header::RETRY_AFTER,
            EPOCH_HEADER,
        ])
        .max_age(PREFLIGHT_KEPT)
}
