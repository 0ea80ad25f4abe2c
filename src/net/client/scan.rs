//! A range as one stream over as many connections as it takes.
//!
//! A stream ends early when its node stops or its connection grows too old. It is then opened again, at any endpoint, from the
//! last key that came: keys are in order, so that none is skipped or repeated.

use tokio::time::{sleep, timeout};
use tonic::Streaming;

use super::call::{Calling, Waits};
use super::{Client, Failure, kv};
use crate::proto::v1::{ScanRequest, ScanResponse};

/// An open scan.
pub struct Scan<'a> {
    client: &'a Client,
    request: ScanRequest,
    stream: Option<Streaming<ScanResponse>>,
    /// The last key that came.
    last: Option<String>,
    waits: Waits,
}

impl<'a> Scan<'a> {
    pub(super) fn new(client: &'a Client, request: ScanRequest) -> Self {
        Self { client, request, stream: None, last: None, waits: Waits::default() }
    }

    /// The next item; `None` at the end of the range. The client's timeout bounds the wait for it.
    pub async fn next(&mut self) -> Result<Option<ScanResponse>, Failure> {
        loop {
            if self.request.limit == Some(0) && self.last.is_some() {
                return Ok(None);
            }
            match self.step().await {
                Ok(Some(item)) if self.last.as_ref() == Some(&item.key) => {}
                Ok(Some(item)) => {
                    self.waits = Waits::default();
                    self.last = Some(item.key.clone());
                    self.request.limit = self.request.limit.map(|limit| limit.saturating_sub(1));
                    return Ok(Some(item));
                }
                Ok(None) => return Ok(None),
                Err(failure) => {
                    self.stream = None;
                    let wait = self.waits.next(&failure).filter(|_| failure.is_passing());
                    let Some(wait) = wait else { return Err(failure) };
                    sleep(wait).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<ScanResponse>, Failure> {
        let client = self.client;
        if self.stream.is_none() {
            let calling = Calling::stream(client.timeout);
            let request = self.rest();
            let opened = client.call(calling, &request, |channel, request| async move {
                kv(channel).scan(request).await
            });
            self.stream = Some(opened.await?);
        }
        let stream = self.stream.as_mut().expect("it was opened above");
        let endpoint = client.endpoint();
        match timeout(client.timeout, stream.message()).await {
            Ok(Ok(item)) => Ok(item),
            Ok(Err(status)) => {
                let failure = Failure::of_status(&status, endpoint);
                if failure.is_passing() {
                    client.move_on().await;
                }
                Err(failure)
            }
            Err(_) => Err(Failure::late(endpoint, client.timeout, false)),
        }
    }

    /// The request for what has not come yet.
    fn rest(&self) -> ScanRequest {
        let mut rest = self.request.clone();
        let Some(last) = &self.last else { return rest };
        if rest.reverse {
            rest.end_key.clone_from(last);
        } else {
            // The key itself comes again and is skipped: the next one above it may be too long for a bound.
            rest.start_key.clone_from(last);
            rest.limit = rest.limit.map(|limit| limit.saturating_add(1));
        }
        rest
    }
}
