//! Places in the code between which other threads may run, for tests that try the orders (`shuttle`). Nothing otherwise.
//!
//! A model runs all its threads on one, and changes between them only at such places; so none may lie where a lock is
//! held that another thread of the model takes. That is why a model says which ones it means. What one processor may see
//! of another's stores too early or too late is not tried: that is for miri and the sanitizers.

/// Here other threads may run, in a model of `place`.
#[inline]
pub(crate) fn at(place: &'static str) {
    #[cfg(test)]
    model::at(place);
    #[cfg(not(test))]
    let _ = place;
}

#[cfg(test)]
pub(crate) use self::model::explore;

#[cfg(test)]
mod model {
    use std::cell::Cell;

    thread_local! {
        static PLACE: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    pub(super) fn at(place: &'static str) {
        if PLACE.get() == Some(place) {
            shuttle::thread::yield_now();
        }
    }

    /// Tries so many random orders of the threads of `story`, which may change at `place`. A failure prints the schedule that
    /// led to it; `shuttle::replay` takes it back.
    pub(crate) fn explore(place: &'static str, orders: usize, story: fn()) {
        PLACE.set(Some(place));
        shuttle::check_random(story, orders);
        PLACE.set(None);
    }
}
