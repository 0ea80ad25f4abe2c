//! Compaction: rewriting tables so that reads ask few of them, and so that what nobody can see gives its space back.

pub(crate) mod job;
pub(crate) mod pacer;
pub(crate) mod picker;
pub(crate) mod rules;
