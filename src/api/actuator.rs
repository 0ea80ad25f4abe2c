//! placeholder
use std::sync::Arc;
use crate::telemetry::{Health, Metrics};
/// Info.
pub struct Info { /// n
 pub node: String, /// e
 pub engine: String }
/// Router.
pub fn router(_m: Arc<Metrics>, _h: Arc<Health>, _i: Info) -> axum::Router { axum::Router::new() }
