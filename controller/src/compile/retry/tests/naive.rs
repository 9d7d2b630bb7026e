//! The compile function against a second one that follows the documentation sentence by sentence, on random Retries.

use proptest::prelude::*;

use super::*;

const ACCOUNTS: [&str; 2] = ["httpbin", "another"];
/// Only the last one exists.
const SERVICES: [&str; 4] = ["far/a", "far/b", "far/c", "httpbin/httpbin"];

#[derive(Clone, Debug)]
struct RandomRetry {
    created: u32,
    account: usize,
    services: Vec<usize>,
    attempts: u32,
    is_valid: bool,
}

impl RandomRetry {
    fn document(&self, at: usize) -> String {
        let created = format!("creationTimestamp: '2020-01-01T00:00:{:02}Z', ", self.created);
        let services: Vec<_> = self.services.iter().map(|service| SERVICES[*service]).collect();
        let on = if self.is_valid { "5xx" } else { "often" };
        let policy = format!("retryOn: {on}, numRetries: {}", self.attempts);
        retry(&format!("r{at}"), &created, ACCOUNTS[self.account], &services, &policy)
    }
}

/// The Retry of a service account for a Service: "of several, the oldest", and then the first by name. One whose policy cannot be
/// read does not count.
fn decides(all: &[RandomRetry], account: usize, service: usize) -> Option<usize> {
    let mut oldest: Option<usize> = None;
    for (at, one) in all.iter().enumerate() {
        let counts = one.is_valid && one.account == account && one.services.contains(&service);
        if counts && oldest.is_none_or(|known| one.created < all[known].created) {
            oldest = Some(at);
        }
    }
    oldest
}

/// The reason of the condition `Accepted`.
fn reason(all: &[RandomRetry], at: usize) -> &'static str {
    let Some(one) = all.get(at).filter(|one| one.is_valid) else { return "Invalid" };
    if one.services.iter().any(|service| SERVICES[*service] != "httpbin/httpbin") {
        return "ReferenceNotFound";
    }
    let is_other = |service: &usize| decides(all, one.account, *service) != Some(at);
    if one.services.iter().any(is_other) { "Conflicted" } else { "Accepted" }
}

fn retries() -> impl Strategy<Value = Vec<RandomRetry>> {
    let services = prop::sample::subsequence(vec![0, 1, 2, 3], 1..4);
    let one = (0..3_u32, 0..ACCOUNTS.len(), services, 0..4_u32, prop::bool::weighted(0.8));
    let one = one.prop_map(|(created, account, services, attempts, is_valid)| RandomRetry {
        created,
        account,
        services,
        attempts,
        is_valid,
    });
    prop::collection::vec(one, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn retries_compile_to_what_the_documentation_says(all in retries()) {
        let documents: Vec<_> = all.iter().enumerate().map(|(at, one)| one.document(at)).collect();
        let documents: Vec<_> =
            [PERMISSIVE, HTTPBIN].into_iter().chain(documents.iter().map(String::as_str)).collect();
        let index = index(&documents);
        let mut expected = Vec::new();
        for (service, name) in SERVICES.iter().enumerate() {
            if let Some(at) = decides(&all, 0, service) {
                expected.push(format!("{name} r{at} {}", all[at].attempts));
            }
        }
        prop_assert_eq!(retried(&index), expected);
        for at in 0..all.len() {
            prop_assert_eq!(&told(&index, &format!("r{at}"))[0], reason(&all, at), "r{}", at);
        }
    }
}
