//! Answers other nodes' questions from the shards that are here. It never asks further, so that a question goes one hop.
//!
//! Bounded: answers that are being made, or wait to be, hold at most [`ANSWERS_BYTES_MAX`] by what their questions allow them; a question waits for its part of that until its time is
//! up.
//!
//! Callers: `raft/node`, with what arrives.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::Router;
use super::gather::ANSWER_BYTES_MAX;
use super::remote::{Answer, Question, What, encode_answer};
use crate::cluster::NodeName;
use crate::error::{Error, Reason, Result};
use crate::raft::Answers;

/// Most bytes of answers at a time.
const ANSWERS_BYTES_MAX: usize = 256 << 20;

/// What a document counts for, of which nobody knows how large it is.
const DOCUMENT_BYTES: usize = 64 << 10;

/// What figures of a shard count for.
const FIGURES_BYTES: usize = 4 << 10;

/// When to come back after there was no room.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Longest time that an answer is worked on, whatever was asked for.
const ANSWER_WITHIN_MAX: Duration = Duration::from_mins(1);

/// See the [module](self).
pub struct Answerer(Arc<Inner>);

struct Inner {
    router: Router,
    kibibytes: Semaphore,
}

impl Answerer {
    /// Answers from the shards of `router` that are here.
    pub fn new(router: Router) -> Self {
        Self(Arc::new(Inner { router, kibibytes: Semaphore::new(ANSWERS_BYTES_MAX / 1024) }))
    }
}

impl Answers for Answerer {
    fn answer(&self, _: &NodeName, question: Bytes) -> BoxFuture<'static, Bytes> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let answer = encode_answer(&inner.answer(&question).await);
            if answer.len() <= ANSWER_BYTES_MAX {
                return answer;
            }
            let what = "an answer from another node";
            let limit = "what nodes send each other";
            encode_answer(&Err(Error::limit(limit, what, ANSWER_BYTES_MAX, answer.len(), "bytes")))
        })
    }
}

impl Inner {
    async fn answer(&self, question: &[u8]) -> Result<Answer> {
        let Some(question) = Question::decode(question) else {
            let message = "a question of a version that this node does not read";
            return Err(Error::new(Reason::NotServing, message));
        };
        let Question { what, shards, freshness, left } = question;
        let deadline = Instant::now() + left.min(ANSWER_WITHIN_MAX);
        let kibibytes = size_bytes(&what, shards.len()).min(ANSWERS_BYTES_MAX).div_ceil(1024);
        let room = self.kibibytes.acquire_many(u32::try_from(kibibytes).unwrap_or(u32::MAX));
        let _room = timeout_at(deadline, room).await.map_err(|_| {
            let message = format!(
                "{ANSWERS_BYTES_MAX} bytes of answers to other nodes are on their way already"
            );
            Error::overloaded(message, RETRY_AFTER)
        })?;
        self.router.read_here(&Arc::new(what), &shards, freshness, deadline).await
    }
}

/// Most bytes that the answer may have, or about as many as it will.
fn size_bytes(what: &What, shards: usize) -> usize {
    match what {
        What::Documents(wanted) => {
            wanted.bytes_max.min(wanted.keys.len().saturating_mul(DOCUMENT_BYTES))
        }
        What::Page { limits, .. } => limits.bytes,
        What::Figures => shards.saturating_mul(FIGURES_BYTES),
    }
    .min(ANSWER_BYTES_MAX)
}
