//! What becomes of commands between their callers and the log, told as stories: who is in the next entry, who is told what, and that nobody is told
//! "not applied" of a command that may have been applied, or still will be.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::time::{advance, timeout};

use super::*;
use crate::command::Change;
use crate::types::{Key, RequestId, Value, Version};

const PATIENCE: Duration = Duration::from_secs(4);

/// One millisecond less.
const ALMOST: Duration = Duration::from_millis(3_999);

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);

fn proposals() -> Proposals {
    Proposals::new(Budget::new(64 << 20), PATIENCE)
}

fn put(name: &str) -> Command {
    put_bytes(name, 1)
}

fn put_bytes(name: &str, value_bytes: usize) -> Command {
    let key = Key::new(name.to_owned()).expect("a short name");
    let value = Value::Raw(Bytes::from(vec![7; value_bytes]));
    let change = Change::Put { key, value, ttl: None, if_version: None };
    Command { change, request_id: None }
}

fn repeatable(name: &str) -> Command {
    Command { request_id: RequestId::new(name), ..put(name) }
}

fn delete(name: &str) -> Command {
    let key = Key::new(name.to_owned()).expect("a short name");
    Command { change: Change::Delete { key, if_version: None }, request_id: None }
}

/// A command that counts for so many bytes in all.
fn of_bytes(bytes: usize) -> Command {
    let command = put_bytes("k", bytes - COMMAND_OVERHEAD_BYTES - 1);
    assert_eq!(size_bytes(&command), bytes);
    command
}

fn stored(version: u64) -> Outcome {
    Outcome::Put { version: Version(version) }
}

/// The keys of what would be one entry, in its order.
fn keys(entry: &[Queued]) -> Vec<&str> {
    let key = |command| match command {
        &Command {
            change: Change::Put { ref key, .. } | Change::Delete { ref key, .. }, ..
        } => key.as_str(),
        other => panic!("{other:?} has no key"),
    };
    entry.iter().flat_map(Queued::commands).map(key).collect()
}

/// What a future has to say without waiting.
fn now<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

fn waits(ticket: &mut Ticket) -> bool {
    now(ticket).is_none()
}

fn refused(ticket: &mut Ticket) -> Reason {
    now(ticket).expect("it was answered").expect_err("it was refused").reason()
}

fn reply(answer: &mut oneshot::Receiver<Reply>) -> Reply {
    answer.try_recv().expect("the node was answered")
}

fn no_leader() -> Error {
    Error::new(Reason::NoLeader, "shard 1 has no leader now")
}

fn no_quorum() -> Error {
    Error::new(Reason::NoQuorum, "nobody answers")
}

#[test]
fn what_waits_becomes_one_entry_in_the_order_of_the_calls() {
    let proposals = proposals();
    let mut a = proposals.push(put("a")).expect("room");
    let mut b = proposals.push_passed_on(vec![put("b1"), put("b2")]).expect("room");
    let mut c = proposals.push(put("c")).expect("room");
    let entry = proposals.take(true);
    assert_eq!(keys(&entry), ["a", "b1", "b2", "c"]);
    assert!(proposals.take(true).is_empty(), "nothing is taken twice");

    let mut outcomes = (1..).map(stored);
    for queued in entry {
        queued.answer(&mut outcomes);
    }
    assert_eq!(now(&mut a).expect("answered").expect("applied"), stored(1));
    assert_eq!(reply(&mut b), Reply::Applied(vec![stored(2), stored(3)]));
    assert_eq!(now(&mut c).expect("answered").expect("applied"), stored(4));
}

#[test]
fn who_finds_no_outcome_left_is_told_that_nobody_knows() {
    let proposals = proposals();
    let mut a = proposals.push(put("a")).expect("room");
    for queued in proposals.take(true) {
        queued.answer(&mut std::iter::empty());
    }
    assert_eq!(refused(&mut a), Reason::OutcomeUnknown);
}

#[test]
fn commands_gather_in_an_entry_up_to_its_bytes_and_one_that_is_larger_goes_alone() {
    let proposals = proposals();
    let half = ENTRY_BYTES_MAX / 2;
    let sizes = [half, half, half, half + 1, 3 * ENTRY_BYTES_MAX, 1000];
    let _tickets: Vec<_> =
        sizes.iter().map(|bytes| proposals.push(of_bytes(*bytes)).expect("room")).collect();
    let mut entries = Vec::new();
    loop {
        let entry = proposals.take(true);
        if entry.is_empty() {
            break;
        }
        entries.push(entry.iter().flat_map(Queued::commands).map(size_bytes).collect::<Vec<_>>());
    }
    let expected: [&[usize]; 5] =
        [&[half, half], &[half], &[half + 1], &[3 * ENTRY_BYTES_MAX], &[1000]];
    assert_eq!(entries, expected);
}

#[test]
fn what_a_node_passes_on_stays_together_and_shares_the_entry_with_others() {
    let proposals = proposals();
    let half = || vec![of_bytes(ENTRY_BYTES_MAX / 4); 2];
    let _answers = [half(), vec![put("small")], half(), [half(), half(), half()].concat()]
        .map(|commands| proposals.push_passed_on(commands).expect("room"));
    let _own = proposals.push(put("own")).expect("room");
    let counts = || -> Vec<usize> {
        proposals.take(true).iter().map(|queued| queued.commands().len()).collect()
    };
    assert_eq!([counts(), counts(), counts(), counts()], [vec![2, 1], vec![2], vec![6], vec![1]]);
}

#[test]
fn a_spent_budget_refuses_and_what_it_refused_is_never_proposed() {
    let budget = Budget::new(4096);
    let proposals = Proposals::new(budget.clone(), PATIENCE);
    let other_group = Proposals::new(budget, PATIENCE);
    // 2 KiB, and 1 KiB and a bit, which counts for 2.
    let mut first = proposals.push(of_bytes(2048)).expect("room");
    let mut passed_on = other_group.push_passed_on(vec![put("n1"), of_bytes(1000)]).expect("room");

    let error = proposals.push(put("late")).expect_err("the budget is spent");
    assert_eq!((error.reason(), error.retry_after()), (Reason::Overloaded, Some(RETRY_AFTER)));
    let fact = |name| error.metadata().iter().find(|(known, _)| *known == name).map(|(_, v)| &**v);
    let facts = ["limit", "max", "got", "unit"].map(|name| fact(name).expect("a fact"));
    assert_eq!(facts, ["writes in flight", "4096", "4096", "bytes"]);
    let error = other_group.push_passed_on(vec![put("late")]).expect_err("for nodes alike");
    assert_eq!(error.reason(), Reason::Overloaded);

    // On its way it counts as well.
    let (entry, others) = (proposals.take(true), other_group.take(true));
    assert_eq!((keys(&entry), keys(&others)), (vec!["k"], vec!["n1", "k"]));
    assert!(proposals.push(put("late")).is_err());
    for queued in entry {
        queued.answer(&mut std::iter::once(stored(1)));
    }
    assert!(now(&mut first).expect("answered").is_ok());
    proposals.push(of_bytes(2048)).expect("room again");
    assert!(passed_on.try_recv().is_err(), "it is still on its way");
}

#[test]
fn a_command_larger_than_the_budget_is_taken_when_nothing_else_is_on_its_way() {
    let proposals = Proposals::new(Budget::new(4096), PATIENCE);
    let small = proposals.push(put("small")).expect("room");
    assert_eq!(refusal_of(proposals.push(of_bytes(5000))), Reason::Overloaded);
    drop((small, proposals.take(true)));
    let _large = proposals.push(of_bytes(5000)).expect("it counts as all there is");
    assert_eq!(refusal_of(proposals.push(put("small"))), Reason::Overloaded);
}

fn refusal_of(pushed: Result<Ticket>) -> Reason {
    pushed.expect_err("it was refused").reason()
}

#[test]
fn what_nobody_waits_for_is_not_proposed_and_gives_its_bytes_back() {
    let proposals = Proposals::new(Budget::new(4096), PATIENCE);
    let left = proposals.push(put("left")).expect("room");
    let given_up = proposals.push(put("given up")).expect("room");
    let gone = proposals.push_passed_on(vec![put("gone")]).expect("room");
    let _here = proposals.push(put("here")).expect("room");
    drop((left, gone));
    assert_eq!(given_up.give_up().reason(), Reason::Overloaded);
    let entry = proposals.take(true);
    assert_eq!(keys(&entry), ["here"]);
    for _ in 0..3 {
        std::mem::forget(proposals.push(put("k")).expect("the room of those who left"));
    }
}

#[test]
fn where_another_node_leads_what_was_passed_on_goes_back_and_is_not_passed_on_again() {
    let proposals = proposals();
    let mut passed_on = proposals.push_passed_on(vec![repeatable("theirs")]).expect("room");
    let _own = proposals.push(put("own")).expect("room");
    assert_eq!(keys(&proposals.take(false)), ["own"]);
    assert_eq!(reply(&mut passed_on), Reply::Refused(Refusal::NotLeader(None)));
}

#[test]
fn commands_put_back_are_in_front_in_their_order_and_their_callers_may_leave_again() {
    let proposals = proposals();
    let tickets = ["a", "b", "c"].map(|name| proposals.push(put(name)).expect("room"));
    let entry = proposals.take(true);
    let _d = proposals.push(put("d")).expect("room");
    let later = proposals.take(true);
    let _e = proposals.push(put("e")).expect("room");
    // The later entry is heard of first.
    proposals.put_back(later, &no_quorum());
    proposals.put_back(entry, &no_quorum());
    assert!(now(pin!(proposals.wait())).expect("there is something to propose"));
    assert_eq!(tickets[1].give_up().reason(), Reason::Overloaded, "certainly not applied");
    assert_eq!(keys(&proposals.take(true)), ["a", "c", "d", "e"]);
    assert_eq!(tickets[0].give_up().reason(), Reason::OutcomeUnknown, "it is on its way");
}

#[tokio::test(start_paused = true)]
async fn a_command_is_tried_again_until_its_callers_patience_is_spent() {
    let proposals = proposals();
    let mut early = proposals.push(put("early")).expect("room");
    advance(Duration::from_millis(1)).await;
    let mut late = proposals.push(put("late")).expect("room");
    advance(ALMOST).await;
    proposals.put_back(proposals.take(true), &no_quorum());
    assert_eq!(refused(&mut early), Reason::NoQuorum);
    assert!(waits(&mut late));
    assert_eq!(keys(&proposals.take(true)), ["late"]);
}

#[test]
fn another_node_is_told_at_once_of_what_was_not_applied_and_tries_again_itself() {
    let proposals = proposals();
    let mut passed_on = proposals.push_passed_on(vec![repeatable("theirs")]).expect("room");
    proposals.put_back(proposals.take(true), &no_quorum());
    assert_eq!(reply(&mut passed_on), Reply::Refused(Refusal::NotLeader(None)));
    assert!(proposals.take(true).is_empty());
}

#[test]
fn of_what_may_have_been_applied_only_commands_with_a_request_id_are_sent_again() {
    let proposals = proposals();
    let mut once = proposals.push(put("once")).expect("room");
    let mut again = proposals.push(repeatable("again")).expect("room");
    let mut theirs = proposals.push_passed_on(vec![repeatable("theirs")]).expect("room");
    let entry = proposals.take(true);
    let _next = proposals.push(put("next")).expect("room");
    proposals.lost(entry, "the connection broke");
    assert_eq!(refused(&mut once), Reason::OutcomeUnknown);
    let unknown = Refusal::Unknown("the connection broke".to_owned());
    assert_eq!(reply(&mut theirs), Reply::Refused(unknown));
    assert!(waits(&mut again));
    let entry = proposals.take(true);
    assert_eq!(keys(&entry), ["again", "next"]);
    for queued in entry {
        queued.answer(&mut std::iter::repeat(stored(8)));
    }
    assert_eq!(now(&mut again).expect("answered").expect("applied"), stored(8));
}

#[tokio::test(start_paused = true)]
async fn who_may_have_been_applied_once_is_never_told_that_it_was_not() {
    let proposals = proposals();
    let lost = |name| {
        let ticket = proposals.push(repeatable(name)).expect("room");
        proposals.lost(proposals.take(true), "the connection broke");
        ticket
    };
    // Gives up while it waits to be sent again; that it is sent is no harm.
    let gave_up = lost("gave up");
    proposals.without_leader(&no_leader());
    assert_eq!(gave_up.give_up().reason(), Reason::OutcomeUnknown);
    let entry = proposals.take(true);
    assert_eq!(keys(&entry), ["gave up"]);
    // Certainly not applied by the second attempt, which says nothing of the first.
    proposals.put_back(entry, &no_quorum());
    assert_eq!(gave_up.give_up().reason(), Reason::OutcomeUnknown);
    proposals.take(true);

    let mut refused_later = lost("refused later");
    for queued in proposals.take(true) {
        queued.refuse(no_quorum());
    }
    assert_eq!(refused(&mut refused_later), Reason::OutcomeUnknown);

    let mut leaderless = lost("leaderless");
    advance(PATIENCE).await;
    proposals.without_leader(&no_leader());
    assert_eq!(refused(&mut leaderless), Reason::OutcomeUnknown);

    let mut lost_late = proposals.push(repeatable("lost late")).expect("room");
    advance(PATIENCE).await;
    proposals.lost(proposals.take(true), "the connection broke");
    assert_eq!(refused(&mut lost_late), Reason::OutcomeUnknown);

    let mut closed = lost("closed");
    proposals.close();
    assert_eq!(refused(&mut closed), Reason::OutcomeUnknown);
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_callers_wait_for_their_patience_and_other_nodes_do_not() {
    let proposals = proposals();
    let mut early = proposals.push(put("early")).expect("room");
    let left = proposals.push(put("left")).expect("room");
    advance(Duration::from_millis(1)).await;
    let mut late = proposals.push(put("late")).expect("room");
    let mut theirs = proposals.push_passed_on(vec![put("theirs")]).expect("room");
    drop(left);
    advance(ALMOST).await;

    proposals.without_leader(&no_leader());
    let error = now(&mut early).expect("answered").expect_err("no leader came");
    assert_eq!(error.reason(), Reason::NoLeader);
    assert_eq!(error.message(), "shard 1 has no leader now; the write was not applied");
    assert_eq!(reply(&mut theirs), Reply::Refused(Refusal::NotLeader(None)));
    assert!(waits(&mut late));
    assert_eq!(keys(&proposals.take(true)), ["late"]);
}

#[test]
fn a_caller_that_gives_up_learns_whether_there_was_a_leader() {
    let proposals = proposals();
    let tickets = ["a", "b", "c"].map(|name| proposals.push(put(name)).expect("room"));
    proposals.without_leader(&no_leader());
    assert_eq!(tickets[0].give_up().reason(), Reason::NoLeader);
    proposals.with_leader();
    assert_eq!(tickets[1].give_up().reason(), Reason::Overloaded);
    let entry = proposals.take(true);
    assert_eq!(keys(&entry), ["c"]);
    // Whoever led it is gone before it was written.
    proposals.put_back(entry, &no_leader());
    assert_eq!(tickets[2].give_up().reason(), Reason::NoLeader);
}

#[test]
fn closing_refuses_all_that_wait_and_all_that_come_but_answers_what_is_on_its_way() {
    let proposals = proposals();
    let mut on_its_way = proposals.push(put("on its way")).expect("room");
    let mut sent_back = proposals.push(put("sent back")).expect("room");
    let mut entry = proposals.take(true);
    let mut waiting = proposals.push(put("waiting")).expect("room");
    let left = proposals.push(put("left")).expect("room");
    let mut theirs = proposals.push_passed_on(vec![put("theirs")]).expect("room");
    drop(left);

    proposals.close();
    assert_eq!(refused(&mut waiting), Reason::NotServing);
    let Reply::Refused(Refusal::NotHere(why)) = reply(&mut theirs) else {
        panic!("another node is told to look elsewhere")
    };
    assert_eq!(why, "the node is stopping");
    assert_eq!(refusal_of(proposals.push(put("late"))), Reason::NotServing);
    let late = proposals.push_passed_on(vec![put("late")]).expect_err("closed");
    assert_eq!(late.reason(), Reason::NotServing);
    assert_eq!(now(pin!(proposals.wait())), Some(false), "there is nothing to come");

    let back = entry.pop().into_iter().collect();
    proposals.put_back(back, &no_quorum());
    assert_eq!(refused(&mut sent_back), Reason::NoQuorum, "nothing waits in a closed queue");
    for queued in entry {
        queued.answer(&mut std::iter::once(stored(1)));
    }
    assert!(now(&mut on_its_way).expect("answered").is_ok());
    assert!(proposals.take(true).is_empty());
}

#[tokio::test]
async fn who_proposes_is_woken_by_a_command_by_one_that_comes_back_and_by_the_end() {
    let proposals = Arc::new(proposals());
    let woken = async |by: &mut dyn FnMut()| {
        let waits = Arc::clone(&proposals);
        let waiting = tokio::spawn(async move { waits.wait().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "there is nothing yet");
        by();
        timeout(DEADLINE, waiting).await.expect("it is woken").expect("no panic")
    };
    let mut tickets = Vec::new();
    assert!(woken(&mut || tickets.push(proposals.push(put("a")).expect("room"))).await);
    let mut entry = proposals.take(true);
    assert!(woken(&mut || proposals.put_back(std::mem::take(&mut entry), &no_quorum())).await);
    proposals.take(true);
    assert!(!woken(&mut || proposals.close()).await);
}

#[test]
fn only_deletes_make_room_on_a_full_disk() {
    let proposals = proposals();
    let _own = [delete("a"), put("b")].map(|command| proposals.push(command).expect("room"));
    let _theirs = [vec![delete("c"), delete("d")], vec![delete("e"), put("f")]]
        .map(|commands| proposals.push_passed_on(commands).expect("room"));
    let entry = proposals.take(true);
    let deletes: Vec<_> = entry.iter().map(Queued::is_delete).collect();
    assert_eq!(deletes, [true, false, true, false]);
}

#[test]
fn another_node_is_told_why_so_that_it_does_the_right_thing() {
    let why = || "why".to_owned();
    for (reason, expected) in [
        (Reason::NoLeader, Refusal::NotLeader(None)),
        (Reason::NoQuorum, Refusal::NoQuorum(why())),
        (Reason::Overloaded, Refusal::Overloaded(why())),
        (Reason::DiskFull, Refusal::DiskFull(why())),
        (Reason::FailedPrecondition, Refusal::Precondition(why())),
        (Reason::NotServing, Refusal::NotHere(why())),
    ] {
        let proposals = proposals();
        let mut theirs = proposals.push_passed_on(vec![put("theirs")]).expect("room");
        for queued in proposals.take(true) {
            queued.refuse(Error::new(reason, why()));
        }
        assert_eq!(reply(&mut theirs), Reply::Refused(expected), "{reason:?}");
    }
}
