use super::*;
use crate::object::Kind;

/// The status, the condition's reason, the reason and the warnings of a split of namespace `shop`.
pub(super) fn status(documents: &[&str], name: &str) -> String {
    let documents: Vec<_> = [SERVICES, GROUPS].into_iter().chain(documents.iter().copied()).collect();
    shown(&index(&documents), name)
}

fn shown(index: &Index, name: &str) -> String {
    let all = crate::compile::status::statuses(&StatusScope::everything(index));
    let is_it = |(kind, judged): &&(Kind, Judged)| *kind == Kind::TrafficSplit && &*judged.name.name == name;
    let status = &all.iter().find(is_it).unwrap().1.status;
    let word = status.condition.unwrap();
    let (current, reason) = match status.current {
        CurrentStatus::Committed => ("committed", String::new()),
        CurrentStatus::Error => ("error", format!(": {}", status.reason)),
    };
    let warnings = status.warnings.iter().map(|warning| format!("; {warning}")).collect::<String>();
    format!("{current} {word}{reason}{warnings}")
}

/// Of a split of Service `v2`, which has one port.
fn of_v2(backends: &str, more: &str) -> String {
    status(&[&split("s", 1, backends, more).replace("service: cart", "service: v2")], "s")
}

#[test]
fn a_split_that_is_in_force_says_so_and_what_it_leaves_out() {
    assert_eq!(of_v2(NINE_TO_ONE, ""), "committed Accepted");
    assert_eq!(
        status(&[&split("s", 1, NINE_TO_ONE, "")], "s"),
        "committed Accepted; these backends do not have port 5432 and get nothing of it: v2; port 8080 is not split: no \
         backend has it"
    );
    let nested = split("inner", 1, "{service: v2, weight: 1}", "").replace("service: cart", "service: v1");
    let outer = split("s", 1, NINE_TO_ONE, "").replace("service: cart", "service: v2");
    assert_eq!(
        status(&[&outer, &nested], "s"),
        "committed Accepted; splits do not nest: those of the backends v1 do not apply to their shares"
    );
}

#[test]
fn a_share_that_is_answered_with_an_error_is_an_error() {
    let with =
        |backend: &str| of_v2(&format!("{{service: v1, weight: 9}}, {{service: {backend}, weight: 1}}"), "");
    assert_eq!(with("missing"), "error ReferenceNotFound: Service shop/missing does not exist");
    assert_eq!(
        with("alias"),
        "error InvalidReference: Service shop/alias is an alias of a name outside the cluster"
    );
    assert_eq!(
        with("bytes"),
        "error InvalidReference: port 80 of Service shop/bytes carries opaque bytes, unlike the root's"
    );
    let elsewhere = "spec.backends[1].service: 'v2.other' does not name a Service of namespace shop";
    assert_eq!(with("v2.other"), format!("error Invalid: {elsewhere}"));
    let no_weight =
        "the weights add up to 0: requests are answered with 500, and other connections are reset";
    for backends in ["", "{service: v1, weight: 0}"] {
        assert_eq!(of_v2(backends, ""), format!("error Invalid: spec.backends: {no_weight}"));
    }
}

#[test]
fn a_split_that_is_not_in_force_says_why() {
    let root = |root: &str| {
        status(&[&split("s", 1, NINE_TO_ONE, "").replace("service: cart", &format!("service: {root}"))], "s")
    };
    assert_eq!(root("none"), "error ReferenceNotFound: Service shop/none does not exist");
    assert_eq!(root("headless"), "error InvalidReference: Service shop/headless has no cluster IP");
    assert_eq!(
        root("cart.other"),
        "error Invalid: spec.service: 'cart.other' does not name a Service of namespace shop"
    );
    let group =
        |name: &str| of_v2(NINE_TO_ONE, &format!(", matches: [{{kind: HTTPRouteGroup, name: {name}}}]"));
    assert_eq!(group("none"), "error ReferenceNotFound: HTTPRouteGroup shop/none does not exist");
    assert_eq!(
        group("wrong"),
        "error InvalidReference: HTTPRouteGroup shop/wrong: spec.matches[0], 'a': \"(\" is not a regular expression: \
         unclosed group"
    );
    let (older, newer) = (split("a", 1, NINE_TO_ONE, ""), split("b", 2, NINE_TO_ONE, ""));
    assert_eq!(status(&[&older, &newer], "b"), "error Conflicted: TrafficSplit shop/a is older and decides");
}

#[test]
fn what_would_be_too_much_for_a_sidecar_is_not_in_force() {
    let matches: Vec<_> = (0..200).map(|i| format!("{{name: m{i}, pathRegex: /a{i}}}")).collect();
    let groups: Vec<_> = (0..6)
        .map(|i| {
            format!(
                "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {{name: g{i}, namespace: shop}}\n\
                 spec: {{matches: [{}]}}\n",
                matches.join(", ")
            )
        })
        .collect();
    let named: Vec<_> = (0..6).map(|i| format!("{{kind: HTTPRouteGroup, name: g{i}}}")).collect();
    let split = |count: usize| {
        split("s", 1, NINE_TO_ONE, &format!(", matches: [{}]", named[..count].join(", ")))
            .replace("service: cart", "service: v2")
    };
    let status = |count| {
        let split = split(count);
        let documents: Vec<_> = groups.iter().map(String::as_str).chain([&*split]).collect();
        status(&documents, "s")
    };
    assert_eq!(status(5), "committed Accepted");
    assert_eq!(
        status(6),
        "error TooLarge: its HTTPRouteGroups have more than 1024 matches or regular expressions together"
    );
}

#[test]
fn a_split_outside_the_mesh_is_not_in_force() {
    let index = cluster_index(&[SERVICES, &split("s", 1, NINE_TO_ONE, "")]);
    assert!(shown(&index, "s").starts_with("error Invalid: "), "{}", shown(&index, "s"));
    assert!(routes(&index, 80, "shop").is_none());
}
