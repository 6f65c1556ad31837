//! loom's threads, atomics and cells in place of the standard library's.
//!
//! loom takes sequentially consistent accesses for acquire and release, but models sequentially
//! consistent fences. An access of that kind is therefore a weaker one between two fences, as
//! compilers build it on processors without such accesses.

pub(crate) use loom::sync::Arc;
pub(crate) use loom::sync::atomic::Ordering;
pub(crate) use loom::thread::{JoinHandle, Thread, current, park};

use loom::sync::atomic::{self, fence};

/// One more look, then to sleep: further ones would only repeat the same states.
pub(crate) const SPINS: u32 = 1;

pub(crate) fn spawn(
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    loom::thread::Builder::new().name(name).spawn(run)
}

/// Nothing: loom forgets the wake-up of a thread that yields.
pub(crate) fn wait_a_moment() {}

/// A cell whose reads and writes are checked against each other.
pub(crate) struct Shared<T>(loom::cell::UnsafeCell<T>);

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::cell::UnsafeCell::new(value))
    }

    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        self.0.with(read)
    }

    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        self.0.with_mut(write)
    }
}

/// Runs an access, between fences if it is to be sequentially consistent.
fn ordered<T>(order: Ordering, weaker: Ordering, access: impl FnOnce(Ordering) -> T) -> T {
    if order != Ordering::SeqCst {
        return access(order);
    }
    fence(Ordering::SeqCst);
    let value = access(weaker);
    fence(Ordering::SeqCst);
    value
}

macro_rules! atomic {
    ($name:ident, $of:ty) => {
        #[derive(Debug)]
        pub(crate) struct $name(atomic::$name);

        #[allow(dead_code)]
        impl $name {
            pub(crate) fn new(value: $of) -> Self {
                Self(atomic::$name::new(value))
            }
            pub(crate) fn load(&self, order: Ordering) -> $of {
                ordered(order, Ordering::Acquire, |order| self.0.load(order))
            }
            pub(crate) fn store(&self, value: $of, order: Ordering) {
                ordered(order, Ordering::Release, |order| self.0.store(value, order))
            }
            pub(crate) fn swap(&self, value: $of, order: Ordering) -> $of {
                ordered(order, Ordering::AcqRel, |order| self.0.swap(value, order))
            }
        }
    };
}

macro_rules! counter {
    ($name:ident, $of:ty) => {
        atomic!($name, $of);

        #[allow(dead_code)]
        impl $name {
            pub(crate) fn fetch_add(&self, value: $of, order: Ordering) -> $of {
                ordered(order, Ordering::AcqRel, |order| {
                    self.0.fetch_add(value, order)
                })
            }
            pub(crate) fn fetch_sub(&self, value: $of, order: Ordering) -> $of {
                ordered(order, Ordering::AcqRel, |order| {
                    self.0.fetch_sub(value, order)
                })
            }
        }
    };
}

atomic!(AtomicBool, bool);
counter!(AtomicU32, u32);
counter!(AtomicUsize, usize);
