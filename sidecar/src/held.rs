//! Bytes that a worker holds because a peer does not take them, and what a connection may still read.
//!
//! A connection reads from one side before it knows whether the other one takes the bytes. Long bodies move fastest in
//! large pieces, so a connection may hold one of them; the more all of them hold, the smaller is the piece that each
//! reads next. Nobody waits for anybody: a slow reader costs others the size of their pieces at most.

use std::cell::Cell;

/// Room for the head of a short request.
pub(crate) const TINY: usize = 1024;
/// Room for the head of nearly every request.
pub(crate) const SMALL: usize = 4 * 1024;
/// Room for one read of a short message; as much as a TLS record holds.
pub(crate) const MEDIUM: usize = 16 * 1024;
/// Room for one read of a long body, and the most that is held of it in one direction.
pub(crate) const LARGE: usize = 64 * 1024;

/// Held by a worker when pieces of more than [`MEDIUM`] end.
const MUCH: usize = 2 * 1024 * 1024;
/// Held by a worker when pieces of more than [`SMALL`] end.
const VERY_MUCH: usize = 4 * 1024 * 1024;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// So many bytes, held until this is dropped. To be dropped by the worker that made it.
#[derive(Debug, Default)]
pub(crate) struct HeldBytes(usize);

impl HeldBytes {
    pub(crate) fn new(bytes: usize) -> Self {
        let mut held = Self::default();
        held.set(bytes);
        held
    }

    /// Holds so many bytes instead.
    pub(crate) fn set(&mut self, bytes: usize) {
        if bytes != self.0 {
            HELD.set((HELD.get() + bytes).saturating_sub(self.0));
            self.0 = bytes;
        }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// How much of `wanted` a connection may read, or hand on, at a time.
pub(crate) fn affordable(wanted: usize) -> usize {
    match HELD.get() {
        ..MUCH => wanted,
        MUCH..VERY_MUCH => wanted.min(MEDIUM),
        VERY_MUCH.. => wanted.min(SMALL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_get_smaller_as_more_is_held_and_larger_again() {
        let mut held: Vec<HeldBytes> = Vec::new();
        let mut hold_all = |size| {
            let before = held.len();
            while affordable(LARGE) == size {
                held.push(HeldBytes::new(size));
            }
            held.len() - before
        };
        assert_eq!((hold_all(LARGE), hold_all(MEDIUM)), (32, 128));
        assert_eq!(affordable(LARGE), SMALL);
        held.truncate(33);
        assert_eq!(affordable(LARGE), MEDIUM);
        held.clear();
        assert_eq!(affordable(LARGE), LARGE);
    }
}
