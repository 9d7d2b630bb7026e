//! The `date` of answers, formatted once a second.

use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Length of an IMF-fixdate (RFC 9110 §5.6.7).
const DATE_LENGTH: usize = 29;

/// A worker's clock for the `date` header.
pub struct DateClock {
    formatted: Cell<(u64, [u8; DATE_LENGTH])>,
}

impl DateClock {
    /// A clock; the date is formatted when it is first asked for.
    pub fn new() -> Self {
        Self { formatted: Cell::new((u64::MAX, [b' '; DATE_LENGTH])) }
    }

    /// Now, as an IMF-fixdate.
    pub fn date(&self) -> [u8; DATE_LENGTH] {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (second, text) = self.formatted.get();
        if second == now {
            return text;
        }
        let text = format(now);
        self.formatted.set((now, text));
        text
    }
}

impl Default for DateClock {
    fn default() -> Self {
        Self::new()
    }
}

fn format(second: u64) -> [u8; DATE_LENGTH] {
    let mut text = [b' '; DATE_LENGTH];
    let date = httpdate::HttpDate::from(UNIX_EPOCH + Duration::from_secs(second));
    // A year of more than four digits does not fit; what fits is written.
    let _ = write!(&mut text[..], "{date}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_an_imf_fixdate() {
        assert_eq!(&format(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        let clock = DateClock::new();
        assert_eq!(clock.date().len(), 29);
        assert_eq!(&clock.date()[25..], b" GMT");
    }
}
