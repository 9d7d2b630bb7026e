//! Objects of SMI, Open Service Mesh and Gateway API that are about one Service: which of them decides where requests go, and
//! that retries, limits and authorization apply whichever does.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tidegate_proto::external_authorization::AttributeContext;
use tidegate_tests::app::App;
use tidegate_tests::authorizer::{Authorizer, allow, deny};
use tidegate_tests::caller::{CallerMesh, service, slice};
use tidegate_tests::mesh::{Options, PORT};
use tidegate_tests::objects;
use tidegate_tests::wait::{self, SOON};

/// What decides, the Service that its requests go to then, and the pod's port behind that.
const DECIDING: [(&str, &str, u16); 3] =
    [("the Service", "called", PORT), ("a TrafficSplit", "split", 14002), ("an HTTPRoute", "routed", 14003)];

/// Answers with its name, and each path that begins with `/flaky` with 503 the first time.
fn app(address: SocketAddr, name: &'static str) -> App {
    let seen = Arc::new(Mutex::new(HashSet::new()));
    App::start(address, move |conversation| {
        while let Some(request) = conversation.request()? {
            let is_first = seen.lock().unwrap().insert(request.target().to_owned());
            let fails = request.target().starts_with("/flaky") && is_first;
            let status = if fails { "503 Service Unavailable" } else { "200 OK" };
            let length = name.len();
            conversation
                .write(format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{name}").as_bytes())?;
        }
        Ok(())
    })
}

fn object(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "httpbin"}, "spec": spec})
}

/// What decides where requests to Service `called` go: both, the split alone, or neither.
fn deciding(place: usize, route_more: &Value) -> Vec<Value> {
    let mut rule = json!({"backendRefs": [{"name": "routed", "port": 80}]});
    if let Some(more) = route_more.as_object() {
        rule.as_object_mut().unwrap().extend(more.clone());
    }
    let parent = json!({"group": "", "kind": "Service", "name": "called", "port": 80});
    let route = json!({"parentRefs": [parent], "rules": [rule]});
    let split = json!({"service": "called", "backends": [{"service": "split", "weight": 1}]});
    let all = vec![
        object("split.smi-spec.io/v1alpha4", "TrafficSplit", "split", split),
        object("gateway.networking.k8s.io/v1", "HTTPRoute", "routed", route),
    ];
    all.into_iter().take(place).collect()
}

/// What applies whichever decides: the caller may request everything but `/secret`, `/limited` once an hour at each Service, what
/// fails is retried, and a server also authorizes requests.
fn on_top(server: SocketAddr) -> Vec<Value> {
    let path = |name: &str, path: &str| json!({"name": name, "pathRegex": path});
    let matches = json!([path("limited", "/limited"), path("others", "/(flaky.*|denied)?")]);
    let account = |name: &str| json!({"kind": "ServiceAccount", "name": name, "namespace": "httpbin"});
    let rules = json!([{"kind": "HTTPRouteGroup", "name": "paths"}]);
    let target = json!({"destination": account("httpbin"), "rules": rules, "sources": [account("caller")]});
    let destination = json!({"kind": "Service", "name": "called", "namespace": "httpbin"});
    let retry = json!({
        "source": account("caller"), "destinations": [destination],
        "retryPolicy": {"retryOn": "503", "numRetries": 1, "retryBackoffBaseInterval": "1ms"},
    });
    let setting = |name: &str| {
        let limit = json!({"local": {"requests": 1, "unit": "hour"}});
        let host = format!("{name}.httpbin.svc.cluster.local");
        let spec = json!({"host": host, "httpRoutes": [{"path": "/limited", "rateLimit": limit}]});
        object("policy.openservicemesh.io/v1alpha1", "UpstreamTrafficSetting", name, spec)
    };
    let mut config = objects::mesh_config(false);
    config["spec"]["traffic"]["inboundExternalAuthorization"] =
        json!({"enable": true, "address": server.ip(), "port": server.port(), "timeout": "10s"});
    let mut objects = vec![
        config,
        object("specs.smi-spec.io/v1alpha4", "HTTPRouteGroup", "paths", json!({"matches": matches})),
        object("access.smi-spec.io/v1alpha3", "TrafficTarget", "paths", target),
        object("policy.openservicemesh.io/v1alpha1", "Retry", "called", retry),
    ];
    objects.extend(DECIDING.map(|(_, name, _)| setting(name)));
    objects
}

/// Services `split` and `routed`, whose endpoints are other ports of the pod.
fn backends(mesh: &CallerMesh) -> Vec<Value> {
    let backend = |(_, name, port): &(&str, &str, u16)| {
        let mut service = service("http");
        service["metadata"]["name"] = (*name).into();
        service["spec"] = json!({"selector": {"app": "httpbin"}, "ports": [{"name": "http", "port": 80, "targetPort": port}]});
        let mut slice = slice(0, mesh.mesh.target_port(*port), "httpbin", "http");
        slice["metadata"]["name"] = format!("{name}-0").into();
        slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": name});
        [service, slice]
    };
    DECIDING[1..].iter().flat_map(backend).collect()
}

/// Status and body of a GET through both sidecars.
fn get(mesh: &CallerMesh, path: &str) -> (u16, String) {
    let answer = mesh.app().answer(path);
    (answer.status(), answer.text())
}

/// The path of a request that the server has checked.
fn path_of(check: &AttributeContext) -> &str {
    &check.request.as_ref().unwrap().http.as_ref().unwrap().path
}

#[test]
fn one_object_decides_where_requests_go_and_retries_limits_and_authorization_apply_whichever_it_is() {
    let ports = vec![(14002, "http-split"), (14003, "http-routed")];
    let mut mesh = CallerMesh::start(Options { ports, ..Options::default() });
    let _apps = DECIDING.map(|(_, name, port)| app(mesh.mesh.app_port(port), name));
    let backends = backends(&mesh);
    mesh.mesh.apply("backends", &backends);
    let server =
        Authorizer::start(|request| if request.path == "/denied" { deny(401, &[], "no") } else { allow() });
    mesh.mesh.apply("config", &on_top(server.address()));
    for (place, (what, name, _)) in DECIDING.into_iter().enumerate() {
        mesh.mesh.apply("deciding", &deciding(place, &Value::Null));
        wait::until_true(what, SOON, || get(&mesh, "/") == (200, name.to_owned()));
        assert_eq!(get(&mesh, &format!("/flaky-{place}")), (200, name.to_owned()), "retried: {what}");
        assert_eq!(get(&mesh, "/limited"), (200, name.to_owned()), "{what}");
        assert_eq!(get(&mesh, "/limited").0, 429, "{what}");
        assert_eq!(get(&mesh, "/secret"), (403, "RBAC: access denied".to_owned()), "{what}");
        assert_eq!(get(&mesh, "/denied"), (401, "no".to_owned()), "{what}");
        // What the policy or a limit refuses is not sent to the server.
        let checked = |path: &str| server.checks().iter().filter(|check| path_of(check) == path).count();
        assert_eq!(
            (checked("/secret"), checked("/limited"), checked("/denied")),
            (0, place + 1, place + 1),
            "{what}"
        );
    }
    // A rule with limits of its own decides alone about retries.
    mesh.mesh.apply("deciding", &deciding(2, &json!({"timeouts": {"request": "10s"}})));
    let mut asked = 0;
    wait::until_true("the Retry does not apply", SOON, || {
        asked += 1;
        get(&mesh, &format!("/flaky-alone-{asked}")) == (503, "routed".to_owned())
    });
}
