//! What an engine ought to hold, and compares reads with it.

use imbl::OrdMap;

use crate::storage::testing::Row;
use crate::storage::{Direction, KeyRange, Reader};
use crate::util::time::Timestamp;

/// A map with a clock. Copies cost nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    entries: OrdMap<Vec<u8>, (Vec<u8>, Option<u64>)>,
    pub(super) clock: u64,
}

impl Model {
    pub(super) fn put(&mut self, key: Vec<u8>, value: Vec<u8>, expires_at: Option<u64>) {
        self.entries.insert(key, (value, expires_at));
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        self.entries.remove(key);
    }

    pub(super) fn delete_range(&mut self, start: &[u8], end: &[u8]) {
        if start >= end {
            return;
        }
        let keys = self.entries.range(start.to_vec()..end.to_vec()).map(|(key, _)| key.clone());
        for key in keys.collect::<Vec<_>>() {
            self.entries.remove(&key);
        }
    }

    fn row(&self, (key, (value, expires_at)): (&Vec<u8>, &(Vec<u8>, Option<u64>))) -> Option<Row> {
        let visible = expires_at.is_none_or(|at| at > self.clock);
        visible.then(|| (key.clone(), value.clone(), *expires_at))
    }

    fn rows(&self, range: KeyRange<'_>, direction: Direction, limit: usize) -> Vec<Row> {
        use std::ops::Bound;
        if range.is_empty() {
            return Vec::new();
        }
        let end = range.end.map_or(Bound::Unbounded, |end| Bound::Excluded(end.to_vec()));
        let rows = self.entries.range((Bound::Included(range.start.to_vec()), end));
        match direction {
            Direction::Forward => rows.filter_map(|row| self.row(row)).take(limit).collect(),
            Direction::Reverse => rows.rev().filter_map(|row| self.row(row)).take(limit).collect(),
        }
    }

    fn get(&self, key: &[u8]) -> Option<Row> {
        self.entries.get_key_value(key).and_then(|row| self.row(row))
    }

    pub(super) fn check_get(&self, reader: &dyn Reader, key: &[u8]) {
        let mut found = None;
        let there = reader.get_with(key, &mut |entry| {
            let expires_at = entry.expires_at.map(Timestamp::as_millis);
            found = Some((entry.key.to_vec(), entry.value.to_vec(), expires_at));
        });
        assert_eq!(there.expect("reads"), found.is_some());
        assert_eq!(found, self.get(key), "get");
    }

    pub(super) fn check_get_many(&self, reader: &dyn Reader, keys: &[Vec<u8>]) {
        let wanted: Vec<_> = keys.iter().map(|key| self.get(key)).collect();
        let mut found = vec![None; keys.len()];
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let read = reader.get_many(&keys, &mut |position, entry| {
            let expires_at = entry.expires_at.map(Timestamp::as_millis);
            found[position] = Some((entry.key.to_vec(), entry.value.to_vec(), expires_at));
        });
        read.expect("reads");
        assert_eq!(found, wanted, "get_many");
    }

    pub(super) fn check_scan(
        &self,
        reader: &dyn Reader,
        range: KeyRange<'_>,
        direction: Direction,
        limit: usize,
    ) {
        let mut scan = reader.scan(range, direction).expect("scans");
        let mut found = Vec::new();
        while found.len() < limit
            && let Some(entry) = scan.next().expect("reads")
        {
            let expires_at = entry.expires_at.map(Timestamp::as_millis);
            found.push((entry.key.to_vec(), entry.value.to_vec(), expires_at));
        }
        let wanted = self.rows(range, direction, limit);
        assert_eq!(found, wanted, "scan of {range:?}, {direction:?}, at most {limit}");
    }

    /// All there is, by every kind of read.
    pub(super) fn check_all(&self, reader: &dyn Reader) {
        assert_eq!(reader.clock().as_millis(), self.clock, "clock");
        for direction in [Direction::Forward, Direction::Reverse] {
            self.check_scan(reader, KeyRange::ALL, direction, usize::MAX);
        }
        let keys: Vec<_> = self.entries.keys().cloned().collect();
        self.check_get_many(reader, &keys);
    }
}
