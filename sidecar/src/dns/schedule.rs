//! When a name is looked up again, and what its answers mean over time.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::client::{FoundAddresses, LookupError};
use crate::destinations::NameAnswer;

/// Bounds of how long an answer is used, whatever its TTL.
const LEAST_TTL: Duration = Duration::from_secs(5);
const MOST_TTL: Duration = Duration::from_secs(300);
/// After a failure; each further one doubles it.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How long addresses stay in use after DNS says that the name has none. If a server fails, they stay.
const KEPT_WITHOUT_NAME: Duration = Duration::from_secs(300);
/// The most addresses of an answer that are used.
const MOST_ADDRESSES: usize = 256;

/// What is known about a name.
#[derive(Debug)]
pub(super) struct NameState {
    /// `None` while it is being looked up.
    due: Option<Instant>,
    answer: Option<NameAnswer>,
    /// In a row.
    failures: u32,
    /// Since when DNS says that the name has no addresses.
    missing_since: Option<Instant>,
}

impl NameState {
    /// Due now.
    pub(super) fn new(now: Instant) -> Self {
        Self { due: Some(now), answer: None, failures: 0, missing_since: None }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(super) fn answer(&self) -> Option<&NameAnswer> {
        self.answer.as_ref()
    }

    /// A look-up begins.
    pub(super) fn begin(&mut self) {
        self.due = None;
    }

    /// A look-up has ended.
    pub(super) fn take(&mut self, found: Result<FoundAddresses, LookupError>, now: Instant) -> &NameAnswer {
        let found = found.and_then(|found| match usable(&found.addresses) {
            addresses if addresses.is_empty() => Err(LookupError::NoAddresses("no usable address")),
            addresses => Ok(FoundAddresses { addresses, ..found }),
        });
        let failure = match found {
            Ok(FoundAddresses { addresses, ttl }) => {
                (self.failures, self.missing_since) = (0, None);
                self.due = Some(now + ttl.clamp(LEAST_TTL, MOST_TTL));
                return self.answer.insert(NameAnswer { addresses, failure: None });
            }
            Err(failure) => failure,
        };
        let retry = FIRST_RETRY.saturating_mul(1 << self.failures.min(8)).min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + retry);
        let answer = self.answer.get_or_insert_with(|| NameAnswer { addresses: Vec::new(), failure: None });
        match &failure {
            LookupError::NoAddresses(_) => {
                let since = *self.missing_since.get_or_insert(now);
                if now.duration_since(since) >= KEPT_WITHOUT_NAME {
                    answer.addresses.clear();
                }
            }
            LookupError::Failed(_) => {}
        }
        answer.failure = Some(failure.to_string().into());
        answer
    }
}

/// The addresses of an answer to which a connection can be opened, each once.
fn usable(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut known = HashSet::new();
    let canonical = addresses.iter().map(IpAddr::to_canonical);
    let is_usable = |ip: &IpAddr| match ip {
        _ if ip.is_unspecified() || ip.is_multicast() => false,
        IpAddr::V4(ip) => !ip.is_broadcast(),
        IpAddr::V6(_) => true,
    };
    canonical.filter(|ip| is_usable(ip) && known.insert(*ip)).take(MOST_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ttl: u64, addresses: &[&str]) -> Result<FoundAddresses, LookupError> {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Ok(FoundAddresses { addresses, ttl: Duration::from_secs(ttl) })
    }

    /// How long after `now` the name is due.
    fn wait(state: &NameState, now: Instant) -> u64 {
        state.due().unwrap().duration_since(now).as_secs()
    }

    #[test]
    fn an_answer_is_used_for_its_ttl_within_bounds() {
        let now = Instant::now();
        let mut state = NameState::new(now);
        for (ttl, wanted) in [(0, 5), (7, 7), (100_000, 300), (u64::from(u32::MAX), 300)] {
            state.begin();
            assert_eq!(state.due(), None);
            assert_eq!(state.take(found(ttl, &["192.0.2.1"]), now).failure, None);
            assert_eq!(wait(&state, now), wanted, "{ttl}");
        }
    }

    #[test]
    fn the_last_addresses_stay_while_servers_fail_and_a_while_after_the_name_is_gone() {
        let now = Instant::now();
        let mut state = NameState::new(now);
        state.take(found(5, &["192.0.2.1"]), now);
        let failed = || Err(LookupError::Failed("refused".into()));
        let waits: Vec<_> = (0..8)
            .map(|_| {
                let answer = state.take(failed(), now);
                assert_eq!((answer.addresses.len(), answer.failure.as_deref()), (1, Some("refused")));
                wait(&state, now)
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        let gone = || Err(LookupError::NoAddresses("no such name"));
        assert_eq!(state.take(gone(), now).addresses.len(), 1);
        assert_eq!(state.take(gone(), now + KEPT_WITHOUT_NAME / 2).addresses.len(), 1);
        // A failure says nothing about the name.
        assert_eq!(state.take(failed(), now + KEPT_WITHOUT_NAME * 2).addresses.len(), 1);
        assert!(state.take(gone(), now + KEPT_WITHOUT_NAME).addresses.is_empty());
        let again = state.take(found(5, &["192.0.2.2"]), now);
        assert_eq!((again.addresses.len(), &again.failure), (1, &None));
    }

    #[test]
    fn addresses_that_cannot_be_dialled_and_too_many_are_left_out() {
        let odd =
            ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "::ffff:192.0.2.1", "192.0.2.1"];
        let mut state = NameState::new(Instant::now());
        let answer = state.take(found(5, &odd), Instant::now());
        assert_eq!(answer.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let many = (0..4000_u32).map(|i| IpAddr::from((0x0a00_0000 + i).to_be_bytes())).collect();
        let many = Ok(FoundAddresses { addresses: many, ttl: Duration::ZERO });
        assert_eq!(state.take(many, Instant::now()).addresses.len(), MOST_ADDRESSES);
        let none = state.take(found(5, &["0.0.0.0"]), Instant::now());
        assert_eq!(none.failure.as_deref(), Some("no usable address"));
    }
}
