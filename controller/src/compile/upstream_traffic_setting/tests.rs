use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tidegate_core::TrustDomain;
use tidegate_core::backend::BackendLimits;
use tidegate_core::policy::{InboundPolicy, RateLimits};

use super::connections::backend_limits;
use crate::compile::status::{self, CurrentStatus, ObjectStatus, StatusScope};
use crate::compile::workload;
use crate::explain::HttpRequest;
use crate::index::{Affected, Index};
use crate::object::{Kind, ObjectName};
use crate::source::folder::FolderSource;
use crate::testing::{BOOKS, HTTPBIN, NOT_PERMISSIVE, PERMISSIVE, index};

fn policy(index: &Index) -> InboundPolicy {
    let pod = index.pod(&ObjectName::new("httpbin", "httpbin-1")).unwrap();
    workload(index, pod, &TrustDomain::default()).unwrap()
}

fn limits(index: &Index) -> Vec<Arc<RateLimits>> {
    policy(index).ports[&14001].rate_limits.clone()
}

fn status(index: &Index, name: &str) -> ObjectStatus {
    let all = status::statuses(&StatusScope::everything(index));
    let found = all
        .into_iter()
        .find(|(kind, judged)| *kind == Kind::UpstreamTrafficSetting && &*judged.name.name == name);
    found.unwrap_or_else(|| panic!("no {name}")).1.status
}

/// The status as its condition's reason, the reason in full and the first warning.
fn told(index: &Index, name: &str) -> [String; 3] {
    let status = status(index, name);
    assert_eq!(status.current == CurrentStatus::Committed, status.condition == Some("Accepted"));
    let warning = status.warnings.first().cloned().unwrap_or_default();
    [status.condition.unwrap().to_owned(), status.reason, warning]
}

/// An UpstreamTrafficSetting of `httpbin`; `spec` is a YAML map without its brackets and its host.
fn setting(name: &str, more: &str, service: &str, spec: &str) -> String {
    format!(
        "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: UpstreamTrafficSetting\n\
         metadata: {{{more}name: {name}, namespace: httpbin}}\n\
         spec: {{host: {service}.httpbin.svc.cluster.local, {spec}}}\n"
    )
}

fn route(path: &str, requests: u32) -> String {
    format!("{{path: '{path}', rateLimit: {{local: {{requests: {requests}, unit: minute, burst: 2}}}}}}")
}

/// What each limit says of connections and of requests for a path.
fn answer(index: &Index, path: &str) -> Vec<String> {
    let request = HttpRequest { path: path.into(), ..HttpRequest::default() };
    let one = |limits: &Arc<RateLimits>| {
        let mut text = limits.origin.name.to_string();
        limits.connections.iter().for_each(|rate| write!(text, ", connections {rate}").unwrap());
        let limit = request.limit(limits).unwrap();
        limit.iter().for_each(|limit| write!(text, ", requests {} {}", limit.rate, limit.status).unwrap());
        text
    };
    limits(index).iter().map(one).collect()
}

#[test]
fn a_setting_limits_connections_requests_and_those_with_the_path_of_a_route() {
    let spec = format!(
        "rateLimit: {{local: {{tcp: {{connections: 5, unit: hour}}, http: {{requests: 9, unit: second, burst: 1, \
         responseStatusCode: 503, responseHeadersToAdd: [{{name: X-Limited, value: a}}]}}}}}}, httpRoutes: [{}]",
        route("/books.*", 3)
    );
    let index = index(&[HTTPBIN, NOT_PERMISSIVE, BOOKS, &setting("a", "", "httpbin", &spec)]);
    assert_eq!(
        answer(&index, "/x"),
        ["a, connections 5 per hour, requests 9 per second and a burst of 1 503"]
    );
    assert_eq!(
        answer(&index, "/books/1"),
        ["a, connections 5 per hour, requests 3 per minute and a burst of 2 429"]
    );
    let of_service = limits(&index)[0].requests.clone().unwrap();
    let header = of_service.headers.appended().map(|(name, value)| format!("{name}: {}", value.as_str()));
    assert_eq!(header.collect::<Vec<_>>(), ["x-limited: a"]);
    assert_eq!(told(&index, "a")[0], "Accepted");
}

#[test]
fn a_limit_whose_path_no_route_group_has_is_left_out_and_reported_and_the_others_hold() {
    let spec = format!("httpRoutes: [{}, {}]", route("/books/1", 1), route("/books.*", 3));
    let with = |groups| index(&[HTTPBIN, NOT_PERMISSIVE, groups, &setting("a", "", "httpbin", &spec)]);
    let index = with(BOOKS);
    assert_eq!(answer(&index, "/books/1"), ["a, requests 3 per minute and a burst of 2 429"]);
    assert_eq!(
        told(&index, "a"),
        [
            "ReferenceNotFound",
            "spec.httpRoutes[0].path: no HTTPRouteGroup of the namespace has a match with pathRegex '/books/1', so this limit \
             has no effect",
            ""
        ]
    );
    assert_eq!(answer(&with(PERMISSIVE), "/books/1"), Vec::<String>::new());
}

const GLOBAL: &str = "rateLimit: {global: {tcp: {rateLimitService: {host: HOST, port: 1}, domain: d, descriptors: [{entries: \
    [{key: a, value: b}]}]}, http: {rateLimitService: {host: HOST, port: 8081}, domain: shop, failOpen: false, descriptors: \
    [{entries: [{genericKey: {value: all}}, {remoteAddress: {}}]}]}}}, httpRoutes: [{path: '/books.*', rateLimit: {global: \
    {descriptors: [{entries: [{requestHeader: {name: x-user, key: user}}]}]}}}]";

#[test]
fn a_global_limit_is_called_for_what_its_descriptors_or_those_of_a_route_describe() {
    let spec = GLOBAL.replace("HOST", "10.9.9.9");
    let index = index(&[HTTPBIN, NOT_PERMISSIVE, BOOKS, &setting("a", "", "httpbin", &spec)]);
    assert_eq!(told(&index, "a"), ["Accepted", "successfully committed by the system", ""]);
    let of_port = limits(&index);
    assert_eq!(
        of_port[0].global.connections.as_ref().unwrap().to_string(),
        "10.9.9.9:1 decides within 20ms, domain \"d\"; its failure allows; it gets a=b"
    );
    let global = |path: &str, header: &str| {
        let headers = HttpRequest::header(header).into_iter().collect();
        let request = HttpRequest { path: path.into(), headers, ..HttpRequest::default() };
        request.global(&of_port[0], "10.0.0.9".parse().unwrap()).unwrap()
    };
    let service = "10.9.9.9:8081 decides within 20ms, domain \"shop\"; its failure refuses; it gets";
    assert_eq!(global("/x", "").unwrap(), format!(": {service} generic_key=all,remote_address=10.0.0.9"));
    assert_eq!(
        global("/books/1", "x-user: alice").unwrap(),
        format!(" for \"/books.*\": {service} user=alice")
    );
    assert_eq!(global("/books/1", ""), None);
}

#[test]
fn a_rate_limit_service_that_does_not_exist_is_reported_until_it_does() {
    let spec = GLOBAL.replace("HOST", "limiter.limits.svc.cluster.local");
    let mut index = index(&[HTTPBIN, NOT_PERMISSIVE, BOOKS, &setting("a", "", "httpbin", &spec)]);
    assert_eq!(
        told(&index, "a")[..2],
        [
            "ReferenceNotFound",
            "spec.rateLimit.global.tcp.rateLimitService.host: Service limits/limiter does not exist"
        ]
    );
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: limiter, namespace: limits}\nspec: {ports: [{port: 8081}]}\n";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("limiter.yaml"), text).unwrap();
    let mut affected = Affected::default();
    for change in FolderSource::new(folder.path()).load().changes {
        index.apply(change, &mut affected);
    }
    assert!(affected.policies.contains("httpbin"), "{affected:?}");
    assert_eq!(told(&index, "a")[0], "Accepted");
}

#[test]
fn the_path_of_everything_needs_no_route_group() {
    let spec = format!("httpRoutes: [{}]", route(".*", 4));
    let index = index(&[HTTPBIN, PERMISSIVE, &setting("a", "", "httpbin", &spec)]);
    assert_eq!(answer(&index, "/x"), ["a, requests 4 per minute and a burst of 2 429"]);
    assert_eq!(told(&index, "a")[0], "Accepted");
}

#[test]
fn of_two_settings_for_a_service_the_older_counts_and_the_other_says_so() {
    let of = |created: &str| format!("creationTimestamp: '{created}', ");
    let spec =
        |requests: u32| format!("rateLimit: {{local: {{http: {{requests: {requests}, unit: hour}}}}}}");
    let index = index(&[
        HTTPBIN,
        PERMISSIVE,
        &setting("a", &of("2026-02-02T00:00:00Z"), "httpbin", &spec(1)),
        &setting("b", &of("2026-01-01T00:00:00Z"), "httpbin", &spec(2)),
    ]);
    assert_eq!(answer(&index, "/x"), ["b, requests 2 per hour 429"]);
    assert_eq!(
        told(&index, "a")[..2],
        ["Conflicted", "spec.host: UpstreamTrafficSetting httpbin/b is older and has the same host"]
    );
    assert_eq!(told(&index, "b")[0], "Accepted");
}

#[test]
fn what_is_wrong_is_said_in_the_status() {
    let limit = "rateLimit: {local: {http: {requests: 1, unit: hour}}}";
    let of = |more: &str, service: &str, spec: &str| {
        let index = index(&[HTTPBIN, PERMISSIVE, &setting("a", more, service, spec)]);
        (told(&index, "a"), answer(&index, "/x").len())
    };
    let (missing, _) = of("", "other", limit);
    assert_eq!(missing[..2], ["ReferenceNotFound", "spec.host: Service httpbin/other does not exist"]);
    let (elsewhere, _) = of("", "httpbin.x", limit);
    assert_eq!(elsewhere[0], "Invalid");
    assert!(elsewhere[1].contains("is not the host of a Service of namespace httpbin"), "{elsewhere:?}");
    let audit = "annotations: {tidegate.io/audit: \"true\"}, ";
    let (audited, count) = of(audit, "httpbin", limit);
    assert_eq!((audited[0].as_str(), count), ("Accepted", 1));
    assert!(audited[2].starts_with("audit mode"), "{audited:?}");
    let (typo, _) = of(&audit.replace("true", "yes"), "httpbin", limit);
    assert_eq!(
        typo[2],
        "annotation tidegate.io/audit: expected \"true\" or \"false\", got \"yes\"; this is enforced"
    );
    let (open, count) = of(audit, "httpbin", "connectionSettings: {tcp: {maxConnections: 1}}");
    assert_eq!((open[0].as_str(), count), ("Accepted", 0));
    assert!(open[2].ends_with("connectionSettings have no effect"), "{open:?}");
    let egress = "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: Egress\nmetadata: {name: e, namespace: httpbin}\n\
                  spec: {sources: [{kind: ServiceAccount, name: a, namespace: httpbin}], hosts: [a.example], ports: [{number: \
                  80, protocol: http}], matches: [{apiGroup: policy.openservicemesh.io/v1alpha1, kind: \
                  UpstreamTrafficSetting, name: a}]}\n";
    let external = index(&[HTTPBIN, PERMISSIVE, egress, &setting("a", "", "httpbin.x", limit)]);
    assert_eq!(told(&external, "a")[0], "Accepted", "an Egress refers to it");
    let (late, _) = of("", "httpbin", "connectionSettings: {tcp: {connectTimeout: 0s}}");
    assert_eq!(late[0], "Invalid");
    assert!(
        late[1].starts_with("spec.connectionSettings.tcp.connectTimeout: must be longer than 0"),
        "{late:?}"
    );
}

#[test]
fn what_one_client_has_open_is_limited_by_the_oldest_setting_of_the_service() {
    let spec = "connectionSettings: {tcp: {maxConnections: 1, connectTimeout: 1500ms}, http: {maxRequests: 2, \
                maxRequestsPerConnection: 3, maxPendingRequests: 0, maxRetries: 5}}";
    let of = |settings: &[String]| {
        let documents = [HTTPBIN, PERMISSIVE].into_iter().chain(settings.iter().map(String::as_str));
        backend_limits(&index(&documents.collect::<Vec<_>>()), &ObjectName::new("httpbin", "httpbin"))
    };
    let all = BackendLimits {
        max_connections: Some(1),
        connect_timeout: Some(Duration::from_millis(1500)),
        max_requests: Some(2),
        max_requests_per_connection: Some(3),
        max_pending_requests: Some(0),
        max_retries: Some(5),
    };
    let none = BackendLimits::default();
    assert_eq!(of(&[]), none);
    assert_eq!(of(&[setting("a", "", "httpbin", spec)]), all);
    let younger = setting("b", "", "httpbin", "connectionSettings: {http: {maxRequests: 9}}");
    assert_eq!(of(&[setting("a", "", "httpbin", spec), younger]), all);
    assert_eq!(of(&[setting("a", "annotations: {tidegate.io/audit: \"true\"}, ", "httpbin", spec)]), none);
    assert_eq!(of(&[setting("a", "", "other", spec)]), none);
    let ineffective =
        "connectionSettings: {tcp: {connectTimeout: soon}, http: {maxRequestsPerConnection: 0}}";
    assert_eq!(of(&[setting("a", "", "httpbin", ineffective)]), none);
}

/// A setting as written: its Service, whether it is the older one, limits of connections and requests, and of routes.
type Written = (bool, u8, Option<u32>, Option<u32>, Vec<(usize, u32)>);

const PATHS: [&str; 4] = ["/a", "/b", "/c", ".*"];

fn manifest(name: &str, (is_of_httpbin, day, connections, requests, routes): &Written) -> String {
    let service = if *is_of_httpbin { "httpbin" } else { "other" };
    let created = format!("creationTimestamp: '2026-01-0{day}T00:00:00Z', ");
    let tcp = connections.map(|count| format!("tcp: {{connections: {count}, unit: second}}, "));
    let http = requests.map(|count| format!("http: {{requests: {count}, unit: second}}"));
    let routes: Vec<_> = routes.iter().map(|(path, count)| route(PATHS[*path], *count)).collect();
    let spec = format!(
        "rateLimit: {{local: {{{}{}}}}}, httpRoutes: [{}]",
        tcp.unwrap_or_default(),
        http.unwrap_or_default(),
        routes.join(", ")
    );
    setting(name, &created, service, &spec)
}

/// One sentence of the documentation per line.
fn naive(settings: &[(&str, Written)], groups: &[usize], path: &str) -> Vec<String> {
    let mut of_service: Vec<_> = settings.iter().filter(|(_, written)| written.0).collect();
    of_service.sort_by_key(|(name, written)| (written.1, *name));
    let Some((name, (_, _, connections, requests, routes))) = of_service.first() else { return vec![] };
    let is_known = |place: usize| place == 3 || groups.contains(&place);
    let mut routes = routes.iter().filter(|(place, _)| is_known(*place));
    if connections.is_none() && requests.is_none() && routes.clone().next().is_none() {
        return vec![];
    }
    let of_route = routes.find(|(place, _)| *place == 3 || PATHS[*place] == path);
    let limit = of_route.map(|(_, count)| format!(", requests {count} per minute and a burst of 2 429"));
    let limit = limit.or(requests.map(|count| format!(", requests {count} per second 429")));
    let connections = connections.map(|count| format!(", connections {count} per second"));
    vec![format!("{name}{}{}", connections.unwrap_or_default(), limit.unwrap_or_default())]
}

proptest! {
    #[test]
    fn compiled_limits_are_those_that_the_documentation_describes(
        settings in prop::collection::vec(
            (
                any::<bool>(),
                1_u8..4,
                prop::option::of(1_u32..9),
                prop::option::of(1_u32..9),
                prop::collection::vec((0_usize..4, 1_u32..9), 0..4),
            ),
            0..4,
        ),
        groups in prop::sample::subsequence(vec![0_usize, 1, 2], 0..=3),
        path in prop::sample::select(vec!["/a", "/b", "/c", "/d"]),
    ) {
        let settings: Vec<_> = ["s1", "s2", "s3"].into_iter().zip(settings).collect();
        let matches: Vec<_> =
            groups.iter().map(|place| format!("{{name: m{place}, pathRegex: {}}}", PATHS[*place])).collect();
        let group = format!(
            "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {{name: g, namespace: httpbin}}\n\
             spec: {{matches: [{}]}}\n",
            matches.join(", ")
        );
        let manifests: Vec<_> = settings.iter().map(|(name, written)| manifest(name, written)).collect();
        let documents: Vec<_> =
            [HTTPBIN, PERMISSIVE, &group].into_iter().chain(manifests.iter().map(String::as_str)).collect();
        prop_assert_eq!(answer(&index(&documents), path), naive(&settings, &groups, path));
    }
}

#[test]
fn a_change_of_a_setting_or_of_a_route_group_compiles_the_pods_behind_its_service() {
    let spec = format!("httpRoutes: [{}]", route("/books.*", 3));
    let before = setting("a", "", "httpbin", &spec);
    for changed in [setting("a", "", "httpbin", ""), BOOKS.to_owned()] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("changed.yaml"), &changed).unwrap();
        let mut index = index(&[HTTPBIN, PERMISSIVE, &before]);
        let mut affected = Affected::default();
        for change in FolderSource::new(folder.path()).load().changes {
            index.apply(change, &mut affected);
        }
        assert!(affected.pods.contains(&ObjectName::new("httpbin", "httpbin-1")), "{changed}");
        assert!(affected.policies.contains("httpbin"), "{changed}");
        let service = ObjectName::new("httpbin", "httpbin");
        assert_eq!(affected.services.contains(&service), changed != BOOKS, "{changed}");
    }
}
