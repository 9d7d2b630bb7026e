//! Traces of the real programs: from the MeshConfig to what a collector gets.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use prost::Message as _;
use serde_json::json;
use tidegate_proto::otlp::ExportTraceServiceRequest;
use tidegate_tests::app::App;
use tidegate_tests::client::RequestOutcome;
use tidegate_tests::mesh::{Mesh, PORT};
use tidegate_tests::objects::{self, backend, gateway, policy};
use tidegate_tests::wait::{self, SOON};

/// Whether the last request that an app has received belongs to a trace.
fn is_traced(app: &App) -> bool {
    let requests = app.requests();
    let last = requests.last().unwrap();
    last.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("traceparent"))
}

/// The names of services and spans that a collector has received over HTTP.
fn spans(collector: &App) -> Vec<(String, String)> {
    let mut spans = Vec::new();
    for request in collector.requests() {
        assert_eq!(request.first_line, "POST /v1/traces HTTP/1.1");
        let export = ExportTraceServiceRequest::decode(request.body.as_slice()).unwrap();
        for of_pod in export.resource_spans {
            let resource = of_pod.resource.unwrap();
            let service = resource.attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let service = format!("{:?}", service.unwrap().value.unwrap().value.unwrap());
            let of_pod = of_pod.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(of_pod.map(|span| (service.clone(), span.name)));
        }
    }
    spans
}

#[test]
fn a_mesh_config_turns_traces_on_and_off_while_requests_go_on() {
    let mut mesh = Mesh::start();
    mesh.apply("policy", &[policy("httpbin", &[backend("httpbin", PORT, "http")], &[gateway()])]);
    let app = App::echo(mesh.app_address());
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let collector = App::answering(mesh.block().at(97, 4318), answer);
    let get = |mesh: &Mesh| assert_eq!(mesh.client().get("/get"), RequestOutcome::Status(200));
    get(&mesh);
    assert!(!is_traced(&app));

    let address = collector.address();
    let mut config = objects::mesh_config(true);
    config["spec"]["observability"] = json!({"tracing": {
        "enable": true, "address": address.ip().to_string(), "port": address.port(), "sampledFraction": "1",
    }});
    mesh.apply("config", &[config.clone()]);
    wait::until_true("requests are traced", SOON, || {
        get(&mesh);
        is_traced(&app)
    });
    let expected = ("StringValue(\"httpbin\")".to_owned(), "GET".to_owned());
    wait::until_true("the collector has spans", SOON, || spans(&collector).contains(&expected));

    config["spec"]["observability"]["tracing"]["enable"] = false.into();
    mesh.apply("config", &[config]);
    wait::until_true("requests are not traced any more", SOON, || {
        get(&mesh);
        !is_traced(&app)
    });
}
