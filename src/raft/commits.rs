//! Word of what is committed, held back for entries to carry it.
//!
//! openraft tells a follower at once what is committed, with a request of its own if there are no entries that could carry it. Under load there soon are, and then
//! half of all requests say nothing else. Nobody waits for them but reads on that follower, so they may wait for [`HOLD_MAX`].
//!
//! # Promise
//!
//! Every request with entries, and the first of a stream, is sent at once and in order. One that only says what is committed is sent after [`HOLD_MAX`] at the latest, or
//! when somebody asks, or not at all, if a later one says more. openraft counts what is acknowledged by log id, not by request: one that is not sent is missed by
//! nobody.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::types::{AppendRequest, LogId};

/// How long a follower may not know what is committed because of this.
pub(super) const HOLD_MAX: Duration = Duration::from_millis(5);

struct Held<S> {
    /// Asked again after its end, which may come while something is held back.
    requests: stream::Fuse<S>,
    /// The end of the log as of what was sent over this stream.
    sent: Option<LogId>,
    wanted: Arc<Notify>,
}

/// `requests` to one replica without those that need not be sent. `wanted` tells that a read waits for what is committed.
pub(super) fn hold_back<S>(
    requests: S,
    wanted: Arc<Notify>,
) -> impl Stream<Item = AppendRequest> + Send + 'static
where
    S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
{
    let held = Held { requests: requests.fuse(), sent: None, wanted };
    stream::unfold(held, |mut held| async move {
        let mut request = held.requests.next().await?;
        let deadline = Instant::now() + HOLD_MAX;
        while held.says_only_commit(&request) {
            let later = tokio::select! {
                biased;
                later = held.requests.next() => later,
                () = held.wanted.notified() => None,
                () = sleep_until(deadline) => None,
            };
            let Some(later) = later else { break };
            request = later;
        }
        held.sent = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        Some((request, held))
    })
}

impl<S: Stream> Held<S> {
    /// Whether the receiver needs nothing of `request` but what is committed.
    fn says_only_commit(&self, request: &AppendRequest) -> bool {
        request.entries.is_empty() && self.sent.is_some() && request.prev_log_id == self.sent
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::raft::log::tests::entry;
    use crate::raft::types::Vote;

    /// Requests that the test hands in, and what is sent of them.
    fn held() -> (mpsc::Sender<AppendRequest>, Arc<Notify>, impl Stream<Item = AppendRequest>) {
        let (sender, mut receiver) = mpsc::channel(16);
        let requests = stream::poll_fn(move |context| receiver.poll_recv(context));
        let wanted = Arc::<Notify>::default();
        (sender, Arc::clone(&wanted), hold_back(requests, wanted).boxed())
    }

    /// Entry `index` behind the one before it; `with` it, or only what is committed.
    fn request(index: u64, with: bool, commit: u64) -> AppendRequest {
        let log_id = |index| entry(1, index, 0).log_id;
        AppendRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(log_id(if with { index - 1 } else { index })),
            entries: if with { vec![entry(1, index, 10)] } else { Vec::new() },
            leader_commit: Some(log_id(commit)),
        }
    }

    fn commit(request: &AppendRequest) -> u64 {
        request.leader_commit.map_or(0, |log_id| log_id.index)
    }

    #[tokio::test(start_paused = true)]
    async fn entries_carry_what_is_committed() {
        let (sender, _, mut sent) = held();
        for request in [request(5, true, 3), request(5, false, 4), request(5, false, 5)] {
            sender.send(request).await.expect("it is open");
        }
        sender.send(request(6, true, 5)).await.expect("it is open");
        let first = sent.next().await.expect("the first");
        assert_eq!((first.entries.len(), commit(&first)), (1, 3));
        let second = sent.next().await.expect("the one with the entry");
        assert_eq!((second.entries.len(), commit(&second)), (1, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn without_entries_it_is_told_in_time_or_when_asked() {
        let (sender, wanted, mut sent) = held();
        sender.send(request(5, true, 3)).await.expect("it is open");
        sent.next().await.expect("the first");
        let begun = Instant::now();
        sender.send(request(5, false, 5)).await.expect("it is open");
        assert_eq!(commit(&sent.next().await.expect("it is told")), 5);
        assert_eq!(begun.elapsed(), HOLD_MAX);
        // Asked for, at once.
        sender.send(request(5, false, 6)).await.expect("it is open");
        let asks = async {
            tokio::task::yield_now().await;
            wanted.notify_waiters();
        };
        let (told, ()) = tokio::join!(sent.next(), asks);
        assert_eq!((commit(&told.expect("it is told")), begun.elapsed()), (6, HOLD_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_commits_does_not_put_it_off_for_ever() {
        let (sender, _, mut sent) = held();
        sender.send(request(5, true, 3)).await.expect("it is open");
        sent.next().await.expect("the first");
        let begun = Instant::now();
        let commits = async {
            for commit in 4..40 {
                sender.send(request(5, false, commit)).await.expect("it is open");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let told = async {
            sent.next().await.expect("it is told");
            begun.elapsed()
        };
        tokio::select! {
            elapsed = told => assert_eq!(elapsed, HOLD_MAX),
            () = commits => panic!("nothing was told"),
        }
    }

    /// As openraft's streams do: they must not be asked again once they have ended.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_meanwhile_gives_what_was_held_back_and_ends() {
        let requests = [request(5, true, 3), request(5, false, 4)];
        let requests = stream::unfold(requests.into_iter(), |mut rest| async move {
            rest.next().map(|request| (request, rest))
        });
        let sent: Vec<_> = hold_back(requests.boxed(), Arc::default()).collect().await;
        assert_eq!(sent.iter().map(commit).collect::<Vec<_>>(), [3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_request_and_one_that_probes_are_sent_at_once() {
        let (sender, _, mut sent) = held();
        let begun = Instant::now();
        sender.send(request(5, false, 3)).await.expect("it is open");
        sender.send(request(2, false, 3)).await.expect("it is open");
        sent.next().await.expect("the first");
        let probe = sent.next().await.expect("the probe");
        assert_eq!(
            (probe.prev_log_id.map(|log_id| log_id.index), begun.elapsed()),
            (Some(2), Duration::ZERO)
        );
        drop(sender);
        assert!(sent.next().await.is_none());
    }
}
