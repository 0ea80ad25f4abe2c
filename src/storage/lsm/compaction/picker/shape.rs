//! What each level may hold. The sizes are counted from the bottom: the largest level is what it is, the one above it may
//! hold a tenth of that, and so on; the first one that may hold no more than
//! [`base_bytes`](PickerOptions::base_bytes) is the **base level**, where level 0 goes to. The levels above it are
//! empty. So nine tenths of the data are in the last level whatever its size, and space amplification stays near 1.1 (Dong
//! et al., CIDR '17).

use super::PickerOptions;
use crate::storage::lsm::version::{LAST_LEVEL, LEVELS, Version};

/// See the [module](self).
pub(super) struct Shape {
    base: usize,
    targets: [u64; LEVELS],
}

impl Shape {
    /// The shape that this tree should have.
    pub(super) fn of(version: &Version, options: &PickerOptions) -> Self {
        let bytes = |level| version.level(level).size_bytes();
        let largest = (1..LEVELS).map(bytes).max().unwrap_or(0);
        // A table must not be put below an older one.
        let highest = (1..LEVELS).find(|&level| bytes(level) > 0).unwrap_or(LAST_LEVEL);
        let mut targets = [0; LEVELS];
        targets[LAST_LEVEL] = largest.max(options.base_bytes);
        let mut base = LAST_LEVEL;
        while base > 1 && targets[base] > options.base_bytes {
            targets[base - 1] = targets[base] / options.growth;
            base -= 1;
        }
        Self { base: base.min(highest), targets }
    }

    /// Where level 0 goes to.
    pub(super) const fn base(&self) -> usize {
        self.base
    }

    /// What a level may hold; nothing above the level that should be the base.
    pub(super) const fn target_bytes(&self, level: usize) -> u64 {
        self.targets[level]
    }

    /// How many times what it may hold a level holds, were these its bytes.
    #[expect(clippy::cast_precision_loss, reason = "a ratio, to compare")]
    pub(super) fn fullness(&self, level: usize, bytes: u64) -> f64 {
        if bytes == 0 { 0.0 } else { bytes as f64 / self.targets[level] as f64 }
    }
}

/// Bytes that compactions have to write until the tree is in shape: an estimate, for the pacer.
pub(crate) fn debt_bytes(version: &Version, options: &PickerOptions) -> u64 {
    let shape = Shape::of(version, options);
    let zero = version.level(0);
    let mut debt = 0;
    let mut arriving = 0;
    if zero.tables().len() >= options.l0_tables {
        arriving = zero.size_bytes();
        debt = arriving + version.level(shape.base()).size_bytes();
    }
    for level in shape.base()..LAST_LEVEL {
        let bytes = version.level(level).size_bytes() + arriving;
        let next = version.level(level + 1).size_bytes();
        arriving = bytes.saturating_sub(shape.target_bytes(level));
        // What goes down is merged with its share of the next level.
        let share = next.checked_div(bytes).unwrap_or(0).min(options.growth);
        debt += arriving.saturating_mul(1 + share);
    }
    debt
}
