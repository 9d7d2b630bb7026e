//! W3C Trace Context, levels 1 and 2: the field `traceparent`.

use super::ids::{SpanId, TraceId, parse_hex};
use super::received::{ReceivedContext, TraceDecision};

/// Length of a value of version 00.
pub(super) const LENGTH: usize = 55;
/// Flag: the trace is recorded.
const SAMPLED: u8 = 1;
/// Flag: the last seven bytes of the trace's ID are random.
pub(super) const RANDOM: u8 = 2;

/// Parses a value; `None` if it is invalid. Of a later version what version 00 has is read.
pub(super) fn parse(value: &[u8]) -> Option<ReceivedContext> {
    let [version] = parse_hex(value.get(..2)?)?;
    let is_whole = match value.get(LENGTH) {
        None => true,
        Some(byte) => version > 0 && *byte == b'-',
    };
    let is_separated = [2, 35, 52].into_iter().all(|place| value.get(place) == Some(&b'-'));
    if version == 0xff || !is_whole || !is_separated {
        return None;
    }
    let trace = TraceId::parse(value.get(3..35)?)?;
    let span = SpanId::parse(value.get(36..52)?)?;
    let [flags] = parse_hex(value.get(53..LENGTH)?)?;
    let decision = if flags & SAMPLED == 0 { TraceDecision::Drop } else { TraceDecision::Record };
    Some(ReceivedContext { trace, span, decision: Some(decision), is_random: flags & RANDOM != 0 })
}

/// A value of version 00.
pub(super) fn format(trace: TraceId, span: SpanId, is_sampled: bool, is_random: bool) -> [u8; LENGTH] {
    let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let (head, flags) = value.split_at_mut(LENGTH - 2);
    head.iter_mut().skip(3).zip(trace.hex()).for_each(|(place, digit)| *place = digit);
    head.iter_mut().skip(36).zip(span.hex()).for_each(|(place, digit)| *place = digit);
    let bits = u8::from(is_sampled) * SAMPLED + u8::from(is_random) * RANDOM;
    flags.iter_mut().skip(1).for_each(|place| *place += bits);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_value_comes_back_as_it_was() {
        let parsed = parse(VALID.as_bytes()).unwrap();
        assert_eq!((parsed.decision, parsed.is_random), (Some(TraceDecision::Record), false));
        assert_eq!(format(parsed.trace, parsed.span, true, false), VALID.as_bytes());
        let random = parse(VALID.replace("-01", "-02").as_bytes()).unwrap();
        assert_eq!((random.decision, random.is_random), (Some(TraceDecision::Drop), true));
        assert!(format(random.trace, random.span, true, true).ends_with(b"-03"));
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known_and_invalid_values_are_not() {
        assert!(parse(VALID.replacen("00", "cc", 1).as_bytes()).is_some());
        assert!(parse(format!("{}-more", VALID.replacen("00", "cc", 1)).as_bytes()).is_some());
        for invalid in [
            "".to_owned(),
            VALID.replacen("00", "ff", 1),
            VALID.to_uppercase(),
            format!("{VALID}-more"),
            format!("{}x", VALID.replacen("00", "cc", 1)),
            VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            VALID.replace("00f067aa0ba902b7", &"0".repeat(16)),
            VALID.replace('-', "_"),
            VALID[..54].to_owned(),
        ] {
            assert_eq!(parse(invalid.as_bytes()), None, "{invalid}");
        }
    }
}
