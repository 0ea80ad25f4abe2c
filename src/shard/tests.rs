//! What a shard promises, on the reference engine.
