//! Slows writes down before the tree falls behind.

use std::time::Duration;

/// When writes are slowed down, and how much.
#[derive(Debug, Clone)]
pub(crate) struct PacerOptions {
    /// Tables in level 0 from which on writes are slowed down. Default 8.
    pub(crate) l0_soft: usize,
    /// Where they are as slow as it gets. Default 20.
    pub(crate) l0_hard: usize,
    /// Where they stop. Default 36.
    pub(crate) l0_stop: usize,
    /// Debt from which on writes are slowed down. Default 16 GiB.
    pub(crate) debt_soft_bytes: u64,
    /// Where they are as slow as it gets. Default 64 GiB.
    pub(crate) debt_hard_bytes: u64,
    /// Sealed memtables where writes stop. Default 4.
    pub(crate) sealed_stop: usize,
    /// Bytes a second when the slowing begins. Default 512 MiB.
    pub(crate) rate_max: u64,
    /// Bytes a second where it ends. Default 2 MiB.
    pub(crate) rate_min: u64,
}

/// What the pacer goes by. Reported whenever it changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Tables in level 0.
    pub(crate) l0_tables: usize,
    /// See `debt_bytes` of the picker.
    pub(crate) debt_bytes: u64,
    /// Sealed memtables that are not flushed.
    pub(crate) sealed: usize,
}

/// What a write has to do first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Go ahead.
    Now,
    /// Wait for so long, then go ahead.
    After(Duration),
    /// Wait until the load has changed, then ask again.
    Stop,
}

impl Default for PacerOptions {
    fn default() -> Self {
        Self { l0_soft: 8, l0_hard: 20, l0_stop: 36, debt_soft_bytes: 16 << 30, debt_hard_bytes: 64 << 30, sealed_stop: 4, rate_max: 512 << 20, rate_min: 2 << 20 }
    }
}
