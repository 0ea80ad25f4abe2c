//! How far a transfer of files is, and when it will be done if it goes on as before.
//!
//! The transport counts, anybody reads, any time. It is for people: the figures need not be of one moment.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Of one transfer.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of all files.
    total: AtomicU64,
    /// Bytes that the receiver has, from the beginning of the first file on.
    there: AtomicU64,
    /// Bytes that were sent: fewer, when the receiver had some of an earlier attempt.
    sent: AtomicU64,
    begun: OnceLock<Instant>,
}

/// What is to be seen of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Bytes that the receiver has.
    pub bytes: u64,
    /// Bytes that it shall have.
    pub of: u64,
    /// Time until it has them; `None` before anything was sent.
    pub left: Option<Duration>,
}

impl Progress {
    /// So many bytes are to be sent.
    pub fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.begun.get_or_init(Instant::now);
    }

    /// The receiver has what is before `position`.
    pub fn goes_on_at(&self, position: u64) {
        self.there.store(position, Ordering::Relaxed);
    }

    /// So many more bytes were sent.
    pub fn send(&self, bytes: u64) {
        self.there.fetch_add(bytes, Ordering::Relaxed);
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How far it is; `None` before it has begun.
    pub fn copied(&self) -> Option<Copied> {
        let begun = self.begun.get()?;
        let [bytes, of, sent] =
            [&self.there, &self.total, &self.sent].map(|count| count.load(Ordering::Relaxed));
        #[expect(clippy::cast_precision_loss, reason = "an estimate, for people")]
        let times = of.saturating_sub(bytes) as f64 / sent as f64;
        let left = (sent > 0)
            .then(|| Duration::try_from_secs_f64(begun.elapsed().as_secs_f64() * times).ok());
        Some(Copied { bytes, of, left: left.flatten() })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_left_takes_as_long_as_what_was_sent() {
        let progress = Progress::default();
        assert_eq!(progress.copied(), None);
        progress.begin(1_000);
        assert_eq!(progress.copied(), Some(Copied { bytes: 0, of: 1_000, left: None }));
        advance(Duration::from_secs(2)).await;
        progress.send(200);
        let left = Some(Duration::from_secs(8));
        assert_eq!(progress.copied(), Some(Copied { bytes: 200, of: 1_000, left }));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_receiver_had_before_says_nothing_about_speed() {
        let progress = Progress::default();
        progress.begin(1_000);
        progress.goes_on_at(600);
        advance(Duration::from_secs(1)).await;
        progress.send(100);
        let left = Some(Duration::from_secs(3));
        assert_eq!(progress.copied(), Some(Copied { bytes: 700, of: 1_000, left }));
    }
}
