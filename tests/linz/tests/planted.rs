//! Histories whose verdict is known: what each fault of a replicated store looks like to its clients, and what looks like a fault and is
//! none.
//!
//! A history is drawn: a line for each operation, time from left to right, `[` where it is called, `]` where it returns. `put 1 = 5`
//! stores the value 1 and is given version 5, `get = 1@5` finds it, `?` in the place of `]` is an unknown outcome.

use linz::{
    Action, Answer, Call, Counts, History, Outcome, STATES_MAX, Value, Verdict, Version, check,
};

#[test]
fn one_client_reads_what_it_wrote() {
    fine(&[
        "[get = missing]",
        "                [put 1 = 5]",
        "                            [get = 1@5]",
        "                                        [delete = yes]",
        "                                                       [get = missing]",
        "                                                                       [delete = no]",
    ]);
}

#[test]
fn a_read_beside_a_write_may_see_either() {
    fine(&["[put 1 = 5]            [get = 1@5]", "   [get = missing]"]);
    fine(&["[put 1 = 5            ]", "   [get = 1@5] [get = 1@5]"]);
    wrong(
        "no order explains",
        &["[put 1 = 5                 ]", "   [get = 1@5] [get = missing]"],
        &["put 1", "get -> 1, version 5", "get -> missing"],
    );
}

#[test]
fn a_stale_read_is_found() {
    wrong(
        "no order explains",
        &[
            "[put 1 = 5]",
            "            [put 2 = 6]",
            "                        [get = 1@5]",
            "            [get = 1@5]",
            "                                    [get = 2@6]",
        ],
        &["put 1", "put 2 -> version 6", "get -> 1, version 5"],
    );
}

#[test]
fn an_old_leader_that_answers_after_the_new_one_is_found() {
    // Both reads are beside the write, but the second client read after the first one.
    wrong(
        "no order explains",
        &[
            "[put 1 = 5]",
            "            [put 2 = 6                         ]",
            "               [get = 2@6]",
            "                           [get = 1@5]",
        ],
        &["put 1", "put 2", "get -> 2, version 6", "get -> 1, version 5"],
    );
}

#[test]
fn a_lost_acknowledged_write_is_found() {
    wrong(
        "no order explains",
        &["[put 1 = 5]", "            [get = missing]"],
        &["put 1 -> version 5", "get -> missing"],
    );
    wrong(
        "no order explains",
        &["[put 1 = 5]  [delete = no]"],
        &["put 1 -> version 5", "delete -> deleted: false"],
    );
}

#[test]
fn a_deleted_value_that_comes_back_is_found() {
    wrong(
        "no order explains",
        &["[put 1 = 5] [delete = yes] [get = 1@5]"],
        &["put 1", "delete -> deleted: true", "get -> 1, version 5"],
    );
}

#[test]
fn a_failed_write_that_is_seen_is_found() {
    wrong(
        "certainly not applied",
        &["[put 1 failed] [get = 1@5]"],
        &["put 1 -> failed", "get -> 1, version 5"],
    );
    wrong(
        "certainly not applied",
        &["[put 1 = 5] [put 2 if 4 = mismatch] [get = 2@6]"],
        &["put 2 if version 4 -> version mismatch", "get -> 2, version 6"],
    );
}

#[test]
fn a_write_of_unknown_outcome_may_be_applied_late_once_or_never() {
    fine(&["[put 1 ? [get = missing] [put 2 = 5] [get = 1@6]"]);
    fine(&["[put 1 ? [get = missing] [put 2 = 5] [get = 2@5]"]);
    fine(&[
        "[put 1 = 5] [delete ? [get = 1@5] [get = 1@5] [get = missing] [put 2 = 8] [get = 2@8]",
    ]);
    wrong(
        "no order explains",
        &["[put 1 = 5] [delete ? [get = missing] [put 2 = 8] [get = missing]"],
        &["put 1", "get -> missing", "put 2 -> version 8", "get -> missing"],
    );
}

#[test]
fn a_write_that_was_applied_twice_is_found() {
    wrong(
        "applied twice",
        &["[put 1 = 5]", "            [put 2 = 6]", "                        [get = 1@7]"],
        &["put 1 -> version 5", "get -> 1, version 7"],
    );
    wrong(
        "applied twice",
        &["[put 1 ?", "    [get = 1@5] [get = 1@6]"],
        &["put 1 -> unknown", "get -> 1, version 5", "get -> 1, version 6"],
    );
    wrong(
        "no order explains",
        &["[put 1 ?", "    [get = 1@5] [delete = yes] [get = missing] [get = 1@5]"],
        &["put 1", "delete -> deleted: true", "get -> 1, version 5"],
    );
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    wrong("nobody wrote", &["[put 1 = 5] [get = 3@6]"], &["get -> 3, version 6"]);
}

#[test]
fn a_value_that_is_read_before_it_is_written_is_found() {
    wrong(
        "before it was written",
        &["[get = 1@5] [put 1 = 5]"],
        &["get -> 1, version 5", "put 1 -> version 5"],
    );
}

#[test]
fn versions_that_go_back_are_found() {
    wrong(
        "no order explains",
        &["[put 1 = 6] [put 2 = 5]"],
        &["put 1 -> version 6", "put 2 -> version 5"],
    );
    wrong(
        "no order explains",
        &["[put 1 = 6] [delete = yes] [put 2 = 5]"],
        &["put 1 -> version 6", "put 2 -> version 5"],
    );
    fine(&["[put 1 = 6]", "  [put 2 = 5]"]);
    fine(&["[put 1 = 6] [put 2 ? [put 3 = 9] [get = 2@12]"]);
    wrong(
        "no order explains",
        &["[put 1 = 6] [put 2 ? [put 3 = 9] [get = 2@8]"],
        &["put 2 -> unknown", "put 3 -> version 9", "get -> 2, version 8"],
    );
}

#[test]
fn a_version_that_was_given_out_twice_is_found() {
    wrong(
        "same version",
        &["[put 1 = 5] [put 2 = 5]"],
        &["put 1 -> version 5", "put 2 -> version 5"],
    );
    wrong("means absent", &["[put 1 = 0]"], &["put 1 -> version 0"]);
}

#[test]
fn a_condition_that_was_met_twice_is_found() {
    wrong(
        "no order explains",
        &["[put 1 = 5]", "            [put 2 if 5 = 6]", "            [put 3 if 5 = 7]"],
        &["put 1", "put 2 if version 5 -> version 6", "put 3 if version 5 -> version 7"],
    );
    wrong(
        "no order explains",
        &["[put 1 if 0 = 5]", "[put 2 if 0 = 6]"],
        &["put 1 if version 0 -> version 5", "put 2 if version 0 -> version 6"],
    );
    fine(&["[put 1 if 0 = 5]", "[delete = yes  ]", "[put 2 if 0 = 6]"]);
    wrong(
        "no order explains",
        &["[put 1 = 5]", "            [delete if 5 = yes]", "            [put 3 if 5 = 7]"],
        &["put 1", "delete if version 5 -> deleted: true", "put 3 if version 5 -> version 7"],
    );
}

#[test]
fn a_condition_that_held_must_not_be_refused() {
    wrong(
        "no order explains",
        &["[put 1 = 5] [put 2 if 5 = mismatch]"],
        &["put 1 -> version 5", "put 2 if version 5 -> version mismatch"],
    );
    wrong(
        "no order explains",
        &["[put 2 if 0 = mismatch]"],
        &["put 2 if version 0 -> version mismatch"],
    );
    fine(&["[put 1 = 5] [put 2 if 4 = mismatch] [delete if 0 = mismatch]"]);
    // A write that nobody read came between.
    fine(&["[put 1 = 5] [put 9 ? [put 2 if 5 = mismatch]"]);
    fine(&["[put 1 = 5] [put 9 if 5 ? [put 2 if 5 = mismatch]"]);
    fine(&["[put 1 = 5] [delete if 5 ? [put 2 if 5 = mismatch] [put 3 if 0 = 8]"]);
    wrong(
        "no order explains",
        &["[put 1 = 5] [put 9 if 4 ? [put 2 if 5 = mismatch]", " [put 3 = 4]"],
        &["put 1", "put 3 -> version 4", "put 2 if version 5 -> version mismatch"],
    );
}

#[test]
fn a_delete_on_a_condition_removes_only_that_version() {
    fine(&["[put 1 = 5] [delete if 5 = yes] [delete if 0 = no] [delete if 5 = mismatch]"]);
    wrong(
        "no order explains",
        &["[put 1 = 5] [put 2 = 6] [delete if 5 = yes]"],
        &["put 1", "put 2 -> version 6", "delete if version 5 -> deleted: true"],
    );
    wrong("had to be absent", &["[put 1 = 5] [delete if 0 = yes]"], &["delete if version 0"]);
    wrong("was not refused", &["[delete if 5 = no]"], &["delete if version 5 -> deleted: false"]);
}

#[test]
fn writes_of_unknown_outcome_explain_only_so_much() {
    // Each of the Deletes removes something that an unread write stored, of which there is one.
    fine(&["[put 1 ? [delete = yes]"]);
    wrong(
        "no order explains",
        &["[put 1 ? [delete = yes] [delete = yes]"],
        &["delete -> deleted: true", "delete -> deleted: true"],
    );
    fine(&["[put 1 ? [put 2 if 0 ? [delete = yes] [delete = yes]"]);
    // The write was called too late for the first of them.
    wrong("no order explains", &["[delete = yes] [put 1 ?"], &["delete -> deleted: true"]);
    wrong(
        "no order explains",
        &["[put 1 if 0 ? [delete = yes] [delete = yes]"],
        &["delete -> deleted: true", "delete -> deleted: true"],
    );
    wrong(
        "no order explains",
        &["[put 1 = 5] [get = missing] [delete if 5 ?"],
        &["put 1 -> version 5", "get -> missing"],
    );
    wrong(
        "no order explains",
        &["[put 1 = 5] [put 2 if 5 = mismatch] [put 9 if 5 ?"],
        &["put 1 -> version 5", "put 2 if version 5 -> version mismatch"],
    );
    fine(&["[put 1 = 5] [delete ? [put 2 if 0 ? [put 4 if 7 = 8]"]);
    // A Delete on a version that nobody knows removes what nobody read, once.
    fine(&["[put 1 ? [put 2 ? [delete if 9 ? [delete if 0 = mismatch] [get = missing]"]);
    wrong(
        "no order explains",
        &[
            "[put 1 ? [put 2 ? [delete if 9 ? [delete if 0 = mismatch] [get = missing]",
            &format!("{:75}[delete if 0 = mismatch] [get = missing]", ""),
        ],
        &["delete if version 0", "get -> missing", "delete if version 0", "get -> missing"],
    );
    // First gone, then created: two writes that nobody read.
    fine(&["[put 1 = 5] [delete ? [put 2 if 0 ? [put 3 if 5 = mismatch] [put 4 if 7 = 8]"]);
}

#[test]
fn each_key_is_by_itself() {
    let history = History::new(10);
    let put = history.call(1, "a", Action::put(Value(1)), 0).expect("there is room");
    history.returns(put, Outcome::Ok(Answer::Stored(Version(1))), 1);
    let get = history.call(1, "b", Action::Get, 2).expect("there is room");
    history.returns(get, Outcome::Ok(Answer::Missing), 3);
    assert!(matches!(check(&history, STATES_MAX), Verdict::Linearizable));
    let get = history.call(1, "a", Action::Get, 2).expect("there is room");
    history.returns(get, Outcome::Ok(Answer::Missing), 3);
    let Verdict::Violation(violation) = check(&history, STATES_MAX) else { panic!("it is lost") };
    assert_eq!(violation.key, "a");
}

#[test]
fn a_search_that_gives_up_is_inconclusive_and_no_pass() {
    let history = drawn(&["[put 1 = 5]", "[put 2 = 6]", "[delete = yes]", "[get = 2@6]"]);
    assert!(matches!(check(&history, STATES_MAX), Verdict::Linearizable));
    let Verdict::Inconclusive(gave_up) = check(&history, 1) else { panic!("one state is enough") };
    assert_eq!((gave_up.key.as_str(), gave_up.operations), ("k", 4));
    let refused = std::panic::catch_unwind(|| check(&history, 1).expect_linearizable("run 7"));
    let message = *refused.expect_err("it is no pass").downcast::<String>().expect("a text");
    assert!(message.starts_with("run 7: inconclusive"), "{message}");
}

#[test]
fn a_violation_counts_more_than_a_search_that_gave_up() {
    let history = drawn(&["[put 1 = 5]", "[put 2 = 6]", "[delete = yes]", "[get = 2@6]"]);
    let get = history.call(1, "other", Action::Get, 0).expect("there is room");
    history.returns(get, Outcome::Ok(Answer::Found(Value(1), Version(1))), 0);
    assert!(matches!(check(&history, 1), Verdict::Violation(_)));
}

#[test]
fn a_full_history_takes_no_more() {
    let history = History::new(2);
    let call = |action| history.call(1, "k", action, 0);
    let put = call(Action::put(Value(1))).expect("there is room");
    let _never_returns = call(Action::put(Value(2))).expect("there is room");
    assert!(call(Action::Get).is_none());
    history.returns(put, Outcome::Failed, 0);
    assert_eq!(history.counts(), Counts { ok: 0, failed: 1, unknown: 1 });
}

#[test]
fn a_violation_tells_only_what_is_needed() {
    // The first Delete explains nothing after the second Put.
    wrong(
        "no order explains",
        &["[put 1 = 5] [delete = yes] [get = missing] [put 2 = 6] [get = 2@6] [get = missing]"],
        &["put 2", "get -> 2, version 6", "get -> missing"],
    );
}

#[test]
fn a_violation_reads_like_a_story() {
    let history = drawn(&["[put 1 = 5] [put 2 = 6] [get = 1@5]"]);
    let Verdict::Violation(violation) = check(&history, STATES_MAX) else { panic!("it is stale") };
    assert_eq!(
        violation.to_string(),
        "not linearizable: key \"k\": no order explains these operations:\n  \
         client 0: put 1 -> version 5   [#1 at 0, #2 at 10]\n  \
         client 0: put 2 -> version 6   [#3 at 12, #4 at 22]\n  \
         client 0: get -> 1, version 5   [#5 at 24, #6 at 34]"
    );
}

fn fine(drawing: &[&str]) {
    check(&drawn(drawing), STATES_MAX).expect_linearizable("it is fine");
}

/// The violation of `drawing` is `why`, and tells of these operations (the beginning of each, without the client) and no others.
fn wrong(why: &str, drawing: &[&str], operations: &[&str]) {
    let Verdict::Violation(violation) = check(&drawn(drawing), STATES_MAX) else {
        panic!("this passes: {drawing:#?}")
    };
    assert!(violation.why.contains(why), "{violation}");
    let found: Vec<_> = violation.operations.iter().map(ToString::to_string).collect();
    let is_told = |wanted: &&str| found.iter().any(|line| line.contains(&format!(": {wanted}")));
    assert!(operations.iter().all(is_told), "{operations:?} expected of {violation}");
    assert_eq!(found.len(), operations.len(), "{violation}");
}

/// The history of a drawing. Where calls and returns are in the same column, calls come first.
fn drawn(drawing: &[&str]) -> History {
    let mut events = Vec::new();
    let mut operations = Vec::new();
    for (client, line) in drawing.iter().enumerate() {
        let mut at = 0;
        while let Some(length) = line[at..].find('[') {
            let start = at + length;
            let end = start + line[start..].find(['?', ']']).expect("it ends");
            let (action, outcome) = parse(&line[start + 1..end]);
            events.push((start, 0, operations.len()));
            if line.as_bytes()[end] == b']' {
                events.push((end, 1, operations.len()));
            }
            operations.push((client, action, outcome));
            at = end;
        }
    }
    events.sort_unstable();
    let history = History::new(operations.len() + 10);
    let mut calls: Vec<Option<Call>> = operations.iter().map(|_| None).collect();
    for (column, _, index) in events {
        let (client, action, outcome) = operations[index];
        let client = u32::try_from(client).expect("a few lines");
        match calls[index].take() {
            None => calls[index] = history.call(client, "k", action, column as u64),
            Some(call) => history.returns(call, outcome, column as u64),
        }
    }
    history
}

fn parse(text: &str) -> (Action, Outcome) {
    let words: Vec<&str> = text.split_whitespace().filter(|word| *word != "=").collect();
    let number = |word: &str| word.parse::<u64>().unwrap_or_else(|_| panic!("{word} of {text:?}"));
    let condition = words.iter().position(|word| *word == "if");
    let if_version = condition.map(|at| Version(number(words[at + 1])));
    let action = match words[0] {
        "get" => Action::Get,
        "put" => Action::Put { value: Value(number(words[1])), if_version },
        "delete" => Action::Delete { if_version },
        other => panic!("{other} of {text:?}"),
    };
    let outcome = match (*words.last().expect("not empty"), action) {
        ("failed", _) => Outcome::Failed,
        ("missing", _) => Outcome::Ok(Answer::Missing),
        ("mismatch", _) => Outcome::Ok(Answer::Mismatch),
        (word @ ("yes" | "no"), _) => Outcome::Ok(Answer::Deleted(word == "yes")),
        (word, Action::Get) => {
            let (value, version) = word.split_once('@').expect("value@version");
            Outcome::Ok(Answer::Found(Value(number(value)), Version(number(version))))
        }
        (word, Action::Put { .. }) if text.contains('=') => {
            Outcome::Ok(Answer::Stored(Version(number(word))))
        }
        _ => Outcome::Unknown,
    };
    (action, outcome)
}
