//! The fields that tell clients of their limits (draft-polli-ratelimit-headers-03, as from Envoy).

use std::fmt::Write as _;

use tidegate_proto::rate_limit::rate_limit_response::rate_limit::Unit;
use tidegate_proto::rate_limit::rate_limit_response::{DescriptorStatus, RateLimit};

const DAY: u32 = 24 * 60 * 60;

/// Names and values, of the limit that has the least left; `None` without any limit. `x-ratelimit-limit` lists all of them:
/// `10, 10;w=1;name="per-ip", 1000;w=3600`.
pub(super) fn fields(statuses: &[DescriptorStatus]) -> Option<[(&'static str, String); 3]> {
    let limited = || statuses.iter().filter_map(|status| Some((status, status.current_limit.as_ref()?)));
    let (nearest, limit) = limited().min_by_key(|(status, _)| status.limit_remaining)?;
    let mut limits = limit.requests_per_unit.to_string();
    for (_, RateLimit { requests_per_unit, name, unit }) in limited() {
        let Some(seconds) = seconds(*unit) else { continue };
        // Writing to a string cannot fail.
        let _ = write!(limits, ", {requests_per_unit};w={seconds}");
        if !name.is_empty()
            && name.bytes().all(|byte| matches!(byte, b' '..=b'~') && !b"\"\\".contains(&byte))
        {
            let _ = write!(limits, ";name=\"{name}\"");
        }
    }
    let reset = nearest.duration_until_reset.as_ref().map_or(0, |until| until.seconds.max(0));
    Some([
        ("x-ratelimit-limit", limits),
        ("x-ratelimit-remaining", nearest.limit_remaining.to_string()),
        ("x-ratelimit-reset", reset.to_string()),
    ])
}

/// The period of a limit; `None` if it is not known.
fn seconds(unit: i32) -> Option<u32> {
    Some(match Unit::try_from(unit).ok()? {
        Unit::Unknown => return None,
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 60 * 60,
        Unit::Day => DAY,
        Unit::Week => 7 * DAY,
        Unit::Month => 30 * DAY,
        Unit::Year => 365 * DAY,
    })
}
