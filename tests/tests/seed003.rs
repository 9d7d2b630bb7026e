//! The ingress walk-through of Open Service Mesh, with a real nginx: no policy, http, https with the right principal,
//! with an untrusted one, and without client certificates.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::process::Command;

use tidegate_tests::app::App;
use tidegate_tests::client::{Client, TlsVersion};
use tidegate_tests::http1::Message;
use tidegate_tests::mesh::{Mesh, Options, SERVER_NAME, example};
use tidegate_tests::nginx::{Backend, Nginx, ProxySsl};
use tidegate_tests::objects::{backend, gateway, https, policy, principal};

fn example_mesh() -> Mesh {
    Mesh::with(Options { example_files: true, ..Options::default() })
}

fn apply_example(mesh: &Mesh, name: &str) {
    let text = fs::read_to_string(example(&format!("policies/{name}.yaml"))).unwrap();
    mesh.apply_verbatim("policy.yaml", &text);
    assert_eq!(
        mesh.status("httpbin"),
        ("committed".to_owned(), "successfully committed by the system".to_owned()),
        "{name}"
    );
}

/// `curl -sI` as in the walk-through: the status line and the header lines.
fn curl(nginx: &Nginx) -> Vec<String> {
    let output = Command::new("curl")
        .args(["-sI", "--max-time", "20", &format!("http://{}/get", nginx.address())])
        .output()
        .unwrap_or_else(|error| panic!("curl: {error}; on Debian: apt-get install curl"));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn the_walk_through_answers_502_200_200_403_200() {
    let mesh = example_mesh();
    let app = App::echo(mesh.app_address());
    let plain = Backend { target: mesh.target(), tls: None };
    let mutual = Backend { tls: Some(ProxySsl::new(mesh.secret(), SERVER_NAME)), ..plain };

    let mut nginx = Nginx::start(mesh.path(), mesh.front(), mesh.gateway(), &plain);
    assert_eq!(curl(&nginx)[0], "HTTP/1.1 502 Bad Gateway");
    assert!(
        nginx.error_log().contains("recv() failed (104: Connection reset by peer)"),
        "{}",
        nginx.error_log()
    );
    assert!(app.received().is_empty());

    apply_example(&mesh, "1-http");
    let answer = curl(&nginx);
    assert_eq!(answer[0], "HTTP/1.1 200 OK");
    assert!(answer.contains(&"Content-Type: application/json".to_owned()), "{answer:?}");
    assert!(answer.contains(&"access-control-allow-origin: *".to_owned()), "{answer:?}");

    nginx.reload(&mutual);
    assert_eq!(curl(&nginx)[0], "HTTP/1.1 502 Bad Gateway");

    apply_example(&mesh, "2-https");
    assert_eq!(curl(&nginx)[0], "HTTP/1.1 200 OK");
    assert_eq!(nginx.get("/get").status(), 200);

    apply_example(&mesh, "3-https-untrusted");
    let answer = curl(&nginx);
    assert_eq!(answer[0], "HTTP/1.1 403 Forbidden");
    for line in ["Content-Type: text/plain", "Content-Length: 19", "Connection: keep-alive"] {
        assert!(answer.iter().any(|given| given.eq_ignore_ascii_case(line)), "{line} in {answer:?}");
    }
    assert_eq!(nginx.get("/get").body, b"RBAC: access denied");

    app.forget();
    apply_example(&mesh, "4-https-skip");
    assert_eq!(curl(&nginx)[0], "HTTP/1.1 200 OK");
    assert_eq!(app.requests().len(), 1);
}

#[test]
fn nginx_gets_200_with_each_tls_setting_that_its_annotations_have() {
    let mesh = example_mesh();
    let _app = App::echo(mesh.app_address());
    apply_example(&mesh, "2-https");
    let settings = ProxySsl::new(mesh.secret(), SERVER_NAME);
    let backend = |ssl| Backend { target: mesh.target(), tls: Some(ssl) };
    let mut nginx = Nginx::start(mesh.path(), mesh.front(), mesh.gateway(), &backend(settings.clone()));
    for protocols in ["TLSv1.2", "TLSv1.2 TLSv1.3", "TLSv1.3"] {
        for sends_server_name in [false, true] {
            nginx.reload(&backend(ProxySsl { protocols, sends_server_name, ..settings.clone() }));
            assert_eq!(nginx.get("/get").status(), 200, "{protocols}, server name: {sends_server_name}");
        }
    }
}

#[test]
fn a_wrong_name_or_a_missing_certificate_is_502_at_nginx_and_its_log_says_why() {
    let mesh = example_mesh();
    let app = App::echo(mesh.app_address());
    apply_example(&mesh, "2-https");
    let settings = ProxySsl::new(mesh.secret(), SERVER_NAME);
    let backend = |ssl| Backend { target: mesh.target(), tls: Some(ssl) };
    let wrong_name = ProxySsl { name: "wrong.name".to_owned(), ..settings.clone() };
    let mut nginx = Nginx::start(mesh.path(), mesh.front(), mesh.gateway(), &backend(wrong_name));
    assert_eq!(nginx.get("/get").status(), 502);
    assert!(nginx.error_log().contains("upstream SSL certificate does not match \"wrong.name\""));

    nginx.reload(&backend(ProxySsl { shows_certificate: false, ..settings }));
    assert_eq!(nginx.get("/get").status(), 502);
    assert!(nginx.error_log().contains("SSL alert number 40"), "{}", nginx.error_log());
    assert!(app.received().is_empty());
}

/// The head without the date, and the date.
fn without_date(answer: &Message) -> (String, String) {
    let text = String::from_utf8(answer.raw.clone()).unwrap();
    let date = answer.value("date").unwrap().to_owned();
    (text.replace(&date, "<date>"), date)
}

#[test]
fn the_403_is_the_one_of_open_service_mesh_and_the_connection_stays_usable() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    let untrusted = policy(
        "httpbin",
        &[https("httpbin", 14001, false, &[])],
        &[gateway(), principal("untrusted-client.cluster.local")],
    );
    let head =
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 19\r\ncontent-type: text/plain\r\ndate: <date>\r\n\r\n";
    for version in TlsVersion::ALL {
        mesh.apply("policy", std::slice::from_ref(&untrusted));
        let tls = mesh.tls().version(version).credentials(mesh.gateway_credentials());
        let mut connection = mesh.client().tls(tls).connect().unwrap();
        for _ in 0..3 {
            let (text, date) = without_date(&connection.get("/get").unwrap());
            assert_eq!(text, format!("{head}RBAC: access denied"), "{version:?}");
            assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
        }
        let answer = connection.request(b"HEAD /get HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        assert_eq!(without_date(&answer).0, head, "{version:?}");
        let answer =
            connection.request(b"POST /get HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").unwrap();
        assert_eq!(answer.status(), 403, "{version:?}");
        assert!(app.received().is_empty(), "{version:?}");

        let trusted = policy("httpbin", &[https("httpbin", 14001, false, &[])], &[principal("*")]);
        mesh.apply("policy", &[trusted]);
        assert_eq!(connection.get("/get").unwrap().status(), 200, "{version:?}: on the same connection");
        app.forget();
    }
}

#[test]
fn an_ingress_beside_its_policy_is_left_to_the_ingress_controller() {
    let mut mesh = example_mesh();
    let _app = App::echo(mesh.app_address());
    let ingress = serde_json::json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {
            "name": "httpbin",
            "namespace": "httpbin",
            "annotations": {
                "nginx.ingress.kubernetes.io/backend-protocol": "HTTPS",
                "nginx.ingress.kubernetes.io/proxy-ssl-secret": "osm-system/osm-nginx-client-cert",
                "nginx.ingress.kubernetes.io/proxy-ssl-verify": "on",
            },
        },
        "spec": {
            "ingressClassName": "nginx",
            "rules": [{"http": {"paths": [{
                "path": "/",
                "pathType": "Prefix",
                "backend": {"service": {"name": "httpbin", "port": {"number": 14001}}},
            }]}}],
        },
    });
    let rule = fs::read_to_string(example("policies/2-https.yaml")).unwrap();
    mesh.apply_text("policy", &format!("{ingress}\n---\n{rule}"));
    assert_eq!(mesh.tls_client().answer("/get").status(), 200);
    let problems = mesh.controller.admin_json("/problems");
    assert!(!problems.to_string().contains("\"error\""), "{problems}");
}

#[test]
fn without_validation_no_certificate_is_needed_and_any_is_taken() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply(
        "policy",
        &[policy("httpbin", &[https("httpbin", 14001, true, &[])], &[gateway(), principal("nobody")])],
    );
    let foreign = tidegate_tests::pki::Authority::root("Other Root");
    let leaf = tidegate_tests::pki::Leaf::dns("foreign.example");
    for version in TlsVersion::ALL {
        let tls = mesh.tls().version(version);
        for (what, tls) in [
            ("none", tls.clone()),
            ("foreign", tls.clone().credentials(foreign.issue(&leaf))),
            ("the mesh's", tls.credentials(mesh.gateway_credentials())),
        ] {
            assert_eq!(
                mesh.client().tls(tls).answer("/get").status(),
                200,
                "{version:?}, certificate: {what}"
            );
        }
    }
}

#[test]
fn the_app_gets_the_request_as_it_was_with_the_forwarding_headers_set() {
    let mut mesh = Mesh::start();
    let app = App::echo(mesh.app_address());
    mesh.apply("policy", &[policy("httpbin", &[backend("httpbin", 14001, "http")], &[gateway()])]);
    let answer: Client = mesh.client();
    let answer = answer.answer("/get?a=b%20c");
    assert_eq!(answer.status(), 200);
    let names: Vec<_> = answer.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    assert_eq!(names[..4], ["server", "content-type", "content-length", "access-control-allow-origin"]);
    let [request] = &app.requests()[..] else { panic!("{:?}", app.requests()) };
    assert_eq!(request.first_line, "GET /get?a=b%20c HTTP/1.1");
    assert_eq!(request.value("host"), Some("httpbin.test"));
    assert_eq!(request.value("x-forwarded-proto"), Some("http"));
    assert_eq!(request.value("x-forwarded-for"), Some(mesh.gateway().to_string().as_str()));
    assert_eq!(request.value("x-request-id").map(str::len), Some(36));
    assert_eq!(request.value("x-forwarded-client-cert"), None);
}
