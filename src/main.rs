//! The `kvstore` program.

fn main() {}
