//! The engine as a whole: what only it can show.
