//! Durations in Go's notation, which OSM's manifests use: `24h`, `1h30m`, `1.5s`, `300ms`.

use std::time::Duration;

/// A text is not a duration, or is negative, which no setting accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write numbers and units (ns, us, ms, s, m, h), such as 24h or 1h30m")]
pub struct GoDurationError(pub String);

/// Parses a duration as Go's `time.ParseDuration` does.
pub fn parse(text: &str) -> Result<Duration, GoDurationError> {
    nanoseconds(text).map(Duration::from_nanos).ok_or_else(|| GoDurationError(text.to_owned()))
}

fn nanoseconds(text: &str) -> Option<u64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanoseconds: u128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        nanoseconds = nanoseconds.checked_add(component(number, unit_nanoseconds(unit)?)?)?;
        rest = tail;
    }
    // Go's durations are signed 64-bit nanoseconds.
    i64::try_from(nanoseconds).ok().and_then(|n| u64::try_from(n).ok())
}

fn component(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 20 {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction = fraction.get(..fraction.len().min(15))?;
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(unit)?.checked_add(part * unit / scale)
}

fn unit_nanoseconds(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_as_go_parses_them() {
        let seconds = |n: u64| Some(Duration::from_secs(n));
        for (text, expected) in [
            ("24h", seconds(86_400)),
            ("70s", seconds(70)),
            ("1h30m", seconds(5400)),
            ("1.5h", seconds(5400)),
            (".5m", seconds(30)),
            ("1m0.5s", Some(Duration::from_millis(60_500))),
            ("100ms", Some(Duration::from_millis(100))),
            ("5us", Some(Duration::from_micros(5))),
            ("5µs", Some(Duration::from_micros(5))),
            ("+1s", seconds(1)),
            ("0", seconds(0)),
            ("87600h", seconds(315_360_000)),
            ("soon", None),
            ("", None),
            ("24", None),
            ("h", None),
            (".s", None),
            ("1d", None),
            ("-1h", None),
            ("1 h", None),
            ("1.2.3s", None),
            ("9999999999h", None),
            ("1h30", None),
        ] {
            assert_eq!(parse(text).ok(), expected, "{text}");
        }
    }
}
