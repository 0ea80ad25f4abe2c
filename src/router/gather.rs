//! Reads that concern shards of which some are not here: what is here is read here, other nodes are asked for the rest, each once for all that it has.
//!
//! A round asks everybody at the same time and waits for all. What a node does not serve (its replica has gone, it does not lead and followers may not read, it does not answer) is asked of
//! the next node that holds the shard, a leader that was named first; likewise when it tells something that was not asked (`fit.rs`). When all have been asked, it begins anew after [`ASK_AGAIN`], with the nodes that hold the shard by then. A
//! node that is asked answers from what it has and asks nobody: one hop.
//!
//! Memory: an answer has at most [`ANSWER_BYTES_MAX`], a page of a node at most the bytes that the caller's page may have; so a read holds as much as the nodes it asks, times that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::{Instant, sleep_until};

use super::Router;
use super::fit::fit;
use super::query::PageLimits;
use super::remote::{Answer, Question, Told, What, decode_answer};
use crate::cluster::NodeName;
use crate::error::{Error, Kind, Reason, Result};
use crate::raft::transport::IN_FLIGHT_BYTES_MAX;
use crate::shard::Freshness;
use crate::types::ShardId;

/// Pause before nodes are asked once more that have not served a shard.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// Most bytes of an answer: what peers take as one message, less what is around it.
pub(super) const ANSWER_BYTES_MAX: usize = IN_FLIGHT_BYTES_MAX - (64 << 10);

/// Most bytes of keys and values that a node is asked for in one page; one value may be larger.
const PAGE_BYTES_MAX: usize = ANSWER_BYTES_MAX / 2;

/// What came of it.
pub(super) struct Gathered {
    /// The results; each shard is in one of them, but for those in `left`.
    pub(super) told: Vec<Told>,
    /// Shards for which no node answered.
    pub(super) left: BTreeSet<ShardId>,
    /// What was heard of each of them last.
    why: BTreeMap<ShardId, Error>,
}

impl Gathered {
    /// The results, if they are of all shards.
    ///
    /// # Errors
    ///
    /// What was heard last of one that is not among them, or NO_LEADER.
    pub(super) fn whole(mut self) -> Result<Vec<Told>> {
        let Some(shard) = self.left.first() else { return Ok(self.told) };
        Err(self.why.remove(shard).unwrap_or_else(|| {
            let message =
                format!("{shard}: the deadline passed before a node that holds it answered");
            Error::new(Reason::NoLeader, message)
        }))
    }
}

/// Who is to be asked, `None` being this node.
type Whom = Option<NodeName>;

/// A read under way.
struct Search<'a> {
    router: &'a Router,
    what: Arc<What>,
    freshness: Freshness,
    deadline: Instant,
    found: Gathered,
    /// Who has not served what, since all were asked last.
    tried: BTreeSet<(ShardId, Whom)>,
    round: u32,
}

impl Router {
    /// Asks for `what` of `shards`, until all have answered or the deadline passes.
    ///
    /// # Errors
    ///
    /// NOT_SERVING before this node has met its cluster; what another node cannot know better, as it came.
    pub(super) async fn gather(
        &self,
        what: Arc<What>,
        shards: BTreeSet<ShardId>,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Gathered> {
        let found = Gathered { told: Vec::new(), left: shards, why: BTreeMap::new() };
        let tried = BTreeSet::new();
        let search = Search { router: self, what, freshness, deadline, found, tried, round: 0 };
        search.run().await
    }
}

impl Search<'_> {
    async fn run(mut self) -> Result<Gathered> {
        while !self.found.left.is_empty() {
            let round = self.plan()?;
            if round.is_empty() {
                let pause = (Instant::now() + ASK_AGAIN).min(self.deadline);
                sleep_until(pause).await;
                self.tried.clear();
            } else {
                self.round += 1;
                let asked = round.iter().map(|(whom, shards)| self.ask(whom.as_ref(), shards));
                let answers = join_all(asked).await;
                for ((whom, shards), answer) in round.into_iter().zip(answers) {
                    self.take(&whom, &shards, answer)?;
                }
            }
            if Instant::now() >= self.deadline {
                break;
            }
        }
        Ok(self.found)
    }

    /// Whom to ask next for what; nobody when all were asked.
    fn plan(&self) -> Result<BTreeMap<Whom, Vec<ShardId>>> {
        let mut round = BTreeMap::<Whom, Vec<ShardId>>::new();
        for id in &self.found.left {
            let shard = self.router.shard_of_id(*id)?;
            let untried = |whom: &Whom| !self.tried.contains(&(*id, whom.clone()));
            if untried(&None) && shard.seat(self.freshness).is_some() {
                round.entry(None).or_default().push(*id);
                continue;
            }
            let Some(place) = shard.place() else { continue };
            let next = place.holders()?.into_iter().map(Some).find(untried);
            if let Some(next) = next {
                round.entry(next).or_default().push(*id);
            }
        }
        Ok(round)
    }

    async fn ask(&self, whom: Option<&NodeName>, shards: &[ShardId]) -> Result<Answer> {
        let Some(node) = whom else {
            return self.router.read_here(&self.what, shards, self.freshness, self.deadline).await;
        };
        let silent = |why: &str| {
            let message = format!("{}: {node} does not answer: {why}", shards[0]);
            Error::new(Reason::NoLeader, message)
        };
        let Some(place) = self.router.shard_of_id(shards[0])?.place() else {
            return Err(silent("this node runs alone"));
        };
        // From round to round there is more time, for what takes long wherever it is asked.
        let left = self.deadline.saturating_duration_since(Instant::now());
        let limit = left.min(place.ask_timeout()? * self.round);
        let question = self.question(shards, limit);
        let answer = place.ask(node, question, limit)?.await;
        let answer = answer.map_err(|failure| silent(&failure.to_string()))?;
        let answer = decode_answer(&answer).ok_or_else(|| silent("its answer is malformed"))??;
        let count = self.router.shard_count();
        fit(answer, &self.what, shards, count).map_err(|why| silent(&format!("it told {why}")))
    }

    fn question(&self, shards: &[ShardId], left: Duration) -> Bytes {
        let (shards, freshness) = (shards.to_vec(), self.freshness);
        match &*self.what {
            What::Page { query, limits } => {
                let bytes = limits.bytes.min(PAGE_BYTES_MAX);
                let limits = PageLimits { bytes, ..*limits };
                let what = What::Page { query: query.clone(), limits };
                Question { what: &what, shards, freshness, left }.encode()
            }
            what => Question { what, shards, freshness, left }.encode(),
        }
    }

    /// Takes what one of a round answered.
    fn take(&mut self, whom: &Whom, shards: &[ShardId], answer: Result<Answer>) -> Result<()> {
        match answer {
            Ok(Answer { told, missing }) => {
                for shard in shards {
                    if missing.iter().all(|missing| missing.shard != *shard) {
                        self.found.left.remove(shard);
                    }
                }
                self.found.told.push(told);
                for missing in missing {
                    self.not_served(missing.shard, whom, missing.leader);
                }
            }
            // Others may have a leader, or be one.
            Err(error) if whom.is_some() && error.kind() == Kind::Unavailable => {
                for shard in shards {
                    self.not_served(*shard, whom, None);
                    self.found.why.insert(*shard, error.clone());
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn not_served(&mut self, shard: ShardId, whom: &Whom, leader: Option<NodeName>) {
        self.tried.insert((shard, whom.clone()));
        let place = self.router.shard_of_id(shard).ok().and_then(|shard| shard.place());
        if let (Some(node), Some(place)) = (whom, place) {
            place.is_not_served_by(node, leader);
        }
    }
}
