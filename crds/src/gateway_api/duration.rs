//! Durations in Gateway API's notation (GEP-2257).

use std::time::Duration;

use tidegate_core::go_duration;

/// Parses a duration: at most four numbers of at most five digits, each with its unit `h`, `m`, `s` or `ms`. Fractions and
/// signs, which Go's notation allows, are not durations here.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (_, unit) = rest.split_at(digits);
        let length = ["ms", "h", "m", "s"].into_iter().find(|known| unit.starts_with(known))?.len();
        rest = &unit[length..];
        parts += 1;
        if !(1..=5).contains(&digits) || parts > 4 {
            return None;
        }
    }
    (parts > 0).then(|| go_duration::parse(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_gep_2257() {
        for (text, milliseconds) in
            [("0s", 0), ("500ms", 500), ("1h30m", 5_400_000), ("1h1m1s1ms", 3_661_001), ("99999ms", 99_999)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "1", "1.5s", "-1s", "+1s", "1d", "100000s", "1h1m1s1ms1s", "s", "1us", "1s ", "0"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
