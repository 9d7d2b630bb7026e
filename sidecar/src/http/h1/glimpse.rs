//! Best-effort reading of a request head that does not parse. For the access log only.

use crate::http::request::Version;
use crate::telemetry::Record;

/// How many bytes are read at most.
const MAX_BYTES: usize = 8 * 1024;

/// The parts of a request that were found; empty where missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Glimpse<'b> {
    pub(super) method: &'b [u8],
    pub(super) path: &'b [u8],
    pub(super) authority: &'b [u8],
    pub(super) user_agent: &'b [u8],
}

impl<'b> Glimpse<'b> {
    /// Reads as much as possible of a request. Empty if the bytes do not begin like one.
    pub(super) fn of(bytes: &'b [u8]) -> Self {
        let bytes = bytes.get(..MAX_BYTES).unwrap_or(bytes).trim_ascii_start();
        let mut lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
        let mut words = lines.next().unwrap_or_default().splitn(2, |byte| *byte == b' ');
        let method = words.next().unwrap_or_default();
        let is_method = ::http::Method::from_bytes(method).is_ok();
        let Some(rest) = words.next().filter(|_| is_method) else { return Self::default() };
        let version = rest.windows(6).rposition(|text| text.eq_ignore_ascii_case(b" http/"));
        let path = rest.get(..version.unwrap_or(rest.len())).unwrap_or_default();
        let mut seen = Self { method, path, ..Self::default() };
        for line in lines.take_while(|line| !line.is_empty()) {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) =
                (line.get(..colon).unwrap_or_default(), line.get(colon + 1..).unwrap_or_default());
            if name.eq_ignore_ascii_case(b"host") && seen.authority.is_empty() {
                seen.authority = value.trim_ascii();
            } else if name.eq_ignore_ascii_case(b"user-agent") && seen.user_agent.is_empty() {
                seen.user_agent = value.trim_ascii();
            }
        }
        seen
    }

    /// The access log record.
    pub(super) fn record(self) -> Record<'b> {
        let Self { method, path, authority, user_agent } = self;
        Record {
            method,
            path,
            protocol: Version::Http11.as_str(),
            authority,
            user_agent,
            ..Record::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn method_target_host_and_user_agent_are_seen_as_far_as_they_came() {
        let whole = b"GET /a b HTTP/1.1\r\nHost: a.test\r\nUser-Agent: x/1\r\nHost: b\r\n\r\nHost: c";
        let seen = Glimpse { method: b"GET", path: b"/a b", authority: b"a.test", user_agent: b"x/1" };
        assert_eq!(Glimpse::of(whole), seen);
        assert_eq!(Glimpse::of(b"\r\nPUT /x"), Glimpse { method: b"PUT", path: b"/x", ..Glimpse::default() });
        assert_eq!(Glimpse::of(b"A / HTTP/1.1\nhost:b\n\n").authority, b"b");
        for nothing in
            [&b""[..], b"\r\n", b"GET", b"\x16\x03\x01\x02 \x01", b" / HTTP/1.1\r\nHost: a\r\n\r\n"]
        {
            assert_eq!(Glimpse::of(nothing), Glimpse::default(), "{}", nothing.escape_ascii());
        }
    }
}
