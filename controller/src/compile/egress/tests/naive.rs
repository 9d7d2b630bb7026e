//! The compile function against a second one that follows the documentation sentence by sentence, on random policies.

use proptest::prelude::*;
use tidegate_core::egress::policies::EgressPolicies;

use super::*;

const HOSTS: [&str; 3] = ["a.example", "b.example", "*.example"];
const RANGES: [&str; 2] = ["192.0.2.0/25", "192.0.2.128/25"];
const PORTS: [(u16, &str); 5] =
    [(80, "http"), (443, "https"), (443, "tcp"), (5432, "tcp"), (5432, "tcp-server-first")];

#[derive(Clone, Debug)]
struct RandomEgress {
    account: bool,
    hosts: Vec<usize>,
    ranges: Vec<usize>,
    ports: Vec<usize>,
    /// Names an HTTPRouteGroup, which may be missing.
    group: Option<bool>,
    is_audit: bool,
}

/// What an app of service account `web/curl` sends to a port of an address.
#[derive(Clone, Debug)]
enum Sent {
    Bytes,
    Tls(Option<&'static str>),
    Request(&'static str, &'static str),
}

impl RandomEgress {
    fn document(&self, at: usize) -> String {
        let list = |names: &[&str], chosen: &[usize]| {
            chosen.iter().map(|one| format!("'{}'", names[*one])).collect::<Vec<_>>().join(", ")
        };
        let port = |at: &usize| format!("{{number: {}, protocol: {}}}", PORTS[*at].0, PORTS[*at].1);
        let ports: Vec<_> = self.ports.iter().map(port).collect();
        let group = self.group.map_or_else(String::new, |is_there| {
            let name = if is_there { "get" } else { "missing" };
            format!("{{apiGroup: specs.smi-spec.io/v1alpha4, kind: HTTPRouteGroup, name: {name}}}")
        });
        let audit = if self.is_audit { "tidegate.io/audit: 'true'" } else { "" };
        let text = policy(
            &format!("e{at}"),
            audit,
            &format!(
                "hosts: [{}], ipAddresses: [{}], ports: [{}], matches: [{group}]",
                list(&HOSTS, &self.hosts),
                list(&RANGES, &self.ranges),
                ports.join(", ")
            ),
        );
        if self.account { text } else { text.replace("name: curl", "name: other") }
    }

    /// "A policy allows its service account what it lists: ports of `tcp` whatever is sent, of `https` TLS for its hosts or, without
    /// any, all of it, of `http` requests to its hosts, and of these only the ones of its groups. `ipAddresses` narrow all of it."
    fn allows(&self, address: u8, number: u16, sent: &Sent) -> bool {
        let in_range = |range: &usize| (address >= 128) == (*range == 1);
        let has = |protocols: &[&str]| {
            self.ports.iter().any(|port| PORTS[*port].0 == number && protocols.contains(&PORTS[*port].1))
        };
        let has_host = |name: &str| {
            self.hosts.iter().any(|host| match HOSTS[*host] {
                "*.example" => name.ends_with(".example"),
                host => host == name,
            })
        };
        let here = self.ranges.is_empty() || self.ranges.iter().any(in_range);
        here && match sent {
            Sent::Bytes => has(&["tcp", "tcp-server-first"]),
            Sent::Tls(name) => has(&["https"]) && (self.hosts.is_empty() || name.is_some_and(has_host)),
            Sent::Request(host, method) => {
                has(&["http"]) && has_host(host) && (self.group.is_none() || *method == "GET")
            }
        }
    }
}

/// `None`: no policy is about the service account. Otherwise whether what is refused is only logged, and what is allowed.
fn expected(all: &[RandomEgress], address: u8, number: u16, sent: &Sent) -> Option<(bool, bool)> {
    // "A reference to an object that is missing invalidates the whole policy."
    let in_force: Vec<_> = all.iter().filter(|one| one.account && one.group != Some(false)).collect();
    if in_force.is_empty() {
        return None;
    }
    // "Unless another policy of the service account is enforced."
    let is_audit = in_force.iter().all(|one| one.is_audit);
    let mut counting = in_force.iter().filter(|one| one.is_audit == is_audit);
    Some((is_audit, counting.any(|one| one.allows(address, number, sent))))
}

fn allowed(policies: &EgressPolicies, address: u8, number: u16, sent: &Sent) -> bool {
    let dialled = ([192, 0, 2, address], number).into();
    match sent {
        Sent::Bytes => policies.for_bytes(dialled).is_some(),
        Sent::Tls(name) => policies.for_tls(dialled, *name).is_some(),
        Sent::Request(host, method) => {
            let request =
                HttpRequest { method: (*method).to_owned(), path: "/get".to_owned(), headers: Vec::new() };
            policies.for_request(dialled, host, &request.normal(true).unwrap()).is_ok()
        }
    }
}

fn policies() -> impl Strategy<Value = Vec<RandomEgress>> {
    let one = (
        prop::bool::weighted(0.8),
        prop::sample::subsequence(vec![0, 1, 2], 0..3),
        prop::sample::subsequence(vec![0, 1], 0..2),
        prop::sample::subsequence(vec![0, 1, 2, 3, 4], 0..5),
        prop::option::weighted(0.4, prop::bool::weighted(0.7)),
        prop::bool::weighted(0.3),
    );
    let one = one.prop_map(|(account, hosts, ranges, ports, group, is_audit)| RandomEgress {
        account,
        hosts,
        ranges,
        ports,
        group,
        is_audit,
    });
    prop::collection::vec(one, 0..4)
}

fn sent() -> impl Strategy<Value = Sent> {
    let host = || prop::sample::select(vec!["a.example", "b.example", "c.example", "a.test"]);
    prop_oneof![
        Just(Sent::Bytes),
        prop::option::of(host()).prop_map(Sent::Tls),
        (host(), prop::sample::select(vec!["GET", "POST"]))
            .prop_map(|(host, method)| Sent::Request(host, method)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn policies_compile_to_what_the_documentation_says(
        all in policies(),
        sent in prop::collection::vec((any::<u8>(), prop::sample::select(vec![80_u16, 443, 5432]), sent()), 1..10),
    ) {
        let documents: Vec<_> = all.iter().enumerate().map(|(at, one)| one.document(at)).collect();
        let documents: Vec<_> = [CLOSED, GROUP].into_iter().chain(documents.iter().map(String::as_str)).collect();
        let mode = egress(&documents, "curl");
        for (address, number, sent) in sent {
            let decided = match &mode {
                EgressMode::RegistryOnly(_) => None,
                EgressMode::Policies(policies) => {
                    Some((policies.is_audit, allowed(policies, address, number, &sent)))
                }
                EgressMode::AllowAny => panic!("it is off"),
            };
            prop_assert_eq!(decided, expected(&all, address, number, &sent), "{} {} {:?}", address, number, sent);
        }
    }
}
