//! What the router promises, on the reference engine.
