//! Every unary operation, once: validate, route, answer.
//!
//! Writes are proposed before the first `await`, so that callers who start several in a row keep their order.

use std::collections::HashMap;
use std::future::Future;

use tokio::time::Instant;

use super::{Api, call::Call, validate};
use crate::error::{Error, Reason, Result};
use crate::proto::v1::{
    self, BatchGetRequest, BatchGetResponse, BatchPutRequest, BatchPutResponse, DeleteRequest,
    DeleteResponse, GetRequest, GetResponse, GetRingResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, StatsResponse, get_response, item, put_request,
};
use crate::router::{Figures, Freshness, Item, Put, Query};
use crate::shard::Document;
use crate::storage::Direction;
use crate::telemetry::{self, Op};
use crate::types::{Key, Value, Version};

impl Api {
    /// Measures what `work` comes to.
    pub(super) async fn observed<T>(
        &self,
        op: Op,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let started = std::time::Instant::now();
        let result = match self.check_serving() {
            Ok(()) => work.await,
            Err(error) => Err(error),
        };
        self.record(op, started, result.as_ref().err());
        result
    }

    pub(super) fn record(&self, op: Op, started: std::time::Instant, error: Option<&Error>) {
        // An expected "no" is an answer, not a failure of the service.
        let failed = error.filter(|error| {
            !matches!(error.reason(), Reason::KeyNotFound | Reason::VersionMismatch)
        });
        let outcome =
            if failed.is_none() { telemetry::Outcome::Ok } else { telemetry::Outcome::Error };
        self.0.metrics.operation(op).record(outcome, started.elapsed());
        if let Some(error) = failed {
            self.0.metrics.rejected(error.reason().as_str());
        }
    }

    /// Stores one value.
    pub(super) fn put(
        &self,
        request: PutRequest,
        call: Call,
    ) -> impl Future<Output = Result<PutResponse>> + use<> {
        let proposed =
            self.checked_put(request).and_then(|put| self.0.router.put(put, call.deadline));
        let api = self.clone();
        async move {
            api.observed(Op::Put, async { Ok(PutResponse { version: proposed?.await?.0 }) }).await
        }
    }

    fn checked_put(&self, request: PutRequest) -> Result<Put> {
        self.check_serving()?;
        let limits = &self.0.limits;
        let PutRequest { key, ttl, if_version, request_id, content } = request;
        let key = validate::key(key, limits)?;
        let value = match content {
            Some(put_request::Content::Value(text)) => validate::json(text, limits)?,
            Some(put_request::Content::Raw(bytes)) => validate::raw(bytes, limits)?,
            None => {
                let message = "no value was given; set value (JSON text in a string) or raw (bytes, base64 in REST)";
                return Err(Error::new(Reason::InvalidValue, message));
            }
        };
        Ok(Put {
            key,
            value,
            ttl: validate::ttl(ttl)?,
            if_version: if_version.map(Version),
            request_id: validate::request_id(request_id.as_deref())?,
        })
    }

    /// Removes one key.
    pub(super) fn delete(
        &self,
        request: DeleteRequest,
        call: Call,
    ) -> impl Future<Output = Result<DeleteResponse>> + use<> {
        let proposed = self.check_serving().and_then(|()| {
            let DeleteRequest { key, if_version, request_id } = request;
            let key = validate::key(key, &self.0.limits)?;
            let request_id = validate::request_id(request_id.as_deref())?;
            self.0.router.delete(key, if_version.map(Version), request_id, call.deadline)
        });
        let api = self.clone();
        async move {
            api.observed(Op::Delete, async { Ok(DeleteResponse { deleted: proposed?.await? }) })
                .await
        }
    }

    /// Stores many JSON values.
    pub(super) fn batch_put(
        &self,
        request: BatchPutRequest,
        call: Call,
    ) -> impl Future<Output = Result<BatchPutResponse>> + use<> {
        let BatchPutRequest { entries, ttl, request_id } = request;
        let proposed = self.check_serving().and_then(|()| {
            let entries = self.checked_entries(entries)?;
            let ttl = validate::ttl(ttl)?;
            let request_id = validate::request_id(request_id.as_deref())?;
            self.0.router.batch_put(entries, ttl, request_id, call.deadline)
        });
        let api = self.clone();
        async move {
            api.observed(Op::BatchPut, async { Ok(BatchPutResponse { count: proposed?.await? }) })
                .await
        }
    }

    fn checked_entries(&self, entries: HashMap<String, String>) -> Result<Vec<(Key, Value)>> {
        let limits = &self.0.limits;
        let bytes = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
        validate::batch_size(entries.len(), bytes, limits)?;
        let checked = entries.into_iter().map(|(key, value)| {
            let value =
                validate::json(value, limits).map_err(|error| validate::in_entry(error, &key))?;
            let shown = key.clone();
            let key =
                validate::key(key, limits).map_err(|error| validate::in_entry(error, &shown))?;
            Ok((key, value))
        });
        checked.collect()
    }

    /// Reads one key.
    pub(super) async fn get(&self, request: GetRequest, call: Call) -> Result<GetResponse> {
        let started = std::time::Instant::now();
        let result = match self.get_now(request) {
            Ok(GetNow::Done(response)) => Ok(response),
            Ok(GetNow::Wait(key, freshness)) => self.get_fresh(key, freshness, call.deadline).await,
            Err(error) => Err(error),
        };
        self.record(Op::Get, started, result.as_ref().err());
        result
    }

    /// Reads one key as far as that goes without waiting.
    pub(super) fn get_now(&self, request: GetRequest) -> Result<GetNow> {
        self.check_serving()?;
        let key = validate::key(request.key, &self.0.limits)?;
        let freshness = validate::freshness(request.consistency, &self.0.limits)?;
        match self.0.router.get_now(key.as_bytes(), freshness)? {
            None => Ok(GetNow::Wait(key, freshness)),
            Some(document) => found(key, document).map(GetNow::Done),
        }
    }

    /// Reads one key, waiting for what that takes.
    pub(super) async fn get_fresh(
        &self,
        key: Key,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<GetResponse> {
        let document = self.0.router.get(key.as_bytes(), freshness, deadline).await?;
        found(key, document)
    }

    /// Reads many keys.
    pub(super) async fn batch_get(
        &self,
        request: BatchGetRequest,
        call: Call,
    ) -> Result<BatchGetResponse> {
        self.observed(Op::BatchGet, async {
            let limits = &self.0.limits;
            let bytes = request.keys.iter().map(String::len).sum();
            validate::batch_size(request.keys.len(), bytes, limits)?;
            let freshness = validate::freshness(request.consistency, &self.0.limits)?;
            let keys = request.keys.into_iter().map(|key| validate::key(key, limits));
            let keys = keys.collect::<Result<Vec<_>>>()?;
            let items =
                self.0.router.batch_get(keys, limits.page_bytes, freshness, call.deadline).await?;
            Ok(BatchGetResponse { items: items.into_iter().map(v1::Item::from).collect() })
        })
        .await
    }

    /// Reads one page of a range.
    pub(super) async fn range(&self, request: RangeRequest, call: Call) -> Result<RangeResponse> {
        self.observed(Op::Range, async {
            let RangeRequest {
                start_key,
                end_key,
                prefix,
                limit,
                reverse,
                keys_only,
                page_token,
                consistency,
            } = request;
            let query = self.query(&start_key, &end_key, prefix.as_deref(), reverse, keys_only)?;
            let limits = validate::page_limits(limit, &self.0.limits)?;
            let freshness = validate::freshness(consistency, &self.0.limits)?;
            let begun = if page_token.is_empty() {
                query.clone()
            } else {
                query.clone().resume(&page_token)?
            };
            let page = self.0.router.page(begun, limits, freshness, call.deadline).await?;
            let last = page.items.last().filter(|_| page.more);
            let next_page_token =
                last.map(|item| query.token(item.key.as_bytes())).unwrap_or_default();
            Ok(RangeResponse {
                items: page.items.into_iter().map(v1::Item::from).collect(),
                next_page_token,
            })
        })
        .await
    }

    /// The query that a range or a scan asks for.
    pub(super) fn query(
        &self,
        start: &str,
        end: &str,
        prefix: Option<&str>,
        reverse: bool,
        keys_only: bool,
    ) -> Result<Query> {
        let prefix = prefix.unwrap_or_default();
        for (text, name) in [(start, "start_key"), (end, "end_key"), (prefix, "prefix")] {
            validate::bound(text, name, &self.0.limits)?;
        }
        let direction = if reverse { Direction::Reverse } else { Direction::Forward };
        Query::new(start, end, prefix, direction, keys_only)
    }

    /// Which node leads each shard, as far as this one knows.
    pub(super) fn ring(&self) -> Result<GetRingResponse> {
        self.check_serving()?;
        Ok(GetRingResponse::clone(&self.0.cluster.ring()))
    }

    /// Counts what is stored and what was done.
    pub(super) async fn stats(&self) -> Result<StatsResponse> {
        let figures = self.0.router.figures().await?;
        let api = self.clone();
        let collected = tokio::task::spawn_blocking(move || api.collect_stats(figures)).await;
        collected.map_err(|error| Error::new(Reason::Internal, error.to_string()))
    }

    #[expect(clippy::cast_precision_loss, reason = "figures are exact to 2^53, as the API says")]
    fn collect_stats(&self, figures: Vec<Figures>) -> StatsResponse {
        let environment = self.0.node.environment.status();
        let shards: Vec<_> = figures.into_iter().map(v1::ShardStats::from).collect();
        let operations = self.0.metrics.operations();
        StatsResponse {
            keys: shards.iter().map(|shard| shard.keys).sum(),
            bytes: shards.iter().map(|shard| shard.bytes).sum(),
            disk_bytes: environment.disk_bytes as f64,
            memory_bytes: environment.memory_bytes as f64,
            operations: operations.map(|(op, count)| (op.to_owned(), count as f64)).collect(),
            shards,
            node: self.0.node.id.clone(),
            uptime_seconds: self.uptime().as_secs_f64(),
        }
    }
}

/// A read that may have to wait.
pub(super) enum GetNow {
    /// The answer.
    Done(GetResponse),
    /// A quorum has to be asked, or it saw a write that is not durable yet.
    Wait(Key, Freshness),
}

fn found(key: Key, document: Option<Document>) -> Result<GetResponse> {
    let Some(Document { value, version, ttl_seconds }) = document else {
        return Err(Error::new(Reason::KeyNotFound, "the key does not exist"));
    };
    let content = match value {
        Value::Json(text) => get_response::Content::Value(json_text(text)?),
        Value::Raw(bytes) => get_response::Content::Raw(bytes),
    };
    Ok(GetResponse {
        key: key.into_string(),
        version: version.0,
        ttl: ttl_seconds,
        content: Some(content),
    })
}

/// Stored JSON text as text. It was checked when it was stored, and every byte on disk is under a checksum.
pub(super) fn json_text(text: bytes::Bytes) -> Result<String> {
    String::from_utf8(text.into())
        .map_err(|_| Error::new(Reason::Corruption, "stored JSON text is not UTF-8"))
}

impl From<Item> for v1::Item {
    fn from(item: Item) -> Self {
        let content = item.value.map(|value| match value {
            Value::Json(text) => item::Content::Value(String::from_utf8_lossy(&text).into_owned()),
            Value::Raw(bytes) => item::Content::Raw(bytes),
        });
        Self {
            key: item.key.into_string(),
            version: item.version.0,
            ttl: item.ttl_seconds,
            content,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures are exact to 2^53, as the API says")]
impl From<Figures> for v1::ShardStats {
    fn from(figures: Figures) -> Self {
        Self {
            shard: figures.shard.0,
            keys: figures.keys as f64,
            bytes: figures.bytes as f64,
            version: figures.last_version.0 as f64,
            writes: figures.writes as f64,
            reads: figures.reads as f64,
        }
    }
}
