//! What readers of one moment see of a tree that has only a newest state: before-images.
//!
//! sled has no snapshots. So each batch, **before** it is applied, leaves here the rows that it is about to change, as they
//! were. A reader of the moment `m` (the number of the newest batch that it may see) reads the tree *and then* this overlay,
//! both under the read lock of [`Versions`]:
//!
//! * the earliest image of the row left by a batch after `m`, if there is one, is the row as it was at `m`;
//! * otherwise no batch after `m` had changed the row when it was read from the tree, because it would have left an image first,
//!   for which it needs the write lock. So the tree's row is the one of `m`.
//!
//! New readers read at [`Versions::now`], which moves on only when a batch has been applied as a whole; so a batch shows at
//! once, and a batch that failed half-way never shows: its images stay.
//!
//! Images are dropped as soon as no view is old enough to need them; without views that is when their batch has been
//! applied. Their size is bounded: beyond it the oldest views are given up, and their reads fail from then on. Only the batch
//! that is being applied is always kept, whatever its size.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use sled::IVec;

use super::rows::State;
use crate::storage::{Error, Result, Seqno};

/// What an image costs besides its bytes. An estimate.
const IMAGE_OVERHEAD_BYTES: usize = 96;

/// A row as it was; `None`: it was not there.
pub(super) type Image = Option<IVec>;

/// The overlay of one engine.
#[derive(Debug)]
pub(super) struct Versions {
    /// What new readers see.
    now: State,
    /// For each row the images, oldest first, each with the batch that replaced it.
    images: BTreeMap<IVec, Vec<(Seqno, Image)>>,
    /// Which rows have an image of which batch, in order.
    touched: VecDeque<(Seqno, Vec<IVec>)>,
    /// Open views by moment, with their number.
    views: BTreeMap<Seqno, usize>,
    /// Views of earlier moments were given up.
    oldest_valid: Seqno,
    bytes: usize,
    bytes_max: usize,
}

impl Versions {
    pub(super) fn new(now: State, bytes_max: usize) -> Self {
        Self {
            now,
            images: BTreeMap::new(),
            touched: VecDeque::new(),
            views: BTreeMap::new(),
            oldest_valid: Seqno(0),
            bytes: 0,
            bytes_max,
        }
    }

    pub(super) const fn now(&self) -> State {
        self.now
    }

    /// Bytes of main memory that the images take.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of open views.
    pub(super) fn view_count(&self) -> usize {
        self.views.values().sum()
    }

    /// Keeps `moment` readable until it is released as often as it was held.
    pub(super) fn hold(&mut self, moment: Seqno) -> Result<()> {
        self.check(moment)?;
        *self.views.entry(moment).or_insert(0) += 1;
        Ok(())
    }

    pub(super) fn release(&mut self, moment: Seqno) {
        // Absent when the view was given up.
        if let Some(count) = self.views.get_mut(&moment) {
            *count -= 1;
            if *count == 0 {
                self.views.remove(&moment);
                self.collect();
            }
        }
    }

    /// Whether a reader of `moment` still gets what it was promised.
    pub(super) fn check(&self, moment: Seqno) -> Result<()> {
        if moment >= self.oldest_valid {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "the view was given up: writes since it was taken fill more than the {} bytes that the sled engine keeps for views",
            self.bytes_max
        )))
    }

    /// The row as a reader of `moment` must see it, when that is not what the tree holds.
    pub(super) fn image(&self, row_key: &[u8], moment: Seqno) -> Option<&Image> {
        earliest_after(self.images.get(row_key)?, moment)
    }

    /// As [`Self::image`] for the rows from `start` to before `end`.
    pub(super) fn images_between<'a>(
        &'a self,
        start: &'a [u8],
        end: &'a [u8],
        moment: Seqno,
    ) -> impl DoubleEndedIterator<Item = (&'a IVec, &'a Image)> {
        self.images
            .range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
            .filter_map(move |(key, images)| Some((key, earliest_after(images, moment)?)))
    }

    /// Takes the rows that the batch `seqno` is about to change, as they are.
    pub(super) fn record(&mut self, seqno: Seqno, rows: impl Iterator<Item = (IVec, Image)>) {
        let mut keys = Vec::new();
        for (key, image) in rows {
            self.bytes += image_bytes(&key, &image);
            self.images.entry(key.clone()).or_default().push((seqno, image));
            keys.push(key);
        }
        self.touched.push_back((seqno, keys));
        // Views of now need only the images of this batch, which are kept in any case.
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.views.first_entry()
            && *oldest.key() < self.now.seqno
        {
            self.oldest_valid = Seqno(oldest.remove_entry().0.0 + 1);
            self.collect();
        }
    }

    /// The batch that was recorded last has been applied: `now` holds.
    pub(super) fn publish(&mut self, now: State) {
        self.now = now;
        self.collect();
    }

    /// Drops the images that neither a view nor a new reader can ask for.
    fn collect(&mut self) {
        let oldest = self.views.keys().next().map_or(self.now.seqno, |view| *view);
        while let Some((seqno, _)) = self.touched.front()
            && *seqno <= oldest
        {
            let (seqno, keys) = self.touched.pop_front().expect("it was just looked at");
            for key in keys {
                self.drop_image(&key, seqno);
            }
        }
    }

    fn drop_image(&mut self, key: &IVec, seqno: Seqno) {
        let Some(images) = self.images.get_mut(key) else { return };
        images.retain(|(replaced_by, image)| {
            let keep = *replaced_by != seqno;
            if !keep {
                self.bytes -= image_bytes(key, image);
            }
            keep
        });
        if images.is_empty() {
            self.images.remove(key);
        }
    }
}

fn earliest_after(images: &[(Seqno, Image)], moment: Seqno) -> Option<&Image> {
    images.iter().find(|(replaced_by, _)| *replaced_by > moment).map(|(_, image)| image)
}

fn image_bytes(key: &IVec, image: &Image) -> usize {
    key.len() + image.as_ref().map_or(0, |row| row.len()) + IMAGE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(seqno: u64) -> State {
        State { seqno: Seqno(seqno), ..State::default() }
    }

    fn change(versions: &mut Versions, seqno: u64, key: &str, before: &str) {
        let row = (IVec::from(key), Some(IVec::from(before)));
        versions.record(Seqno(seqno), std::iter::once(row));
        versions.publish(state(seqno));
    }

    #[test]
    fn each_view_gets_the_image_of_its_moment() {
        let mut versions = Versions::new(state(1), usize::MAX);
        versions.hold(Seqno(1)).expect("holds");
        change(&mut versions, 2, "k", "at 1");
        versions.hold(Seqno(2)).expect("holds");
        change(&mut versions, 3, "k", "at 2");

        let image = |versions: &Versions, moment| versions.image(b"k", Seqno(moment)).cloned();
        assert_eq!(image(&versions, 1), Some(Some("at 1".into())));
        assert_eq!(image(&versions, 2), Some(Some("at 2".into())));
        assert_eq!(image(&versions, 3), None);

        versions.release(Seqno(1));
        assert_eq!(image(&versions, 2), Some(Some("at 2".into())));
        versions.release(Seqno(2));
        assert_eq!((versions.bytes(), versions.images.len(), versions.touched.len()), (0, 0, 0));
    }

    #[test]
    fn batch_that_was_not_published_keeps_its_images() {
        let mut versions = Versions::new(state(1), 0);
        versions.record(Seqno(2), std::iter::once((IVec::from("k"), None)));
        versions.hold(Seqno(1)).expect("holds");
        versions.release(Seqno(1));
        assert_eq!(versions.image(b"k", versions.now().seqno), Some(&None));
    }

    #[test]
    fn oldest_views_are_given_up_beyond_the_limit() {
        let mut versions = Versions::new(state(1), 3 * (IMAGE_OVERHEAD_BYTES + 10));
        versions.hold(Seqno(1)).expect("holds");
        change(&mut versions, 2, "a", "1234");
        change(&mut versions, 3, "a", "1234");
        versions.hold(Seqno(3)).expect("holds");
        change(&mut versions, 4, "a", "1234");
        assert!(versions.check(Seqno(1)).is_ok());
        change(&mut versions, 5, "a", "1234");
        assert!(matches!(versions.check(Seqno(1)), Err(Error::Invalid(_))));
        assert!(versions.hold(Seqno(1)).is_err());
        assert!(versions.check(Seqno(3)).is_ok());
        assert!(versions.bytes() <= versions.bytes_max);
        versions.release(Seqno(1));
        versions.release(Seqno(3));
        assert_eq!((versions.bytes(), versions.view_count()), (0, 0));
    }
}
