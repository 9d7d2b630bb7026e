//! Accounts for bytes that a worker holds because peers read slowly, and limits how much a connection reads at a time.
//!
//! A connection reads from one side before it can tell whether the other side accepts the bytes. Long bodies move
//! fastest in large pieces, so a connection may hold one large piece; the more all connections hold, the smaller the
//! next piece that each of them reads. Connections never wait for each other: a slow reader only makes the pieces of
//! others smaller.

use std::cell::Cell;

/// Room for the head of a short request, in bytes.
pub(crate) const TINY: usize = 1024;
/// Room for the head of nearly every request, in bytes.
pub(crate) const SMALL: usize = 4 * 1024;
/// Room for one read of a short message: as much as a TLS record holds.
pub(crate) const MEDIUM: usize = 16 * 1024;
/// Room for one read of a long body, and the maximum held of it in one direction.
pub(crate) const LARGE: usize = 64 * 1024;

/// When a worker holds this many bytes, pieces shrink to [`MEDIUM`].
const HELD_HIGH: usize = 2 * 1024 * 1024;
/// When a worker holds this many bytes, pieces shrink to [`SMALL`].
const HELD_VERY_HIGH: usize = 4 * 1024 * 1024;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Counts bytes as held by this thread until dropped. Must be dropped on the thread that created it.
#[derive(Debug, Default)]
pub(crate) struct HeldBytes(usize);

impl HeldBytes {
    /// Counts this many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let mut held = Self::default();
        held.set(bytes);
        held
    }

    /// Changes the number of bytes that are counted.
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

/// How many of `wanted` bytes a connection may read or forward at a time.
pub(crate) fn affordable(wanted: usize) -> usize {
    match HELD.get() {
        ..HELD_HIGH => wanted,
        HELD_HIGH..HELD_VERY_HIGH => wanted.min(MEDIUM),
        HELD_VERY_HIGH.. => wanted.min(SMALL),
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
