//! Batches of values: each shard's part is one command, applied whole or not at all; the batch as a whole is not atomic.
//!
//! When not all parts were stored, the error says which keys were not: `unknown_keys` and `not_applied_keys` are JSON lists of the first of them, `unknown` and
//! `not_applied` how many there are.

use std::future::Future;

use futures::future::join_all;
use tokio::time::Instant;

use super::{Router, refusal, shard_of, wait};
use crate::command::{Change, Command, Outcome, TtlSeconds};
use crate::error::{Error, Kind, Reason, Result};
use crate::types::{Key, RequestId, Value};

/// Most keys that an error names.
const KEYS_NAMED_MAX: usize = 20;

/// Most bytes of keys that an error names in one list: errors travel in headers.
const KEYS_NAMED_BYTES_MAX: usize = 1024;

impl Router {
    /// Stores many values, each shard's part whole or not at all; how many.
    ///
    /// # Errors
    ///
    /// As [`Self::put`] while no shard has applied its part; OUTCOME_UNKNOWN when only some have, or one may have.
    pub fn batch_put(
        &self,
        entries: Vec<(Key, Value)>,
        ttl: Option<TtlSeconds>,
        request_id: Option<RequestId>,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<u32>> + use<>> {
        let mut parts: Vec<Vec<(Key, Value)>> = vec![Vec::new(); self.shards.len()];
        for (key, value) in entries {
            let shard = shard_of(key.as_bytes(), self.shard_count());
            parts[shard.0 as usize].push((key, value));
        }
        let parts = self.shards.iter().zip(parts).filter(|(_, entries)| !entries.is_empty());
        let mut proposed = Vec::new();
        let mut refused = None;
        for (shard, entries) in parts {
            let keys = Keys::of(&entries);
            if let Some(error) = &refused {
                proposed.push((keys, Err(Error::clone(error))));
                continue;
            }
            let change = Change::PutMany { entries, ttl };
            match shard.propose(Command { change, request_id: request_id.clone() }) {
                Ok(ticket) => proposed.push((keys, Ok(ticket))),
                Err(error) if proposed.is_empty() => return Err(error),
                Err(error) => {
                    refused = Some(error.clone());
                    proposed.push((keys, Err(error)));
                }
            }
        }
        Ok(async move {
            let answers = proposed.into_iter().map(async |(keys, ticket)| {
                let answer = match ticket {
                    Ok(ticket) => wait(ticket, deadline).await,
                    Err(error) => Err(error),
                };
                (keys, answer)
            });
            outcome(join_all(answers).await)
        })
    }
}

/// The keys of some parts: how many, and the first of them.
#[derive(Debug, Default)]
struct Keys {
    count: usize,
    first: Vec<Key>,
}

impl Keys {
    fn of(entries: &[(Key, Value)]) -> Self {
        let first = entries.iter().take(KEYS_NAMED_MAX).map(|(key, _)| key.clone());
        Self { count: entries.len(), first: first.collect() }
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
    }

    /// The first ones, as a list in JSON.
    fn named(&self) -> String {
        let mut bytes = 0;
        let few = self.first.iter().take(KEYS_NAMED_MAX).map(Key::as_str).take_while(|key| {
            bytes += key.len();
            bytes <= KEYS_NAMED_BYTES_MAX
        });
        serde_json::to_string(&few.collect::<Vec<_>>()).expect("texts are JSON")
    }
}

/// What a batch came to over its shards: applied everywhere, nowhere, or not everywhere for all that is known.
fn outcome(answers: Vec<(Keys, Result<Outcome>)>) -> Result<u32> {
    let mut stored = 0;
    let (mut unknown, mut not_applied) = (Keys::default(), Keys::default());
    let mut failure: Option<Error> = None;
    for (keys, answer) in answers {
        let error = match answer {
            Ok(Outcome::PutMany { count }) => {
                stored += count;
                continue;
            }
            Ok(other) => refusal(other),
            Err(error) => error,
        };
        if error.kind() == Kind::Unknown {
            unknown.add(keys);
        } else {
            not_applied.add(keys);
        }
        failure = Some(error);
    }
    match failure {
        None => Ok(stored),
        Some(error) if stored == 0 && unknown.count == 0 => Err(error),
        Some(error) => Err(torn(stored, &unknown, &not_applied, &error)),
    }
}

/// The batch is not stored as a whole, or may not be.
fn torn(stored: u32, unknown: &Keys, not_applied: &Keys, error: &Error) -> Error {
    let message = format!(
        "some shards stored their part of the batch, not all: {stored} keys are stored, {} may be, {} are not: {}",
        unknown.count,
        not_applied.count,
        error.message()
    );
    let mut torn = Error::new(Reason::OutcomeUnknown, message);
    if unknown.count > 0 {
        torn = torn.with("unknown", unknown.count).with("unknown_keys", unknown.named());
    }
    if not_applied.count > 0 {
        torn = torn
            .with("not_applied", not_applied.count)
            .with("not_applied_keys", not_applied.named());
    }
    torn
}
