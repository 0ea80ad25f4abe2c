//! Mutex and condition variable of the log: `parking_lot`'s. In tests they can be those of `shuttle`, which tries the
//! orders in which threads may run (`tests/model.rs`).

#[cfg(not(test))]
pub(super) use parking_lot::{Condvar, Mutex, MutexGuard};

#[cfg(test)]
pub(super) use self::model::{Condvar, Mutex, MutexGuard, set_model};

#[cfg(test)]
mod model {
    use std::cell::Cell;
    use std::ops::{Deref, DerefMut};
    use std::sync::PoisonError;

    thread_local! {
        static MODEL: Cell<bool> = const { Cell::new(false) };
    }

    /// Whether what this thread makes from now on is shuttle's.
    pub(in crate::wal) fn set_model(model: bool) {
        MODEL.set(model);
    }

    #[derive(Debug)]
    pub(in crate::wal) enum Mutex<T> {
        Real(parking_lot::Mutex<T>),
        Model(shuttle::sync::Mutex<T>),
    }

    #[derive(Debug)]
    pub(in crate::wal) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        /// `None` only while the guard is unlocked or waits.
        held: Option<Held<'a, T>>,
    }

    #[derive(Debug)]
    enum Held<'a, T> {
        Real(parking_lot::MutexGuard<'a, T>),
        Model(shuttle::sync::MutexGuard<'a, T>),
    }

    impl<T> Mutex<T> {
        pub(in crate::wal) fn new(value: T) -> Self {
            if MODEL.get() {
                Self::Model(shuttle::sync::Mutex::new(value))
            } else {
                Self::Real(parking_lot::Mutex::new(value))
            }
        }

        pub(in crate::wal) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard { mutex: self, held: Some(self.hold()) }
        }

        fn hold(&self) -> Held<'_, T> {
            match self {
                Self::Real(mutex) => Held::Real(mutex.lock()),
                Self::Model(mutex) => {
                    Held::Model(mutex.lock().unwrap_or_else(PoisonError::into_inner))
                }
            }
        }
    }

    impl<T> MutexGuard<'_, T> {
        pub(in crate::wal) fn unlocked<R>(guard: &mut Self, action: impl FnOnce() -> R) -> R {
            guard.held = None;
            let result = action();
            guard.held = Some(guard.mutex.hold());
            result
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            match self.held.as_ref().expect("held outside of unlocked and wait") {
                Held::Real(guard) => guard,
                Held::Model(guard) => guard,
            }
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match self.held.as_mut().expect("held outside of unlocked and wait") {
                Held::Real(guard) => guard,
                Held::Model(guard) => guard,
            }
        }
    }

    #[derive(Debug)]
    pub(in crate::wal) enum Condvar {
        Real(parking_lot::Condvar),
        Model(shuttle::sync::Condvar),
    }

    impl Default for Condvar {
        fn default() -> Self {
            if MODEL.get() {
                Self::Model(shuttle::sync::Condvar::new())
            } else {
                Self::Real(parking_lot::Condvar::new())
            }
        }
    }

    impl Condvar {
        pub(in crate::wal) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.held.take().expect("held outside of unlocked and wait");
            guard.held = Some(match (self, held) {
                (Self::Real(condvar), Held::Real(mut held)) => {
                    condvar.wait(&mut held);
                    Held::Real(held)
                }
                (Self::Model(condvar), Held::Model(held)) => {
                    Held::Model(condvar.wait(held).unwrap_or_else(PoisonError::into_inner))
                }
                _ => unreachable!("a log is made on one thread"),
            });
        }

        pub(in crate::wal) fn notify_one(&self) {
            match self {
                Self::Real(condvar) => _ = condvar.notify_one(),
                Self::Model(condvar) => condvar.notify_one(),
            }
        }

        pub(in crate::wal) fn notify_all(&self) {
            match self {
                Self::Real(condvar) => _ = condvar.notify_all(),
                Self::Model(condvar) => condvar.notify_all(),
            }
        }
    }
}
