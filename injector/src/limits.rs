//! The sidecar's limits and their allowed values.
//!
//! They are defined by the sidecar's flags, but the injector does not depend on the sidecar. `limits/flags.txt` is
//! generated from the flags (`just golden`), and a test of the command line, which depends on both, compares the values
//! accepted here with those of the flags.

use std::collections::BTreeMap;
use std::fmt;

use FlagValues::{Duration, Number};

/// One line for each flag under the heading "Limits" of `tidegate-sidecar --help`.
const FLAGS: &str = include_str!("limits/flags.txt");

/// A flag that sets a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LimitFlag {
    /// Without dashes.
    name: &'static str,
    values: FlagValues,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlagValues {
    /// Whether zero is allowed.
    Duration { zero: bool },
    /// Inclusive bounds.
    Number { from: u64, to: u64 },
}

/// Parses `<flag>=<value>` pairs separated by commas; an empty text sets nothing. The error names the wrong value and
/// what was expected.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<&'static str, String>, String> {
    let mut limits = BTreeMap::new();
    if text.trim().is_empty() {
        return Ok(limits);
    }
    for item in text.split(',') {
        let Some((name, value)) = item.split_once('=') else {
            return Err("expected NAME=VALUE, separated by commas, such as body-timeout=1m".to_owned());
        };
        let (name, value) = (name.trim(), value.trim());
        let Some(flag) = flags().find(|flag| flag.name == name) else {
            let names: Vec<_> = flags().map(|flag| flag.name).collect();
            return Err(format!(
                "{:?} is not a limit; expected one of {}",
                beginning(name),
                names.join(", ")
            ));
        };
        if !flag.values.take(value) {
            return Err(format!("{name}: expected {}, not {:?}", flag.values, beginning(value)));
        }
        if limits.insert(flag.name, value.to_owned()).is_some() {
            return Err(format!("{name} is set twice"));
        }
    }
    Ok(limits)
}

/// The limits that an annotation may set, from the table that `tidegate-sidecar --help` was compared with.
fn flags() -> impl Iterator<Item = LimitFlag> {
    FLAGS.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, kind) = (words.next()?, words.next()?);
        let values = match kind {
            "DURATION" => Duration { zero: words.next() == Some("0s") },
            _ => Number { from: words.next()?.parse().ok()?, to: words.next()?.parse().ok()? },
        };
        Some(LimitFlag { name, values })
    })
}

impl FlagValues {
    /// Whether the sidecar would accept the value: the injector refuses what would keep a sidecar from starting.
    fn take(self, value: &str) -> bool {
        match self {
            Duration { zero } => humantime::parse_duration(value).is_ok_and(|time| zero || !time.is_zero()),
            Number { from, to } => {
                let number =
                    value.parse::<u64>().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit()));
                number.is_some_and(|number| (from..=to).contains(&number))
            }
        }
    }
}

impl fmt::Display for FlagValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Duration { zero: true } => f.write_str("a duration such as 30s or 5m"),
            Duration { zero: false } => f.write_str("a duration above zero, such as 30s or 5m"),
            Number { from, to } => write!(f, "a number from {from} to {to}"),
        }
    }
}

/// At most 100 bytes of a text, for errors.
fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(100)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_a_flag() {
        assert_eq!(flags().count(), FLAGS.lines().count());
        let body_timeout = flags().find(|flag| flag.name == "body-timeout").unwrap();
        assert!(matches!(body_timeout.values, Duration { .. }), "{body_timeout:?}");
    }

    #[test]
    fn limits_are_read_by_name() {
        let limits = parse(" body-timeout = 10m ,max-headers=256,idle-timeout=1h 30m").unwrap();
        let expected = [("body-timeout", "10m"), ("idle-timeout", "1h 30m"), ("max-headers", "256")];
        assert_eq!(limits, expected.map(|(name, value)| (name, value.to_owned())).into());
        assert_eq!(parse("").unwrap(), BTreeMap::new());
    }

    #[test]
    fn a_slip_says_what_was_expected() {
        let error = |text| parse(text).unwrap_err();
        assert_eq!(
            error("body-timeout"),
            "expected NAME=VALUE, separated by commas, such as body-timeout=1m"
        );
        assert_eq!(
            error("body-timeout=soon"),
            "body-timeout: expected a duration such as 30s or 5m, not \"soon\""
        );
        assert!(error("max-headers=-1").starts_with("max-headers: expected a number from "));
        assert!(error("max-headers=+1").ends_with("not \"+1\""));
        assert_eq!(error("max-headers=1,max-headers=2"), "max-headers is set twice");
        let text = error("workload=shop/other");
        assert!(
            text.starts_with("\"workload\" is not a limit; expected one of ")
                && text.contains("body-timeout")
        );
    }
}
