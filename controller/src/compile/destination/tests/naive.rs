//! The endpoints of a Service against a second compile function that follows Kubernetes' documentation sentence by sentence.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Conditions of an endpoint, whether it is ready, and whether it serves its last.
const CONDITIONS: [(&str, bool, bool); 6] = [
    ("", true, false),
    ("ready: true", true, false),
    ("ready: false", false, false),
    ("ready: false, serving: true, terminating: true", false, true),
    ("ready: false, serving: false, terminating: true", false, false),
    ("ready: false, terminating: true", false, true),
];

/// What is at an endpoint's address, and the service account that must answer there; `None` in plaintext.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Holder {
    /// The Pod that it refers to, with a sidecar.
    Meshed,
    /// The same without one.
    Plain,
    /// The Pod that it refers to is not there.
    Missing,
    /// The Pod that it refers to has another address by now.
    Moved,
    /// Another Pod of the same name.
    Again,
    /// The Pod that it refers to has ended.
    Ended,
    /// It refers to no Pod.
    Unnamed,
}

const HOLDERS: [Holder; 7] = [
    Holder::Meshed,
    Holder::Plain,
    Holder::Missing,
    Holder::Moved,
    Holder::Again,
    Holder::Ended,
    Holder::Unnamed,
];

#[derive(Clone, Debug)]
struct RandomSlice {
    is_ipv4: bool,
    /// The port's name and number.
    port: (&'static str, u16),
    /// Places in [`HOLDERS`] and [`CONDITIONS`].
    endpoints: Vec<(usize, usize)>,
}

impl RandomSlice {
    fn address(&self, holder: usize) -> String {
        if self.is_ipv4 { format!("10.1.0.{}", holder + 1) } else { format!("fd00::{}", holder + 1) }
    }

    fn document(&self, at: usize) -> String {
        let endpoint = |(holder, conditions): &(usize, usize)| {
            let reference = match HOLDERS[*holder] {
                Holder::Unnamed => String::new(),
                _ => format!(
                    ", targetRef: {{kind: Pod, name: p{holder}, namespace: shop, uid: p{holder}-uid}}"
                ),
            };
            let (address, conditions) = (self.address(*holder), CONDITIONS[*conditions].0);
            format!("{{addresses: ['{address}'], conditions: {{{conditions}}}{reference}}}")
        };
        let endpoints: Vec<_> = self.endpoints.iter().map(endpoint).collect();
        let family = if self.is_ipv4 { "IPv4" } else { "IPv6" };
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: cart-{at}, namespace: shop, labels: \
             {{kubernetes.io/service-name: cart}}}}\naddressType: {family}\nports: [{{name: {}, port: {}}}]\nendpoints: [{}]\n",
            self.port.0,
            self.port.1,
            endpoints.join(", ")
        )
    }
}

fn pods() -> Vec<String> {
    let pod_at = |(at, holder): (usize, &Holder)| {
        let ips = [format!("10.1.0.{}", at + 1), format!("fd00::{}", at + 1)];
        let pod = pod(&format!("p{at}"), &[&ips[0], &ips[1]], "");
        match holder {
            Holder::Meshed => Some(pod),
            Holder::Plain => Some(pod.replace("tidegate-sidecar", "migrate")),
            Holder::Missing | Holder::Unnamed => None,
            Holder::Moved => Some(pod.replace("10.1.0.", "10.1.9.").replace("fd00::", "fd00::9:")),
            Holder::Again => Some(pod.replace("-uid,", "-another,")),
            Holder::Ended => Some(pod.replace("phase: Running", "phase: Succeeded")),
        }
    };
    HOLDERS.iter().enumerate().filter_map(pod_at).collect()
}

/// "The ready endpoints of the port, in all slices of a family; if there is none, those that terminate and still serve." An
/// endpoint whose Pod is not known to have the address is left out, and one with a sidecar is reached by its identity.
fn expected(slices: &[RandomSlice], is_ipv4: bool) -> BTreeMap<SocketAddr, Option<String>> {
    for wants_last in [false, true] {
        let mut found = BTreeMap::new();
        for slice in slices.iter().filter(|slice| slice.is_ipv4 == is_ipv4 && slice.port.0 == "http") {
            for (holder, conditions) in &slice.endpoints {
                let (_, is_ready, is_last) = CONDITIONS[*conditions];
                let account = match HOLDERS[*holder] {
                    Holder::Meshed => Some(format!("p{holder}")),
                    Holder::Plain | Holder::Unnamed => None,
                    _ => continue,
                };
                if if wants_last { is_last } else { is_ready } {
                    let ip: IpAddr = slice.address(*holder).parse().unwrap();
                    found.insert(SocketAddr::new(ip, slice.port.1), account);
                }
            }
        }
        if !found.is_empty() {
            return found;
        }
    }
    BTreeMap::new()
}

fn slices() -> impl Strategy<Value = Vec<RandomSlice>> {
    let port = prop::sample::select(vec![("http", 8080), ("http", 9090), ("admin", 8080)]);
    let endpoints = prop::collection::vec((0..HOLDERS.len(), 0..CONDITIONS.len()), 0..5);
    let one = (any::<bool>(), port, endpoints);
    let one = one.prop_map(|(is_ipv4, port, endpoints)| RandomSlice { is_ipv4, port, endpoints });
    prop::collection::vec(one, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_service_has_the_endpoints_that_kubernetes_and_the_pods_say(slices in slices()) {
        let documents: Vec<_> = slices.iter().enumerate().map(|(at, slice)| slice.document(at)).collect();
        let (cart, pods) = (service(CART), pods());
        let documents: Vec<_> = documents.iter().chain([&cart]).chain(&pods).map(String::as_str).collect();
        let name = BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port: 80 };
        let backend = backend(&documents, &name).value.unwrap();
        let endpoint = |endpoint: &Endpoint| match &endpoint.transport {
            Transport::Mesh(identity) => (endpoint.address, Some(identity.service_account().to_owned())),
            _ => (endpoint.address, None),
        };
        let found: BTreeMap<_, _> = backend.endpoints.iter().map(endpoint).collect();
        let both: BTreeMap<_, _> = [true, false].into_iter().flat_map(|is_ipv4| expected(&slices, is_ipv4)).collect();
        prop_assert_eq!(found, both);
    }
}
