use super::*;

#[test]
fn a_parent_accepts_a_route_if_it_is_a_service_with_a_cluster_ip_and_such_a_port() {
    let rules = format!("{{{TO_V1}}}");
    for (parent, expected) in [
        ("", "Accepted"),
        (", port: 80", "Accepted"),
        (", sectionName: web", "Accepted"),
        (", sectionName: web, port: 8080", "Accepted"),
        (", sectionName: web, port: 80", "Accepted=NoMatchingParent"),
        (", port: 81", "Accepted=NoMatchingParent"),
        (", port: 53", "Accepted=NoMatchingParent"),
        (", port: 5432", "Accepted=UnsupportedValue"),
    ] {
        let documents = [SERVICES, &route("HTTPRoute", "shop/r", parent, &rules)];
        assert_eq!(
            conditions(&documents, Features::EXECUTED),
            format!("{expected} ResolvedRefs"),
            "{parent}"
        );
    }
    for (service, expected) in [
        ("none", "Accepted=NoMatchingParent"),
        ("headless", "Accepted=UnsupportedValue"),
        ("alias", "Accepted=UnsupportedValue"),
    ] {
        let route =
            route("HTTPRoute", "shop/r", "", &rules).replace("name: cart", &format!("name: {service}"));
        let documents = [SERVICES, &route];
        assert_eq!(
            conditions(&documents, Features::EXECUTED),
            format!("{expected} ResolvedRefs"),
            "{service}"
        );
    }
}

#[test]
fn a_grpc_route_takes_a_port_from_http_routes_of_its_namespace() {
    let rules = format!("{{{TO_V1}}}");
    let http = route("HTTPRoute", "shop/r", "", &rules);
    let documents = |grpc: &str| conditions(&[SERVICES, &http, grpc], Features::EXECUTED);
    let conflicted = "Accepted=Conflicted ResolvedRefs";
    assert_eq!(documents(&route("GRPCRoute", "shop/g", ", port: 80", &rules)), conflicted);
    assert_eq!(documents(&route("GRPCRoute", "web/g", ", port: 80", &rules)), "Accepted ResolvedRefs");
    assert_eq!(documents(&route("GRPCRoute", "shop/g", ", port: 81", &rules)), "Accepted ResolvedRefs");
}

#[test]
fn each_parent_that_is_a_service_has_an_entry_and_gateways_have_none_of_ours() {
    let route = http(&format!("{{{TO_V1}}}")).replace(
        "parentRefs: [",
        "parentRefs: [{name: edge}, {group: '', kind: Service, name: none, namespace: shop}, ",
    );
    let index = index(&[SERVICES, &route]);
    let mut statuses = RouteStatuses::new(&index, Features::EXECUTED);
    let judged = statuses.judged(index.routes().next().unwrap());
    let parents = judged.status.parents.unwrap();
    let names: Vec<_> = parents.iter().map(|parent| parent.parent_ref.name.as_str()).collect();
    assert_eq!(names, ["none", "cart"]);
    assert_eq!(judged.status.current, CurrentStatus::Error);
    assert_eq!(judged.status.reason, "NoMatchingParent: there is no Service shop/none");
    assert!(judged.is_incomplete, "all that is wrong is that a Service is missing");
}

#[test]
fn a_message_names_the_rules_that_are_left_out() {
    let rules = format!(
        "{{filters: [{{type: CORS, cors: {{}}}}], {TO_V1}}}, {{matches: [{{path: {{value: /a}}}}], {TO_V1}}}"
    );
    let index = index(&[SERVICES, &http(&rules)]);
    let parents = RouteStatuses::new(&index, Features::EXECUTED).parents(index.routes().next().unwrap());
    let partly = parents[0].conditions.iter().find(|found| found.kind == "PartiallyInvalid").unwrap();
    let start = "Dropped Rule rules[0]: filters[0]: unknown variant `CORS`";
    assert!(partly.message.starts_with(start), "{}", partly.message);
}

#[test]
fn only_routes_with_a_service_as_a_parent_or_with_a_report_of_ours_have_a_status() {
    let gateway = http("").replace("group: '', kind: Service, ", "");
    let index = index(&[SERVICES, &gateway]);
    let scope = StatusScope::everything(&index);
    let object = index.routes().next().unwrap();
    assert!(!is_ours(&scope, &object));
    let reported = RouteObject { is_reported: true, ..object };
    assert!(is_ours(&scope, &reported));
    let judged = RouteStatuses::new(&index, Features::EXECUTED).judged(reported);
    assert_eq!(judged.status.parents, Some(vec![]), "what was reported is withdrawn");
}
