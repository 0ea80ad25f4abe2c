//! Brings the cluster to where it has agreed to be: replicas move, nodes that leave are let go, nodes that are lost are replaced.
//!
//! Two tasks on every node, neither on the path of a request. Both look at the cluster's state, do at most one step for each group, and remember nothing that matters:
//! whatever crashes, the next who looks goes on.
//!
//! * [`move_replicas`], where this node leads a **shard**: carries on the change that the state says is under way for it, and reports what the group has
//!   committed. So it is always the one who knows.
//! * [`govern()`], where this node leads the **meta group**: begins changes, keeps the meta group's own members as they are to be, gives nodes up that were silent for
//!   too long, and lets go of those that have gone.
//!
//! # How a shard moves
//!
//! | step | who | after a crash then |
//! |---|---|---|
//! | a change is in the state: replica R comes to node A, S goes from B | the meta group's leader | it is carried on |
//! | A makes R, empty (`node/seats`) | A | A opens it |
//! | R is a learner; entries or a snapshot go to it | the shard's leader | the next leader sees the learner |
//! | R has nearly all; if S leads, it hands over | the shard's leader | the next leader goes on |
//! | R votes and S does not, by a joint membership | the shard's leader | the next leader ends the joint membership |
//! | the state says that R is in the shard, S is not, and the change is over | the shard's leader | it, or the next one, reports again |
//! | B erases S (`node/seats`) | B | B erases it at the start |

mod govern;
mod moving;

pub(super) use self::govern::govern;
pub(super) use self::moving::move_replicas;
