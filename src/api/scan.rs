//! Scan as a stream: reads a page when the caller has taken the one before, so that memory does not grow with the range and a
//! caller that stops reading stops the scan.

use std::collections::VecDeque;

use futures::Stream;
use futures::stream;
use tokio::time::{Duration, Instant};

use super::call::Call;
use super::{Api, validate};
use crate::error::{Error, Reason, Result};
use crate::proto::v1::{ScanRequest, ScanResponse, item, scan_response};
use crate::router::{Freshness, Item, PageLimits, Query};
use crate::telemetry::Op;

/// What one step reads: enough to make a step cheap for each item, little enough to hold for thousands of slow readers.
const STEP: PageLimits = PageLimits { items: 1_000, bytes: 256 << 10 };

/// How long one step may wait for durability when the call has no deadline.
const STEP_DEADLINE: Duration = Duration::from_secs(30);

struct State {
    api: Api,
    /// `None`: everything was read.
    query: Option<Query>,
    freshness: Freshness,
    deadline: Option<Instant>,
    /// Items still to give out before the caller's limit.
    left: u64,
    ready: VecDeque<Item>,
}

impl Api {
    /// Begins a scan. What is wrong with the request shows before the first item.
    ///
    /// The stream ends with an error when the range cannot be read on, the deadline passes or the node stops.
    pub(super) fn scan(
        &self,
        request: ScanRequest,
        call: Call,
    ) -> Result<impl Stream<Item = Result<ScanResponse>> + Send + use<>> {
        let started = std::time::Instant::now();
        let state = self.begin_scan(&request, call);
        self.record(Op::Scan, started, state.as_ref().err());
        Ok(stream::unfold(Some(state?), |state| async {
            let mut state = state?;
            match state.next().await {
                Ok(Some(item)) => Some((Ok(item), Some(state))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    fn begin_scan(&self, request: &ScanRequest, call: Call) -> Result<State> {
        self.check_serving()?;
        let ScanRequest { start_key, end_key, prefix, limit, reverse, keys_only, consistency } =
            request;
        let query = self.query(start_key, end_key, prefix.as_deref(), *reverse, *keys_only)?;
        if *limit == Some(0) {
            let message = "limit is 0; it must be at least 1, and absent for no limit";
            return Err(Error::new(Reason::InvalidLimit, message));
        }
        Ok(State {
            api: self.clone(),
            query: Some(query),
            freshness: validate::freshness(*consistency, &self.0.limits)?,
            deadline: call.asked.then_some(call.deadline),
            left: limit.unwrap_or(u64::MAX),
            ready: VecDeque::new(),
        })
    }
}

impl State {
    async fn next(&mut self) -> Result<Option<ScanResponse>> {
        if self.ready.is_empty() {
            self.read().await?;
        }
        Ok(self.ready.pop_front().map(ScanResponse::from))
    }

    async fn read(&mut self) -> Result<()> {
        let Some(query) = self.query.take().filter(|_| self.left > 0) else { return Ok(()) };
        if self.api.0.stopping.is_cancelled() {
            return Err(Error::new(
                Reason::NotServing,
                "the node is stopping; continue the scan at another one",
            ));
        }
        let deadline = self.deadline.unwrap_or_else(|| Instant::now() + STEP_DEADLINE);
        if Instant::now() >= deadline {
            return Err(Error::new(
                Reason::DeadlineExceeded,
                "the deadline passed before the scan ended",
            ));
        }
        let items = usize::try_from(self.left).unwrap_or(usize::MAX).min(STEP.items);
        let limits = PageLimits { items, ..STEP };
        let page = self.api.0.router.page(query.clone(), limits, self.freshness, deadline).await?;
        self.left -= page.items.len() as u64;
        if let Some(last) = page.items.last().filter(|_| page.more) {
            self.query = Some(query.after(last.key.as_bytes()));
        }
        self.ready = page.items.into();
        Ok(())
    }
}

impl From<Item> for ScanResponse {
    fn from(item: Item) -> Self {
        let crate::proto::v1::Item { key, version, ttl, content } = item.into();
        let content = content.map(|content| match content {
            item::Content::Value(text) => scan_response::Content::Value(text),
            item::Content::Raw(bytes) => scan_response::Content::Raw(bytes),
        });
        Self { key, version, ttl, content }
    }
}
