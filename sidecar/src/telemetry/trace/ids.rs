//! IDs of traces and spans, and their hexadecimal form in header fields.

use std::fmt;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The ID of a trace. Never zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceId([u8; 16]);

/// The ID of a span. Never zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SpanId([u8; 8]);

impl TraceId {
    /// A new one, all of it random.
    pub(super) fn random() -> Self {
        // Zero is as likely as any other.
        Self(rand::random::<u128>().max(1).to_be_bytes())
    }

    /// Parses 32 digits.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        parse_hex(text).filter(|id| *id != [0; 16]).map(Self)
    }

    /// Parses 32 digits, or 16 for the second half of an ID whose first half is zero, as B3 has them.
    pub(super) fn parse_short(text: &[u8]) -> Option<Self> {
        let Some(short) = parse_hex::<8>(text) else { return Self::parse(text) };
        Some(Self(u128::from(u64::from_be_bytes(short)).to_be_bytes())).filter(|id| id.0 != [0; 16])
    }

    /// The last 56 bits, which are random (W3C Trace Context, level 2).
    pub(super) fn randomness(self) -> u64 {
        let [.., a, b, c, d, e, f, g] = self.0;
        u64::from_be_bytes([0, a, b, c, d, e, f, g])
    }

    pub(super) fn bytes(self) -> [u8; 16] {
        self.0
    }

    pub(super) fn hex(self) -> [u8; 32] {
        hex(&self.0)
    }
}

impl SpanId {
    pub(super) fn random() -> Self {
        Self(rand::random::<u64>().max(1).to_be_bytes())
    }

    /// Parses 16 digits.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        parse_hex(text).filter(|id| *id != [0; 8]).map(Self)
    }

    pub(super) fn bytes(self) -> [u8; 8] {
        self.0
    }

    pub(super) fn hex(self) -> [u8; 16] {
        hex(&self.0)
    }
}

/// Exactly as many lower-case digits as `N` bytes have.
pub(super) fn parse_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: &u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

fn hex<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut text = [b'0'; N];
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    text.iter_mut().zip(digits).for_each(|(place, digit)| *place = DIGITS[usize::from(digit)]);
    text
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.hex()))
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.hex()))
    }
}
