//! Byte buffers whose memory a worker's connections share: taken when there are bytes to hold, returned once empty, so
//! that an idle connection holds none.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::held::{HeldBytes, affordable};

pub(crate) use crate::held::{LARGE, MEDIUM, SMALL, TINY};

const SIZES: [usize; 4] = [TINY, SMALL, MEDIUM, LARGE];

/// Maximum number of spare buffers of each size.
const SPARE: usize = 64;
/// Maximum number of bytes in spare buffers of each size.
const SPARE_BYTES: usize = 512 * 1024;

/// A worker's spare buffers, by size.
#[derive(Default)]
pub struct Buffers {
    spare: [RefCell<Vec<Box<[u8]>>>; SIZES.len()],
}

/// A byte queue in one piece of memory. Allocates nothing until something is read or pushed.
#[derive(Default)]
pub(crate) struct Buffer {
    /// Fully initialised memory; the queue is `start..end`.
    memory: Box<[u8]>,
    /// Counts memory of more than [`SMALL`] as held for peers.
    held: HeldBytes,
    start: usize,
    end: usize,
}

impl Buffers {
    /// A buffer with room for at least `size` bytes.
    pub(crate) fn take(&self, size: usize) -> Buffer {
        let memory = match class(size) {
            Some((at, size)) => self.spare[at].borrow_mut().pop().unwrap_or_else(|| zeroed(size)),
            None => zeroed(size),
        };
        let held = HeldBytes::new(counted(&memory));
        Buffer { memory, held, start: 0, end: 0 }
    }

    /// Returns a buffer's memory to the spare buffers and empties the buffer.
    pub(crate) fn give(&self, buffer: &mut Buffer) {
        let memory = std::mem::take(buffer).memory;
        let Some((at, size)) = class(memory.len()).filter(|(_, size)| *size == memory.len()) else { return };
        let mut spare = self.spare[at].borrow_mut();
        if spare.len() < SPARE.min(SPARE_BYTES / size) {
            spare.push(memory);
        }
    }

    /// Makes room for `size` bytes in total, including those that the buffer holds.
    pub(crate) fn reserve(&self, buffer: &mut Buffer, size: usize) {
        if buffer.memory.len() >= size {
            buffer.compact();
            return;
        }
        let mut larger = self.take(size);
        larger.push(buffer.bytes());
        self.give(buffer);
        *buffer = larger;
    }

    /// Moves the content to memory of `size`, or as much as it needs, if that is less than the buffer has.
    pub(crate) fn shrink(&self, buffer: &mut Buffer, size: usize) {
        let size = size.max(buffer.len());
        if class(size).is_some_and(|(_, size)| size < buffer.size()) {
            let mut smaller = self.take(size);
            smaller.push(buffer.bytes());
            self.give(buffer);
            *buffer = smaller;
        }
    }

    /// Moves the first `count` bytes of memory, already consumed, to a smaller buffer if possible; see
    /// [`Buffer::past`].
    pub(crate) fn shrink_past(&self, buffer: &mut Buffer, count: usize) {
        if class(count).is_some_and(|(_, size)| size < buffer.size()) {
            let mut smaller = self.take(count);
            smaller.push(buffer.past(0, count));
            smaller.consume(count);
            self.give(buffer);
            *buffer = smaller;
        }
    }

    /// Reads once into the buffer. An empty one gets memory of `size`, or less while much is held for other peers
    /// ([`crate::held`]). While pending, the buffer holds no memory.
    pub(crate) fn poll_read<S: AsyncRead + Unpin>(
        &self,
        buffer: &mut Buffer,
        size: usize,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if buffer.memory.is_empty() {
            *buffer = self.take(affordable(size));
        }
        let read = buffer.poll_read(stream, context);
        if !matches!(read, Poll::Ready(Ok(1..))) && buffer.is_empty() {
            self.give(buffer);
        }
        read
    }
}

impl Buffer {
    /// The bytes in the queue.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..self.end).unwrap_or_default()
    }

    /// Number of bytes in the queue.
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether the queue is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether the memory is used up to its end: a read would have to move the content or grow.
    pub(crate) fn is_full(&self) -> bool {
        self.end == self.memory.len()
    }

    /// Size of its memory in bytes.
    pub(crate) fn size(&self) -> usize {
        self.memory.len()
    }

    /// Stops counting the memory as held for a peer; the caller accounts for it otherwise.
    pub(crate) fn disown(&mut self) {
        self.held.set(0);
    }

    /// Removes the first `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Takes back what was consumed of the first `length` bytes of memory, and drops what follows them. Valid as
    /// [`Buffer::past`] is.
    pub(crate) fn rewind(&mut self, length: usize) {
        (self.start, self.end) = (0, length.min(self.memory.len()));
    }

    /// Removes all but the first `count` bytes.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.end = self.end.min(self.start + count);
    }

    /// Appends bytes; grows if necessary.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let end = self.end + bytes.len();
        if end > self.memory.len() {
            self.grow(end);
        }
        if let Some(room) = self.memory.get_mut(self.end..end) {
            room.copy_from_slice(bytes);
            self.end = end;
        }
    }

    /// Bytes at this offset of the memory that were already consumed. Valid until the next read or push.
    pub(crate) fn past(&self, start: usize, length: usize) -> &[u8] {
        self.memory.get(start..start + length).unwrap_or_default()
    }

    /// Writes until the queue is empty or the stream is not ready.
    pub(crate) fn poll_write_all<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = ready!(Pin::new(&mut *stream).poll_write(context, self.bytes()))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.consume(written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.is_full() {
            self.compact();
        }
        let room = self.memory.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let mut room = ReadBuf::new(room);
        ready!(Pin::new(stream).poll_read(context, &mut room))?;
        let count = room.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// Moves the queue to the beginning of the memory.
    fn compact(&mut self) {
        self.memory.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
    }

    /// Moves the content to larger memory: of the next size class, or of a power of two beyond the largest.
    fn grow(&mut self, end: usize) {
        let mut larger = zeroed(class(end).map_or(end.next_power_of_two(), |(_, size)| size));
        if let Some(start) = larger.get_mut(..self.memory.len()) {
            start.copy_from_slice(&self.memory);
        }
        self.memory = larger;
        self.held.set(counted(&self.memory));
    }
}

/// How many bytes of a buffer count as held for a peer. Small memory, which nearly every connection has, does not.
fn counted(memory: &[u8]) -> usize {
    if memory.len() > SMALL { memory.len() } else { 0 }
}

/// Index and size of the smallest buffer class with room for this many bytes.
fn class(size: usize) -> Option<(usize, usize)> {
    SIZES.into_iter().enumerate().find(|(_, of_class)| *of_class >= size)
}

fn zeroed(size: usize) -> Box<[u8]> {
    vec![0; size].into()
}

/// Never fails: a buffer grows.
impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_a_grown_buffer_keeps_its_bytes() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(10);
        buffer.push(b"hello world");
        buffer.consume(6);
        buffers.reserve(&mut buffer, MEDIUM);
        assert_eq!((buffer.bytes(), buffer.size()), (&b"world"[..], MEDIUM));
        let address = buffer.memory.as_ptr();
        buffers.give(&mut buffer);
        assert_eq!(buffer.size(), 0);
        assert_eq!(buffers.take(SMALL + 1).memory.as_ptr(), address);
    }

    #[tokio::test]
    async fn a_buffer_that_waits_holds_no_memory() {
        let buffers = Buffers::default();
        let (mut near, _far) = tokio::io::duplex(64);
        let mut buffer = Buffer::default();
        let poll = std::future::poll_fn(|context| {
            Poll::Ready(buffers.poll_read(&mut buffer, SMALL, &mut near, context).is_pending())
        });
        assert!(poll.await);
        assert_eq!(buffer.size(), 0);
        assert_eq!(buffers.spare[1].borrow().len(), 1);
    }
}
