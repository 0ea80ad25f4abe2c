//! Which key comes next: uniform, zipfian, sequential or latest, as YCSB defines them.
//!
//! * Zipfian is Gray's method with theta 0.99 (Gray et al., "Quickly generating billion-record synthetic databases", SIGMOD '94),
//!   drawn over 10^10 ranks and **scrambled** by FNV-1 over the keys, as YCSB's `ScrambledZipfianGenerator` does it, so that the
//!   hot keys lie scattered over the key space.
//! * Latest is the same curve, unscrambled, counted back from the newest key.
//!
//! Keys are numbers here; [`super::wire::Messages`] gives them their text. Same seed, same keys.

use rand::Rng;
use rand::rngs::SmallRng;

use super::Distribution;

/// YCSB's constant: how uneven.
const THETA: f64 = 0.99;

/// Ranks that the scrambled curve is drawn over, and their zeta, which YCSB computed once for all.
const SCRAMBLED_RANKS: f64 = 10_000_000_000.0;
const SCRAMBLED_ZETA: f64 = 26.469_028_201_783_02;

/// Terms of zeta that are summed one by one; the rest is an integral, exact to more digits than an `f64` shows.
const ZETA_SUMMED: u64 = 10_000;

/// Draws key numbers for one lane.
#[derive(Debug, Clone)]
pub(super) enum Chooser {
    Uniform,
    Scrambled(Zipfian),
    /// Counts up from `next` in steps, so that the lanes together go through all keys.
    Sequential {
        next: u64,
        step: u64,
    },
    Latest(Zipfian),
}

impl Chooser {
    /// For lane `lane` of `lanes`, over `keys` keys.
    pub(super) fn new(distribution: Distribution, keys: u64, lane: u64, lanes: u64) -> Self {
        match distribution {
            Distribution::Uniform => Self::Uniform,
            Distribution::Zipfian => {
                Self::Scrambled(Zipfian::with_zeta(SCRAMBLED_RANKS, SCRAMBLED_ZETA))
            }
            Distribution::Sequential => Self::Sequential { next: lane, step: lanes },
            Distribution::Latest => Self::Latest(Zipfian::new(keys)),
        }
    }

    /// The number of the next key, below `known`, which is at least 1.
    pub(super) fn next(&mut self, random: &mut SmallRng, known: u64) -> u64 {
        match self {
            Self::Uniform => random.random_range(0..known),
            Self::Scrambled(zipfian) => fnv(zipfian.next(random)) % known,
            Self::Sequential { next, step } => {
                let key = *next % known;
                *next = next.wrapping_add(*step);
                key
            }
            Self::Latest(zipfian) => known - 1 - zipfian.next(random) % known,
        }
    }
}

/// Ranks by Zipf's law: rank 0 is the most frequent.
#[derive(Debug, Clone)]
pub(super) struct Zipfian {
    ranks: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl Zipfian {
    #[expect(clippy::cast_precision_loss, reason = "a number of keys is far below 2^53")]
    pub(super) fn new(ranks: u64) -> Self {
        Self::with_zeta(ranks as f64, zeta(ranks))
    }

    fn with_zeta(ranks: f64, zeta_all: f64) -> Self {
        let eta = (1.0 - (2.0 / ranks).powf(1.0 - THETA)) / (1.0 - zeta(2) / zeta_all);
        Self { ranks, zeta: zeta_all, alpha: 1.0 / (1.0 - THETA), eta }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the rank is not negative and at most the number of ranks"
    )]
    pub(super) fn next(&self, random: &mut SmallRng) -> u64 {
        let drawn: f64 = random.random();
        let share = drawn * self.zeta;
        if share < 1.0 || self.ranks < 2.0 {
            return 0;
        }
        if share < 1.0 + 0.5_f64.powf(THETA) {
            return 1;
        }
        let rank = self.ranks * (self.eta * drawn - self.eta + 1.0).powf(self.alpha);
        rank.min(self.ranks - 1.0) as u64
    }
}

/// The sum of `1 / i^THETA` for `i` from 1 to `count`.
#[expect(clippy::cast_precision_loss, reason = "a number of keys is far below 2^53")]
fn zeta(count: u64) -> f64 {
    let summed = count.min(ZETA_SUMMED);
    let sum: f64 = (1..=summed).map(|i| (i as f64).powf(-THETA)).sum();
    if summed == count {
        return sum;
    }
    // Euler and Maclaurin: the integral, and half of the difference at its ends.
    let (from, to) = (summed as f64, count as f64);
    let integral = (to.powf(1.0 - THETA) - from.powf(1.0 - THETA)) / (1.0 - THETA);
    sum + integral + (to.powf(-THETA) - from.powf(-THETA)) / 2.0
}

/// FNV-1a over the eight bytes of a number, as YCSB's `fnvhash64`.
fn fnv(number: u64) -> u64 {
    number.to_le_bytes().iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
mod tests {
    use std::collections::HashMap;

    use rand::SeedableRng as _;

    use super::*;

    const KEYS: u64 = 1_000;
    const DRAWS: usize = 200_000;

    fn draw(distribution: Distribution, seed: u64) -> Vec<u64> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut chooser = Chooser::new(distribution, KEYS, 0, 1);
        (0..DRAWS).map(|_| chooser.next(&mut random, KEYS)).collect()
    }

    fn counts(drawn: &[u64]) -> Vec<(u64, usize)> {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        for &key in drawn {
            *counts.entry(key).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|&(key, count)| (std::cmp::Reverse(count), key));
        counts
    }

    #[test]
    fn every_distribution_stays_in_bounds_and_repeats_with_its_seed() {
        for distribution in [
            Distribution::Uniform,
            Distribution::Zipfian,
            Distribution::Sequential,
            Distribution::Latest,
        ] {
            let drawn = draw(distribution, 7);
            assert!(drawn.iter().all(|&key| key < KEYS), "{distribution:?}");
            assert_eq!(drawn, draw(distribution, 7), "{distribution:?}");
            if distribution != Distribution::Sequential {
                assert_ne!(drawn, draw(distribution, 8), "{distribution:?}");
            }
            let mut random = SmallRng::seed_from_u64(1);
            let mut one = Chooser::new(distribution, 1, 0, 1);
            assert!((0..1_000).all(|_| one.next(&mut random, 1) == 0), "{distribution:?}");
        }
    }

    #[test]
    fn uniform_draws_every_key_about_as_often() {
        let counts = counts(&draw(Distribution::Uniform, 1));
        assert_eq!(counts.len(), 1_000);
        let (most, least) = (counts[0].1, counts[999].1);
        assert!(most < 300 && least > 120, "{most} {least}, 200 on average");
    }

    #[test]
    fn zipfian_ranks_follow_the_law() {
        let mut random = SmallRng::seed_from_u64(1);
        let zipfian = Zipfian::new(KEYS);
        let drawn: Vec<u64> = (0..DRAWS).map(|_| zipfian.next(&mut random)).collect();
        let total = zeta(KEYS);
        for rank in [0_u64, 1, 9, 99] {
            let seen = drawn.iter().filter(|&&key| key == rank).count() as f64;
            let law = DRAWS as f64 / ((rank + 1) as f64).powf(THETA) / total;
            assert!((seen / law - 1.0).abs() < 0.25, "rank {rank}: {seen}, by the law {law}");
        }
    }

    #[test]
    fn scrambled_hot_keys_are_hot_and_lie_scattered() {
        let counts = counts(&draw(Distribution::Zipfian, 1));
        // The first rank of 10^10 has a share of 1 / 26.47.
        let share = counts[0].1 as f64 / DRAWS as f64;
        assert!((0.03..0.05).contains(&share), "{share}");
        let hottest: Vec<u64> = counts.iter().take(4).map(|&(key, _)| key).collect();
        assert!(hottest.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 1), "{hottest:?}");
    }

    #[test]
    fn latest_prefers_the_newest_key_also_when_keys_are_added() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut chooser = Chooser::new(Distribution::Latest, KEYS, 0, 1);
        for known in [KEYS, KEYS + 500] {
            let drawn: Vec<u64> = (0..10_000).map(|_| chooser.next(&mut random, known)).collect();
            assert_eq!(counts(&drawn)[0].0, known - 1);
            assert!(drawn.iter().all(|&key| key < known));
        }
    }

    #[test]
    fn sequential_lanes_cover_all_keys_together() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut seen = vec![0; 10];
        for lane in 0..5 {
            let mut chooser = Chooser::new(Distribution::Sequential, 10, lane, 5);
            for _ in 0..2 {
                seen[usize::try_from(chooser.next(&mut random, 10)).expect("small")] += 1;
            }
        }
        assert_eq!(seen, [1; 10]);
    }

    #[test]
    fn zeta_by_integral_agrees_with_the_sum() {
        let count = 3_000_000_u64;
        let summed: f64 = (1..=count).map(|i| (i as f64).powf(-THETA)).sum();
        assert!((zeta(count) - summed).abs() < 1e-6);
        assert!((zeta(10_000_000_000) - SCRAMBLED_ZETA).abs() < 1e-3);
    }
}
