//! What other nodes said about who leads a group.
//!
//! The replica of the group here, where there is one, hears of every new leader; others' word counts only until it has heard something new. Without a replica it is all there is:
//! the node that led last is asked again, and when it does not lead any more, whoever it names; when nobody knows, the nodes that hold the group in turn.
//!
//! Callers: `place/`.

use crate::raft::types::NodeName;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Hearsay {
    /// Whom the replica here took for the leader when the others spoke.
    believed: Option<NodeName>,
    /// Who leads, by the others' word.
    leader: Option<NodeName>,
    /// Which of the others is asked when nobody knows.
    turn: usize,
}

impl Hearsay {
    /// Whom to ask, when the replica here takes `believed` for the leader and `others` hold the group.
    pub(super) fn whom_to_ask(
        &mut self,
        believed: Option<&NodeName>,
        others: &[NodeName],
    ) -> Option<NodeName> {
        let leader = self.leader(believed);
        leader.or_else(|| others.get(self.turn % others.len().max(1)).cloned())
    }

    /// Who leads, where that is known; the replica here takes `believed` for it.
    pub(super) fn leader(&mut self, believed: Option<&NodeName>) -> Option<NodeName> {
        if self.believed.as_ref() != believed {
            self.believed = believed.cloned();
            self.leader = None;
        }
        self.leader.as_ref().or(believed).cloned()
    }

    /// `node` has served as the leader.
    pub(super) fn has_led(&mut self, node: &NodeName) {
        if self.leader.as_ref() != Some(node) {
            self.leader = Some(node.clone());
        }
    }

    /// `node`, which was asked, does not lead, or does not answer; `hint`: who does, by its word.
    pub(super) fn not_leading(
        &mut self,
        node: &NodeName,
        hint: Option<NodeName>,
        others: &[NodeName],
    ) {
        if hint.as_ref().is_some_and(|hint| hint != node) {
            self.leader = hint;
            return;
        }
        if self.leader.as_ref() == Some(node) {
            self.leader = None;
        }
        // Several that were asked at the same time count once.
        if others.get(self.turn % others.len().max(1)) == Some(node) {
            self.turn = self.turn.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName(name.to_owned())
    }

    #[test]
    fn without_a_replica_the_others_are_asked_in_turn_until_one_leads() {
        let others = ["n1", "n2", "n3"].map(node);
        let mut hearsay = Hearsay::default();
        assert_eq!(hearsay.whom_to_ask(None, &[]), None);
        for expected in ["n1", "n2", "n3", "n1"] {
            let asked = hearsay.whom_to_ask(None, &others).expect("there are some");
            assert_eq!(asked, node(expected));
            for _ in 0..3 {
                hearsay.not_leading(&asked, None, &others);
            }
        }
        hearsay.has_led(&node("n2"));
        assert_eq!(hearsay.whom_to_ask(None, &others), Some(node("n2")), "it led last");
        hearsay.not_leading(&node("n2"), Some(node("n4")), &others);
        assert_eq!(hearsay.whom_to_ask(None, &others), Some(node("n4")), "that one named it");
        hearsay.not_leading(&node("n4"), Some(node("n4")), &others);
        let next = hearsay.whom_to_ask(None, &others).expect("there are some");
        assert!(others.contains(&next), "it names itself and does not lead");
    }

    #[test]
    fn what_the_replica_here_hears_counts_more_than_what_others_said_before() {
        let others = ["n1", "n2", "n3"].map(node);
        let mut hearsay = Hearsay::default();
        let (first, second) = (node("n1"), node("n2"));
        assert_eq!(hearsay.whom_to_ask(Some(&first), &others), Some(node("n1")));
        hearsay.not_leading(&first, Some(node("n3")), &others);
        assert_eq!(hearsay.whom_to_ask(Some(&first), &others), Some(node("n3")));
        assert_eq!(hearsay.whom_to_ask(Some(&second), &others), Some(node("n2")));
        assert_eq!(hearsay.whom_to_ask(Some(&first), &others), Some(node("n1")));
    }
}
