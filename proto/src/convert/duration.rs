//! Lengths of time, in routes and backends.

use std::time::Duration;

use super::{ConversionError, bad, missing};
use crate::discovery as wire;

/// Not google.protobuf.Duration, which is signed: a negative duration cannot be written.
pub(super) fn duration_to_wire(duration: Duration) -> wire::Duration {
    wire::Duration { seconds: duration.as_secs(), nanoseconds: duration.subsec_nanos() }
}

/// An absent duration is an error; where one is optional, the caller does not call this.
pub(super) fn duration_from_wire(
    path: &str,
    duration: Option<wire::Duration>,
) -> Result<Duration, ConversionError> {
    let wire::Duration { seconds, nanoseconds } = duration.ok_or_else(|| missing(path))?;
    if nanoseconds >= 1_000_000_000 {
        return Err(bad(path, format!("{nanoseconds} nanoseconds are a second or more")));
    }
    Ok(Duration::new(seconds, nanoseconds))
}
