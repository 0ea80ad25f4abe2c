//! Reads: of one key, of many, of ranges, and of figures. Where the replicas here may answer them, they do; for the rest see `gather.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::{Instant, timeout_at};

use super::merge::{self, Item, Page};
use super::query::{PageLimits, Query};
use super::remote::{Answer, Figures, Missing, Told, Wanted, What};
use super::{Router, shard_of};
use crate::error::{Error, Reason, Result};
use crate::shard::{Document, Freshness, Seat, Shard, key_text};
use crate::types::{Key, ShardId};

/// How long figures of shards that are elsewhere are waited for.
const FIGURES_WITHIN: Duration = Duration::from_secs(2);

impl Router {
    /// The document under `key`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// CORRUPTION or INTERNAL when it cannot be read, READ_ONLY when it may be lost after a failed disk; NO_LEADER, NO_QUORUM, NOT_SERVING when nobody can read it
    /// before the deadline.
    pub async fn get(
        &self,
        key: &[u8],
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Option<Document>> {
        let shard = self.shard(key);
        if let Some(seat) = shard.seat(freshness) {
            let found = read_one(shard, &seat, key, freshness, deadline).await;
            let elsewhere = found.as_ref().is_err_and(|error| has_gone(shard, &seat, error));
            if !elsewhere {
                return found;
            }
        }
        let Some(key) = key_text(key) else {
            return Err(Error::new(Reason::Internal, "a key that was not checked"));
        };
        let places = vec![(shard.id(), vec![0])];
        let wanted = Wanted { keys: vec![key], places, bytes_max: usize::MAX };
        let what = Arc::new(What::Documents(wanted));
        let gathered = self.gather(what, BTreeSet::from([shard.id()]), freshness, deadline).await?;
        Ok(documents(gathered.whole()?).next().map(|(_, document)| document))
    }

    /// As [`Self::get`] when nothing has to be waited for; `None` otherwise.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub fn get_now(&self, key: &[u8], freshness: Freshness) -> Result<Option<Option<Document>>> {
        let shard = self.shard(key);
        let Some(seat) = shard.seat(freshness) else { return Ok(None) };
        if !shard.is_prepared(&seat, freshness)? {
            return Ok(None);
        }
        let document = match shard.get(&seat, key) {
            Err(error) if has_gone(shard, &seat, &error) => return Ok(None),
            found => found?,
        };
        Ok((freshness == Freshness::Stale || shard.is_settled()).then_some(document))
    }

    /// The documents under `keys`, in their order, missing ones left out. Each shard's part is of one moment.
    ///
    /// # Errors
    ///
    /// As [`Self::get`]; LIMIT_EXCEEDED when keys and values are more than `bytes_max` bytes.
    pub async fn batch_get(
        &self,
        keys: Vec<Key>,
        bytes_max: usize,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Vec<Item>> {
        let mut places: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        for (place, key) in keys.iter().enumerate() {
            places.entry(shard_of(key.as_bytes(), self.shard_count())).or_default().push(place);
        }
        let shards = places.keys().copied().collect();
        let places = places.into_iter().collect();
        let what = Arc::new(What::Documents(Wanted { keys, places, bytes_max }));
        let gathered = self.gather(Arc::clone(&what), shards, freshness, deadline).await?;
        let told = gathered.whole()?;
        let What::Documents(Wanted { keys, .. }) = Arc::unwrap_or_clone(what) else {
            return Err(Error::new(Reason::Internal, "documents were asked for"));
        };
        let mut found: Vec<Option<Document>> = vec![None; keys.len()];
        let mut bytes = 0;
        for (place, document) in documents(told) {
            bytes += keys[place].as_bytes().len() + document.value.bytes().len();
            check_bytes(bytes, bytes_max)?;
            found[place] = Some(document);
        }
        let items = keys.into_iter().zip(found).filter_map(|(key, document)| {
            let Document { value, version, ttl_seconds } = document?;
            Some(Item { key, value: Some(value), version, ttl_seconds })
        });
        Ok(items.collect())
    }

    /// One page of `query`, in order; each shard's part is of one moment. It may have less than `limits` allow although more follows.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn page(
        &self,
        query: Query,
        limits: PageLimits,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Page> {
        let direction = query.direction();
        let what = Arc::new(What::Page { query, limits });
        let told = self.gather(what, self.all(), freshness, deadline).await?.whole()?;
        let pages = told.into_iter().filter_map(|told| match told {
            Told::Page(page) => Some(page),
            Told::Documents(_) | Told::Figures(_) => None,
        });
        Ok(merge::join(pages.collect(), direction, limits))
    }

    /// Figures of the shards in order of id: of the replica here, or of the leader. Those of which nobody tells within two seconds are left out.
    ///
    /// # Errors
    ///
    /// NOT_SERVING before this node has met its cluster.
    pub async fn figures(&self) -> Result<Vec<Figures>> {
        let deadline = Instant::now() + FIGURES_WITHIN;
        let what = Arc::new(What::Figures);
        let gathered = self.gather(what, self.all(), Freshness::Stale, deadline).await?;
        for shard in &gathered.left {
            tracing::warn!(%shard, "no node tells figures of it");
        }
        let figures = gathered.told.into_iter().flat_map(|told| match told {
            Told::Figures(figures) => figures,
            Told::Documents(_) | Told::Page(_) => Vec::new(),
        });
        let mut figures: Vec<_> = figures.collect();
        figures.sort_by_key(|figures| figures.shard);
        Ok(figures)
    }

    fn all(&self) -> BTreeSet<ShardId> {
        self.shards.iter().map(Shard::id).collect()
    }

    /// What of `shards` the replicas here tell.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub(super) async fn read_here(
        &self,
        what: &Arc<What>,
        shards: &[ShardId],
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Answer> {
        let (mut seats, mut missing) = (Vec::new(), Vec::new());
        for id in shards {
            match self.shard_of_id(*id)?.seat(freshness) {
                Some(seat) => seats.push((*id, seat)),
                None => missing.push(self.missing(*id)),
            }
        }
        // Figures are of whatever is at hand.
        if !matches!(**what, What::Figures) {
            let ready = seats.iter().map(async |(id, seat)| {
                match prepared(self.shard_of_id(*id)?, seat, freshness, deadline).await {
                    // Another node may know better.
                    Err(error) if error.reason() == Reason::NotServing => Ok(false),
                    other => other.map(|()| true),
                }
            });
            let ready: Vec<bool> = try_join_all(ready).await?;
            let (serving, gone): (Vec<_>, Vec<_>) =
                seats.into_iter().zip(ready).partition(|(_, ready)| *ready);
            missing.extend(gone.into_iter().map(|((id, _), _)| self.missing(id)));
            seats = serving.into_iter().map(|(seat, _)| seat).collect();
        }
        let told = match self.read_seats(what, &seats).await {
            Err(_) if seats.iter().any(|(id, seat)| !self.holds(*id, seat)) => {
                missing.extend(seats.iter().map(|(id, _)| self.missing(*id)));
                what.nothing()
            }
            told => told?,
        };
        for (id, _) in &seats {
            settled(self.shard_of_id(*id)?, freshness, deadline).await?;
        }
        Ok(Answer { told, missing })
    }

    async fn read_seats(&self, what: &Arc<What>, seats: &[(ShardId, Seat)]) -> Result<Told> {
        if seats.is_empty() {
            return Ok(what.nothing());
        }
        // One document is read on this thread, as for a caller of this node.
        if matches!(&**what, What::Documents(wanted) if wanted.keys.len() == 1) {
            return self.read_now(what, seats);
        }
        let (router, what, seats) = (self.clone(), Arc::clone(what), seats.to_vec());
        blocking(move || router.read_now(&what, &seats)).await
    }

    /// Reads from engines. Blocks.
    fn read_now(&self, what: &What, seats: &[(ShardId, Seat)]) -> Result<Told> {
        match what {
            What::Documents(wanted) => self.read_documents(wanted, seats).map(Told::Documents),
            What::Page { query, limits } => {
                let readers = seats.iter().map(|(id, seat)| self.shard_of_id(*id)?.reader(seat));
                let readers = readers.collect::<Result<Vec<_>>>()?;
                merge::page(&readers, query, *limits).map(Told::Page)
            }
            What::Figures => {
                let figures = seats.iter().map(|(id, _)| figures_of(self.shard_of_id(*id)?));
                figures.collect::<Result<_>>().map(Told::Figures)
            }
        }
    }

    fn read_documents(
        &self,
        wanted: &Wanted,
        seats: &[(ShardId, Seat)],
    ) -> Result<Vec<(usize, Document)>> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for (id, seat) in seats {
            let places = wanted.places_in(&[*id]);
            let keys: Vec<&[u8]> =
                places.iter().map(|&place| wanted.keys[place].as_bytes()).collect();
            self.shard_of_id(*id)?.get_many(seat, &keys, &mut |index, document| {
                bytes += keys[index].len() + document.value.bytes().len();
                check_bytes(bytes, wanted.bytes_max)?;
                found.push((places[index], document));
                Ok(())
            })?;
        }
        Ok(found)
    }

    fn holds(&self, id: ShardId, seat: &Seat) -> bool {
        self.shard_of_id(id).is_ok_and(|shard| shard.holds(seat))
    }

    fn missing(&self, shard: ShardId) -> Missing {
        let place = self.shard_of_id(shard).ok().and_then(Shard::place);
        Missing { shard, leader: place.and_then(|place| place.leader_elsewhere()) }
    }
}

impl What {
    /// The results for no shard.
    fn nothing(&self) -> Told {
        match self {
            Self::Documents(_) => Told::Documents(Vec::new()),
            Self::Page { .. } => Told::Page(Page { items: Vec::new(), more: false }),
            Self::Figures => Told::Figures(Vec::new()),
        }
    }
}

async fn read_one(
    shard: &Shard,
    seat: &Seat,
    key: &[u8],
    freshness: Freshness,
    deadline: Instant,
) -> Result<Option<Document>> {
    prepared(shard, seat, freshness, deadline).await?;
    let document = shard.get(seat, key)?;
    settled(shard, freshness, deadline).await?;
    Ok(document)
}

/// Whether a read failed because the replica has gone, or is no good any more.
fn has_gone(shard: &Shard, seat: &Seat, error: &Error) -> bool {
    error.reason() == Reason::NotServing || !shard.holds(seat)
}

fn documents(told: Vec<Told>) -> impl Iterator<Item = (usize, Document)> {
    told.into_iter().flat_map(|told| match told {
        Told::Documents(documents) => documents,
        Told::Page(_) | Told::Figures(_) => Vec::new(),
    })
}

fn figures_of(shard: &Shard) -> Result<Figures> {
    let status = shard.status()?;
    let (leader, replicas) = match status.group {
        Some(group) => (group.leader, group.replicas.into_values().collect()),
        None => (None, Vec::new()),
    };
    Ok(Figures {
        shard: status.id,
        last_version: status.last_version,
        writes: status.writes,
        reads: status.reads,
        keys: status.engine.keys,
        bytes: status.engine.bytes,
        leader,
        replicas,
    })
}

fn check_bytes(bytes: usize, bytes_max: usize) -> Result<()> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(Error::limit("kvstore.limits.page-size", "the answer", bytes_max, bytes, "bytes"))
}

/// Waits until a read of `shard` may begin.
async fn prepared(
    shard: &Shard,
    seat: &Seat,
    freshness: Freshness,
    deadline: Instant,
) -> Result<()> {
    if shard.is_prepared(seat, freshness)? {
        return Ok(());
    }
    timeout_at(deadline, shard.prepare(seat, freshness)).await.unwrap_or_else(|_| {
        let message = "the deadline passed while the read waited for a quorum of its shard";
        Err(Error::new(Reason::NoQuorum, message))
    })
}

/// Waits until what a read of `shard` saw is durable.
async fn settled(shard: &Shard, freshness: Freshness, deadline: Instant) -> Result<()> {
    if freshness == Freshness::Stale || shard.is_settled() {
        return Ok(());
    }
    timeout_at(deadline, shard.settled()).await.unwrap_or_else(|_| {
        let message =
            "the deadline passed while the read waited for earlier writes to become durable";
        Err(Error::overloaded(message, Duration::from_millis(50)))
    })
}

/// Runs a page's worth of engine work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::new(Reason::Internal, format!("a read failed: {error}")))
    })
}
