//! The time for a call of a server that decides about connections or requests.

use std::time::Duration;

use tidegate_core::go_duration;
use tidegate_core::policy::MOST_CHECK_TIMEOUT;

/// The time for one call; `default` if none is set.
///
/// # Errors
///
/// If that is not the time which is set: the time that applies instead, and why.
pub(crate) fn call_timeout(text: Option<&str>, default: Duration) -> Result<Duration, (Duration, String)> {
    let Some(text) = text else { return Ok(default) };
    match go_duration::parse(text) {
        Ok(Duration::ZERO) => Err((default, format!("0 is too short; {default:?} applies"))),
        Ok(timeout) if timeout > MOST_CHECK_TIMEOUT => {
            let message = format!("a request waits for 60s at most, which applies instead of {text}");
            Err((MOST_CHECK_TIMEOUT, message))
        }
        Ok(timeout) => Ok(timeout),
        Err(error) => Err((default, format!("{error}; {default:?} applies"))),
    }
}
