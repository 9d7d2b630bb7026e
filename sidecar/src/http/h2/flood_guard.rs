//! Limits what a client may cost without doing useful work: one bound for floods of every kind of frame.
//!
//! PING, SETTINGS, PRIORITY, RST_STREAM, WINDOW_UPDATE of a stream or of the connection, empty DATA and unknown frames
//! cost credit; responses, and data in both directions, earn credit. A client that only spends is disconnected
//! (CVE-2019-9511, -9512, -9514, -9515, CVE-2020-11080, CVE-2023-44487).

use std::time::{Duration, Instant};

use bytes::Buf;

/// Length of the client preface `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`, RFC 9113 §3.4.
const PREFACE: u64 = 24;
/// Length of a frame header, RFC 9113 §4.1.
const FRAME_HEADER: usize = 9;
/// How much a client may spend per [`WINDOW`] beyond what it has earned.
const ALLOWANCE: u32 = 1000;
/// After this time, what was spent is reset.
const WINDOW: Duration = Duration::from_secs(10);
/// Cost of a cancelled stream: more than its frame, because it has cost a task and a request to the app.
const RESET_COST: u32 = 2;
/// Maximum credit that a client can accumulate.
const SAVINGS: u32 = 1000;
/// Credit for a piece of a response: pays for a ping, and for window updates of the stream and of the connection. Some
/// clients send window updates for each read, however small.
const EARNED_BY_DATA: u32 = 4;
/// A longer piece counts as several pieces of this length.
const PIECE_LENGTH: usize = 4 * 1024;

/// A client has spent more than it earned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("flood of HTTP/2 frames that carry nothing")]
pub(super) struct Flood;

/// Follows the frame headers in a client's bytes and keeps the balance.
pub(super) struct FloodGuard {
    /// Bytes until the next frame header: the rest of the preface or of a payload.
    skip: u64,
    header: [u8; FRAME_HEADER],
    filled: usize,
    is_in_head: bool,
    balance: Balance,
}

/// Credit of a client.
struct Balance {
    spent: u32,
    earned: u32,
    since: Instant,
}

impl FloodGuard {
    pub(super) fn new(now: Instant) -> Self {
        let balance = Balance { spent: 0, earned: 0, since: now };
        Self { skip: PREFACE, header: [0; FRAME_HEADER], filled: 0, is_in_head: false, balance }
    }

    /// Processes bytes from the client.
    pub(super) fn observe(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                bytes.advance(skipped);
                self.skip -= skipped as u64;
                continue;
            }
            let taken = (FRAME_HEADER - self.filled).min(bytes.len());
            bytes.copy_to_slice(&mut self.header[self.filled..self.filled + taken]);
            self.filled += taken;
            if self.filled == FRAME_HEADER {
                self.filled = 0;
                let [high, middle, low, kind, flags, ..] = self.header;
                let length = u32::from_be_bytes([0, high, middle, low]);
                self.skip = u64::from(length);
                self.frame(kind, flags, length, now)?;
            }
        }
        Ok(())
    }

    /// Whether a request's head is incomplete: END_HEADERS is still to come.
    pub(super) fn is_in_head(&self) -> bool {
        self.is_in_head
    }

    /// Credits useful work.
    pub(super) fn earn(&mut self, amount: u32) {
        self.balance.earn(amount);
    }

    /// Credits a piece of a response of this many bytes.
    pub(super) fn earn_by_data(&mut self, bytes: usize) {
        let pieces = u32::try_from(bytes.div_ceil(PIECE_LENGTH).max(1)).unwrap_or(u32::MAX);
        self.balance.earn(EARNED_BY_DATA.saturating_mul(pieces));
    }

    /// Accounts for one frame.
    fn frame(&mut self, kind: u8, flags: u8, length: u32, now: Instant) -> Result<(), Flood> {
        const END_STREAM: u8 = 0x1;
        const END_HEADERS: u8 = 0x4;
        match kind {
            // DATA
            0x0 if length > 0 || flags & END_STREAM != 0 => {
                self.balance.earn(1);
                Ok(())
            }
            // HEADERS and CONTINUATION: h2 limits them.
            0x1 | 0x9 => {
                self.is_in_head = flags & END_HEADERS == 0;
                Ok(())
            }
            // RST_STREAM
            0x3 => self.balance.spend(RESET_COST, now),
            _ => self.balance.spend(1, now),
        }
    }
}

impl Balance {
    fn earn(&mut self, amount: u32) {
        let settled = self.spent.min(amount);
        self.spent -= settled;
        self.earned = self.earned.saturating_add(amount - settled).min(SAVINGS);
    }

    fn spend(&mut self, amount: u32, now: Instant) -> Result<(), Flood> {
        let saved = self.earned.min(amount);
        self.earned -= saved;
        self.spent += amount - saved;
        if self.spent <= ALLOWANCE {
            return Ok(());
        }
        if now.saturating_duration_since(self.since) < WINDOW {
            return Err(Flood);
        }
        self.since = now;
        self.spent = amount;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
