//! An app that knows of no proxy, in a pod with the kernel's rules, reaches servers outside the mesh through a real Squid, and
//! no packet passes the proxy. Requires root, Squid, nginx and curl.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use serde_json::{Value, json};
use tidegate_tests::mesh::Mesh;
use tidegate_tests::netns::NetworkNamespace;
use tidegate_tests::objects;
use tidegate_tests::proxied_pod::{ProxiedPod, RULES};
use tidegate_tests::squid;
use tidegate_tests::wait::{self, SOON};

/// `currentStatus` and `reason` of the EgressProxy.
fn status(mesh: &Mesh) -> (String, String) {
    let policies = mesh.controller.admin_json("/policies");
    let ours = policies.as_array().unwrap().iter().find(|policy| policy["kind"] == "EgressProxy").unwrap();
    let text = |field: &str| ours[field].as_str().unwrap_or_default().to_owned();
    (text("currentStatus"), text("reason"))
}

/// How many of these are not 200.
fn failures(answers: &[String]) -> usize {
    answers.iter().filter(|status| *status != "200").count()
}

/// Sends 10,000 requests, over connections that are kept and over new ones.
fn ten_thousand(pod: &ProxiedPod) {
    let batches: [&[&str]; 4] = [
        &["http://api.test/[1-2500]", "http://other.test/[1-2500]"],
        &["https://api.test/[1-4500]"],
        &["-H", "connection: close", "http://api.test/[1-300]"],
        &["-H", "connection: close", "https://api.test/[1-200]"],
    ];
    let mut count = 0;
    for batch in batches {
        let answers = pod.curl(batch);
        assert_eq!(failures(&answers), 0, "{batch:?}: {answers:?}");
        count += answers.len();
    }
    assert_eq!((count, pod.direct_packets()), (10_000, 0));
}

#[test]
fn ten_thousand_requests_leave_through_squid_and_no_packet_passes_it() {
    let mut pod = ProxiedPod::start();
    assert_eq!(pod.get("https://api.test/"), "200", "directly, without an EgressProxy");
    assert!(pod.direct_packets() > 0);
    pod.node.namespace().command("iptables", &["-Z", "FORWARD"]);
    let squid = pod.squid(3128, RULES);
    pod.apply(&[3128], &json!({}));
    ten_thousand(&pod);
    let log = squid.access_log();
    assert!(log.contains("TCP_TUNNEL/200") && log.contains("CONNECT api.test:443"), "{}", &log[..500]);
    assert!(log.contains("GET http://other.test/2500 "));
    let record = pod.record(&format!("\"upstream_host\":\"{}\"", pod.proxy(3128)));
    assert!(record["authority"] == "api.test" || record["requested_server_name"] == "api.test", "{record}");
    let known = &pod.config()["destinations"];
    let is_proxied =
        |it: &Value| it["state"] == "proxied" && it["rules"][0] == "EgressProxy httpbin/corporate";
    assert!(known.as_array().unwrap().iter().any(is_proxied), "{known}");
}

#[test]
fn basic_credentials_of_a_secret_are_used_and_followed_and_never_shown() {
    let mut pod = ProxiedPod::start();
    let (rules, users) = squid::authenticated(pod.folder.path(), "mesh s3cret-1\n", RULES);
    let squid = pod.squid(3128, &rules);
    pod.apply_example();
    assert_eq!((pod.get("http://api.test/"), pod.get("https://api.test/")), ("502".into(), "000".into()));
    let wanted = "forward_proxy_authentication{407 X-Squid-Error: ERR_CACHE_ACCESS_DENIED 0, Proxy-Authenticate: Basic";
    assert_eq!(pod.record(wanted)["response_code"], 502);
    let (status, reason) = status(&pod.mesh);
    assert!(
        status == "error" && reason.contains("Secret httpbin/corporate-proxy: does not exist"),
        "{reason}"
    );
    pod.apply_secret("mesh", "s3cret-1");
    let good =
        |pod: &ProxiedPod| pod.get("http://api.test/") == "200" && pod.get("https://api.test/") == "200";
    wait::until_true("the credentials are used", SOON, || good(&pod));
    ten_thousand(&pod);
    assert!(squid.access_log().contains("CONNECT api.test:443 mesh "));

    fs::write(users, "mesh s3cret-2\n").unwrap();
    wait::until_true("squid refuses the old password", SOON, || pod.get("https://api.test/") == "000");
    pod.apply_secret("mesh", "s3cret-2");
    wait::until_true("the new credentials are used", SOON, || good(&pod));
    let shown = format!("{}{}", pod.config(), pod.sidecar.log());
    assert!(shown.contains("<redacted>"));
    for secret in ["s3cret", "bWVzaDpzM2NyZXQ"] {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
    assert_eq!(pod.direct_packets(), 0);
}

#[test]
fn a_proxy_that_changes_or_restarts_under_load_is_followed_and_another_takes_over() {
    let mut pod = ProxiedPod::start();
    let (mut first, second) = (pod.squid(3128, RULES), pod.squid(3129, RULES));
    pod.apply(&[3128], &json!({}));
    assert_eq!(failures(&pod.curl(&["http://api.test/[1-200]"])), 0);
    pod.apply(&[3129], &json!({}));
    assert_eq!(failures(&pod.curl(&["http://api.test/[201-400]", "https://api.test/"])), 0);
    assert!(second.access_log().contains("GET http://api.test/400 "));
    assert!(!first.access_log().contains("api.test/201"));

    // With another proxy behind it, a restart costs no new connection.
    pod.apply(&[3128, 3129], &json!({}));
    let namespace = pod.node.namespace();
    let answers = thread::scope(|scope| {
        let load = scope.spawn(|| {
            pod.curl(&["-H", "connection: close", "http://api.test/[1-400]", "https://other.test/[1-100]"])
        });
        wait::until_true("the load has begun", SOON, || first.access_log().contains("api.test/20 "));
        namespace.run(|| first.restart(RULES));
        load.join().unwrap()
    });
    assert!(failures(&answers) <= 1, "but for what was in flight: {answers:?}");
    assert_eq!((answers.len(), pod.direct_packets()), (500, 0));
}

/// A proxy that answers each connection so, and then closes it, or does not.
fn fake(namespace: &NetworkNamespace, address: SocketAddr, answer: &'static [u8], closes: bool) {
    let listener = namespace.run(|| TcpListener::bind(address)).unwrap();
    thread::spawn(move || {
        let mut open = Vec::new();
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = client.read(&mut head);
            let _ = client.write_all(answer);
            if !closes {
                open.push(client);
            }
        }
    });
}

#[test]
fn each_refusal_has_its_reason_with_the_proxys_own_words() {
    let mut pod = ProxiedPod::start();
    let _squid = pod.squid(3128, RULES);
    pod.apply(&[3128], &json!({}));
    for (url, expected, details) in [
        ("https://denied.test/", "000", "forward_proxy_denied"),
        ("http://denied.test/", "403", "forward_proxy_denied{403 X-Squid-Error: ERR_ACCESS_DENIED 0}"),
        (
            "http://refused.test/",
            "503",
            "forward_proxy_target_unreachable{503 X-Squid-Error: ERR_CONNECT_FAIL",
        ),
    ] {
        // Squid waits longer for an address that does not answer.
        if url.contains("refused") {
            pod.node.namespace().ip("route add unreachable 192.0.2.7/32");
        }
        assert_eq!(pod.get(url), expected, "{url}");
        let host = url.split('/').nth(2).unwrap();
        let text = format!("\"{details}");
        let record = pod.record(&text);
        assert!(record["authority"] == host || record["requested_server_name"] == host, "{record}");
    }
    let log = pod.sidecar.log();
    let words = "the answer to CONNECT is 403 Forbidden, X-Squid-Error: ERR_ACCESS_DENIED 0";
    assert!(log.lines().any(|line| line.contains(words) && line.contains("denied.test:443")), "{log}");

    let large: &'static [u8] = [b"HTTP/1.1 200 OK\r\na: ", &*vec![b'x'; 70_000]].concat().leak();
    let fakes: [(u16, &'static [u8], bool, &str); 6] = [
        (
            4001,
            b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm=\"Corp\"\r\n\r\n",
            true,
            "authentication",
        ),
        (4002, b"HTTP/1.1 503 Busy\r\n\r\n", true, "target_unreachable"),
        (4003, b"", false, "timeout"),
        (4004, b"\x16\x03\x01garbage", true, "malformed_answer"),
        (4005, large, false, "head_too_large"),
        (4006, b"HTTP/1.1 200 Connect", true, "closed"),
    ];
    for (port, answer, closes, reason) in fakes {
        fake(pod.node.namespace(), pod.proxy(port), answer, closes);
        pod.apply(&[port], &json!({}));
        assert_eq!(pod.get("https://api.test/"), "000", "{reason}");
        pod.record(&format!("\"forward_proxy_{reason}\""));
    }
    assert_eq!(pod.direct_packets(), 0);
}

/// Turns egress off, and waits until it is.
fn close(pod: &mut ProxiedPod) {
    let mut config = objects::mesh_config(true);
    config["spec"]["traffic"]["enableEgress"] = false.into();
    pod.mesh.apply("config", &[config]);
    wait::until_true("egress is off", SOON, || pod.get("http://api.test/") == "502");
}

#[test]
fn what_an_entry_or_a_policy_allows_goes_through_squid_by_its_name_and_nothing_else_does() {
    let mut pod = ProxiedPod::start();
    let squid = pod.squid(3128, RULES);
    pod.apply(&[3128], &json!({}));
    close(&mut pod);
    assert_eq!(pod.get("https://api.test/"), "000");
    assert!(!squid.access_log().contains("api.test"), "an EgressProxy allows nothing");
    let both = |pod: &ProxiedPod, host: &str| {
        (pod.get(&format!("http://{host}/")), pod.get(&format!("https://{host}/")))
    };
    pod.mesh.apply_text(
        "entry",
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api, namespace: httpbin}\n\
         spec:\n  hosts: [api.test]\n  resolution: DNS\n  ports:\n  - {number: 80, name: http, protocol: HTTP}\n  \
         - {number: 443, name: tls, protocol: TLS}\n",
    );
    let good = ("200".to_owned(), "200".to_owned());
    wait::until_true("the entry's host is reached", SOON, || both(&pod, "api.test") == good);
    assert_eq!(both(&pod, "other.test"), ("502".to_owned(), "000".to_owned()));
    let record = pod.record("outbound|443||api.test");
    assert_eq!(record["upstream_host"], pod.proxy(3128).to_string());
    assert!(!pod.config()["destinations"].to_string().contains("dnsFailures"), "the proxy resolves it");

    pod.mesh.apply_text(
        "policies",
        "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: Egress\nmetadata: {name: other, namespace: httpbin}\n\
         spec:\n  sources: [{kind: ServiceAccount, name: caller, namespace: httpbin}]\n  hosts: [other.test]\n  \
         ports: [{number: 443, protocol: https}]\n---\n\
         apiVersion: policy.openservicemesh.io/v1alpha1\nkind: Egress\nmetadata: {name: range, namespace: httpbin}\n\
         spec:\n  sources: [{kind: ServiceAccount, name: caller, namespace: httpbin}]\n  ipAddresses: [192.0.2.7/32]\n  \
         ports: [{number: 443, protocol: tcp}]\n",
    );
    wait::until_true("the policy's host is reached", SOON, || pod.get("https://other.test/") == "200");
    assert_eq!(pod.get("http://other.test/"), "502", "the policy is for https");
    // An address that a policy allows opens no server that it does not, whatever name the app sends.
    assert_eq!(pod.curl(&["--connect-to", "denied.test:443:192.0.2.7:443", "https://denied.test/"]), ["000"]);
    wait::until_true("the proxy got the address", SOON, || {
        squid.access_log().contains("CONNECT 192.0.2.7:443")
    });
    let log = squid.access_log();
    assert!(log.contains("CONNECT other.test:443") && !log.contains("denied.test"), "{log}");
    assert!(!log.contains("http://other.test"), "{log}");
    assert_eq!(pod.direct_packets(), 0);
}
