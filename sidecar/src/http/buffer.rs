//! Byte buffers that a worker's connections share: taken when there is something to hold, given back once empty, so
//! that a connection that waits holds none.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Room for the head of nearly every request.
pub(crate) const SMALL: usize = 4 * 1024;
/// Room for one read of a short message; as much as a TLS record holds.
pub(crate) const MEDIUM: usize = 16 * 1024;
/// Room for one read of a long body, and the most that is held of it in one direction.
pub(crate) const LARGE: usize = 64 * 1024;

/// Spare buffers kept of each size.
const SPARE: usize = 64;

/// A worker's spare buffers, by size.
#[derive(Default)]
pub struct Buffers {
    small: RefCell<Vec<Vec<u8>>>,
    medium: RefCell<Vec<Vec<u8>>>,
    large: RefCell<Vec<Vec<u8>>>,
}

/// A queue of bytes in one piece of memory. Empty ones hold no memory until something is read or pushed.
#[derive(Default)]
pub(crate) struct Buffer {
    /// Initialised memory, all of it; what is in use is `start..end`.
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffers {
    /// A buffer with room for at least `size` bytes.
    pub(crate) fn take(&self, size: usize) -> Buffer {
        let (spare, size) = if size <= SMALL {
            (&self.small, SMALL)
        } else if size <= MEDIUM {
            (&self.medium, MEDIUM)
        } else if size <= LARGE {
            (&self.large, LARGE)
        } else {
            return Buffer::with_size(size);
        };
        match spare.borrow_mut().pop() {
            Some(memory) => Buffer { memory, start: 0, end: 0 },
            None => Buffer::with_size(size),
        }
    }

    /// Takes a buffer's memory back, whatever it holds; the buffer is empty afterwards.
    pub(crate) fn give(&self, buffer: &mut Buffer) {
        let memory = std::mem::take(buffer).memory;
        let spare = match memory.len() {
            SMALL => &self.small,
            MEDIUM => &self.medium,
            LARGE => &self.large,
            _ => return,
        };
        let mut spare = spare.borrow_mut();
        if spare.len() < SPARE {
            spare.push(memory);
        }
    }

    /// Gives the buffer room for `size` bytes in all, those it holds included.
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

    /// Moves what a buffer holds to the smallest memory, if it fits in there and would be the larger one's lesser part.
    pub(crate) fn shrink(&self, buffer: &mut Buffer) {
        if buffer.size() > SMALL && buffer.len() < SMALL {
            let mut small = self.take(SMALL);
            small.push(buffer.bytes());
            self.give(buffer);
            *buffer = small;
        }
    }

    /// Reads once into the buffer, which gets memory of at least `size` if it has none. A wait holds no memory.
    pub(crate) fn poll_read<S: AsyncRead + Unpin>(
        &self,
        buffer: &mut Buffer,
        size: usize,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if buffer.memory.is_empty() {
            *buffer = self.take(size);
        }
        let read = buffer.poll_read(stream, context);
        if !matches!(read, Poll::Ready(Ok(1..))) && buffer.is_empty() {
            self.give(buffer);
        }
        read
    }
}

impl Buffer {
    fn with_size(size: usize) -> Self {
        Self { memory: vec![0; size], start: 0, end: 0 }
    }

    /// What it holds.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..self.end).unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether not a byte more can be read without moving or growing.
    pub(crate) fn is_full(&self) -> bool {
        self.end == self.memory.len()
    }

    /// How much memory it has.
    pub(crate) fn size(&self) -> usize {
        self.memory.len()
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Forgets all but the first `count` bytes.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.end = self.end.min(self.start + count);
    }

    /// Appends bytes, growing if it must.
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

    /// What it held at this place of its memory before it was consumed, as long as nothing was read or pushed since.
    pub(crate) fn past(&self, start: usize, length: usize) -> &[u8] {
        self.memory.get(start..start + length).unwrap_or_default()
    }

    /// Writes what it holds, until it is empty or the stream takes no more.
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

    fn compact(&mut self) {
        self.memory.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
    }

    fn grow(&mut self, end: usize) {
        let size = [SMALL, MEDIUM, LARGE].into_iter().find(|size| *size >= end);
        self.memory.resize(size.unwrap_or(end.next_power_of_two()), 0);
    }
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
        assert_eq!(buffers.small.borrow().len(), 1);
    }
}
