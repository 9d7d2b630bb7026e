//! A company's proxy that intercepts TLS: apps that trust its root work through an EgressProxy, others see the error of TLS, and
//! the mesh's log says what happened. Requires root, nginx, curl and mitmproxy.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tidegate_tests::daemon::programs;
use tidegate_tests::mitmproxy::Mitmproxy;
use tidegate_tests::proxied_pod::ProxiedPod;
use tidegate_tests::wait::{self, SOON};

const PORT: u16 = 8080;

/// The status, if there is one, and the exit status of curl in the app, which trusts this root; 60 is an error of the server's
/// certificate.
fn get(pod: &ProxiedPod, root: &Path, url: &str) -> (String, Option<i32>) {
    let output = pod.curl_trusting(root, &[url]);
    (String::from_utf8(output.stdout).unwrap().trim().to_owned(), output.status.code())
}

/// What the machine sees of a server, directly and through the proxy.
fn checked(pod: &ProxiedPod) -> Value {
    let server = format!("{}:443", pod.origin.ips()[0]);
    let output = pod.node.namespace().run(|| {
        let mut command = Command::new(programs().join("tidegate"));
        command.args(["check", "egress", &server, "-o", "json"]);
        command.args(["--proxy", &format!("http://{}", pod.proxy(PORT))]);
        command.arg("--ca-file").arg(pod.root()).output().unwrap()
    });
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn an_app_that_trusts_a_bumping_proxy_works_through_it_and_another_one_sees_its_certificate() {
    let mut pod = ProxiedPod::start();
    let server = pod.origin.ips()[0].parse().unwrap();
    let mitmproxy = pod.node.namespace().run(|| Mitmproxy::start(pod.proxy(PORT), server, &pod.root()));
    pod.apply(&[PORT], &json!({}));
    let (own, bumped) = (pod.root(), mitmproxy.root());
    assert_eq!(get(&pod, &bumped, "https://api.test/"), ("200".into(), Some(0)));
    assert_eq!(get(&pod, &own, "http://api.test/"), ("200".into(), Some(0)));
    wait::until_true("mitmproxy has read the request inside TLS", SOON, || {
        mitmproxy.log().contains("https://api.test/")
    });
    // The sidecar passes on what the proxy shows, and has no part in the handshake.
    assert_eq!(get(&pod, &own, "https://other.test/"), ("000".into(), Some(60)));
    for server in ["api.test", "other.test"] {
        let record = pod.record(&format!("\"requested_server_name\":\"{server}\""));
        assert_eq!(record["upstream_cluster"], "outbound|443||EgressProxy/httpbin/corporate");
        assert_eq!(record["upstream_host"], pod.proxy(PORT).to_string());
        let details = record["response_code_details"].as_str().unwrap();
        assert!(!details.starts_with("forward_proxy"), "the proxy opened the tunnel: {record}");
        assert!(record["bytes_sent"].as_u64().unwrap() > 1000, "the proxy's certificate came: {record}");
    }
    assert_eq!(pod.direct_packets(), 0);
    let report = checked(&pod);
    assert_eq!(report["verdict"], "intercepted", "{report}");
    assert_eq!(
        report["proxy"]["chain"]["issuer"].as_str().map(|issuer| issuer.contains("mitmproxy")),
        Some(true)
    );
}
