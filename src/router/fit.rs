//! Whether what another node tells fits what it was asked. What does not is as good as no answer: the next node that holds the shard is asked.
//!
//! Nodes of a cluster trust each other, but they may run different versions, or have a defect; what one of them tells must not make another one give out what nobody asked for, give
//! out something twice, or leave something out without saying so. An answer fits when
//!
//! * it is of the kind that was asked for, and refuses no shard but those it was asked for;
//! * every document is of a key that was asked for, once; every item of a page is in the range and in order, and with its value where that is wanted; figures are of each shard once;
//! * all of it is of shards that it was asked for and does not refuse.
//!
//! That it tells everything that it has, nobody but it can know. Callers: `gather.rs`.

use std::collections::BTreeSet;

use super::merge::Page;
use super::query::{PageLimits, Query};
use super::remote::{Answer, Told, What};
use super::shard_of;
use crate::storage::{Direction, KeyRange};
use crate::types::{Key, ShardId};

/// The answer to `what` of `shards`, with documents at the places that the caller knows; what is wrong with it, when it does not fit.
pub(super) fn fit(
    mut answer: Answer,
    what: &What,
    shards: &[ShardId],
    shard_count: u32,
) -> Result<Answer, &'static str> {
    let mut served: BTreeSet<ShardId> = shards.iter().copied().collect();
    for missing in &answer.missing {
        if !served.remove(&missing.shard) {
            return Err("that it does not serve a shard that it was not asked for");
        }
    }
    let serves = |key: &Key| served.contains(&shard_of(key.as_bytes(), shard_count));
    match (&mut answer.told, what) {
        (Told::Documents(documents), What::Documents(wanted)) => {
            let places = wanted.places_in(shards);
            let mut told = BTreeSet::new();
            for (place, _) in documents {
                *place = *places.get(*place).ok_or("a document of no key that it was asked for")?;
                if !told.insert(*place) {
                    return Err("a document twice");
                }
                if !serves(&wanted.keys[*place]) {
                    return Err("a document of a shard that it does not serve");
                }
            }
        }
        (Told::Page(page), What::Page { query, limits }) => {
            check_page(page, query, *limits)?;
            if !page.items.iter().all(|item| serves(&item.key)) {
                return Err("an item of a shard that it was not asked for, or does not serve");
            }
        }
        (Told::Figures(figures), What::Figures) => {
            let told: BTreeSet<_> = figures.iter().map(|figures| figures.shard).collect();
            if told != served || told.len() != figures.len() {
                return Err("figures of other shards");
            }
        }
        _ => return Err("something of another kind"),
    }
    Ok(answer)
}

fn check_page(page: &Page, query: &Query, limits: PageLimits) -> Result<(), &'static str> {
    let KeyRange { start, end } = query.range();
    let mut bytes = 0;
    let mut last: Option<&Key> = None;
    for item in &page.items {
        let key = item.key.as_bytes();
        if key < start || end.is_some_and(|end| key >= end) {
            return Err("an item outside the range");
        }
        let follows = last.is_none_or(|last| match query.direction() {
            Direction::Forward => *last < item.key,
            Direction::Reverse => *last > item.key,
        });
        if !follows {
            return Err("items out of order");
        }
        if item.value.is_some() == query.keys_only() {
            return Err("an item without its value, or with one that nobody wants");
        }
        bytes += key.len() + item.value.as_ref().map_or(0, |value| value.bytes().len());
        last = Some(&item.key);
    }
    let full = page.items.len() > limits.items || bytes > limits.bytes;
    if full && page.items.len() > 1 {
        return Err("more than a page may have");
    }
    Ok(())
}
