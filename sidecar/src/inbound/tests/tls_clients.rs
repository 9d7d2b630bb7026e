//! What TLS clients receive, with OpenSSL as the client; the alerts are those of nginx.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, SanType};
use tempfile::TempDir;

use super::*;
use crate::test_pki::{Authority, GATEWAY, dns};

/// Runs `openssl s_client`, sends a GET and returns its output, until it exits or the response is complete.
async fn s_client(mesh: &Mesh, port: Port, leaf: Option<&Leaf>, options: &[&str]) -> String {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new("openssl");
    command.args(["s_client", "-ign_eof", "-connect", &mesh.address(port).to_string()]);
    command.args(options);
    if let Some(leaf) = leaf {
        let (certificate, above, key) = leaf.write(folder.path());
        command.arg("-cert").arg(certificate).arg("-key").arg(key);
        if let Some(above) = above {
            command.arg("-cert_chain").arg(above);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = move || {
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // It may have ended already.
        let _ = input.write_all(b"GET / HTTP/1.1\r\nhost: httpbin\r\n\r\n");
        let mut output = child.stdout.take().unwrap();
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            said.extend_from_slice(&buffer[..count]);
            if said.ends_with(b"\r\n\r\nok") || said.ends_with(b"RBAC: access denied") {
                child.kill().unwrap();
            }
        }
        child.stderr.take().unwrap().read_to_end(&mut said).unwrap();
        child.wait().unwrap();
        drop(folder);
        String::from_utf8_lossy(&said).into_owned()
    };
    let run = tokio::task::spawn_blocking(run);
    tokio::time::timeout(Duration::from_secs(30), run).await.expect("openssl did not end").unwrap()
}

/// The alert, the status, or openssl's other output.
fn verdict(said: &str) -> String {
    if let Some((_, rest)) = said.split_once("SSL alert number ") {
        return format!("alert {}", rest.split_whitespace().next().unwrap());
    }
    match said.split_once("HTTP/1.1 ") {
        Some((_, rest)) => rest.split_whitespace().next().unwrap().to_owned(),
        None => said.to_owned(),
    }
}

fn at(seconds_from: i64, seconds_to: i64) -> impl FnOnce(&mut CertificateParams) {
    let moment = |offset: i64| {
        let distance = Duration::from_secs(offset.unsigned_abs());
        if offset < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
    };
    move |params| {
        params.subject_alt_names = vec![dns(GATEWAY)];
        params.not_before = moment(seconds_from).into();
        params.not_after = moment(seconds_to).into();
    }
}

/// The gateway's certificate, changed.
fn gateways_with(root: &Authority, change: &dyn Fn(&mut CertificateParams)) -> Leaf {
    root.issue(|params| {
        params.subject_alt_names = vec![dns(GATEWAY)];
        change(params);
    })
}

/// A client's certificate in words, itself, and what it gets with TLS 1.3 and 1.2.
type ClientCase = (&'static str, Option<Leaf>, [&'static str; 2]);

fn client_certificates(root: &Authority) -> Vec<ClientCase> {
    let gateway = || vec![dns(GATEWAY)];
    let with = |change: &dyn Fn(&mut CertificateParams)| gateways_with(root, change);
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let deep = (0..8).fold(root.intermediate("0"), |above, i| above.intermediate(&format!("level {i}")));
    vec![
        ("none", None, ["alert 116", "alert 40"]),
        ("right", Some(root.named(GATEWAY)), ["200", "200"]),
        ("RSA", Some(root.issue_rsa(|params| params.subject_alt_names = gateway())), ["200", "200"]),
        ("of an intermediate", Some(root.intermediate("intermediate").named(GATEWAY)), ["200", "200"]),
        ("another name", Some(root.named("other.ns.cluster.local")), ["403", "403"]),
        (
            "second name right",
            Some(with(&|p| p.subject_alt_names.insert(0, dns("a.example")))),
            ["200", "200"],
        ),
        ("no EKU", Some(with(&|p| p.extended_key_usages.clear())), ["200", "200"]),
        (
            "EKU for servers only",
            Some(with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
            ["alert 43", "alert 43"],
        ),
        ("other CA", Some(Authority::root("other").named(GATEWAY)), ["alert 48", "alert 48"]),
        // The same name as the right CA, with another key.
        ("impostor CA", Some(Authority::root("root").named(GATEWAY)), ["alert 48", "alert 48"]),
        ("expired", Some(root.issue(at(-100, -2))), ["alert 45", "alert 45"]),
        ("not yet valid", Some(root.issue(at(600, 1200))), ["alert 45", "alert 45"]),
        ("long expired", Some(root.issue(at(-40_000_000, -20_000_000))), ["alert 45", "alert 45"]),
        (
            "common name only",
            Some(with(&|p| {
                p.subject_alt_names.clear();
                p.distinguished_name.push(DnType::CommonName, GATEWAY);
            })),
            ["403", "403"],
        ),
        (
            "URI only",
            Some(with(&|p| {
                p.subject_alt_names = vec![uri("spiffe://cluster.local/ns/ingress-nginx/sa/ingress-nginx")];
            })),
            ["403", "403"],
        ),
        (
            "URI with the principal's text",
            Some(with(&|p| p.subject_alt_names = vec![uri(GATEWAY)])),
            ["403", "403"],
        ),
        ("NUL in a name", Some(root.named(&format!("{GATEWAY}\0.evil"))), ["alert 42", "alert 42"]),
        (
            "5000 names",
            Some(with(&|p| p.subject_alt_names.extend((0..5000).map(|i| dns(&format!("n{i}.a")))))),
            ["alert 42", "alert 42"],
        ),
        ("too long a chain", Some(deep.named(GATEWAY)), ["alert 42", "alert 42"]),
    ]
}

#[tokio::test]
async fn every_client_certificate_gets_the_same_answer_as_from_osm() {
    let mesh = Mesh::start().await;
    let mut wrong = Vec::new();
    for (what, leaf, expected) in client_certificates(&mesh.root) {
        for (version, expected) in ["-tls1_3", "-tls1_2"].iter().zip(expected) {
            let got = verdict(&s_client(&mesh, Port::Https, leaf.as_ref(), &[version]).await);
            if got != *expected {
                wrong.push(format!("{what} {version}: {got}, expected {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn client_certificates_are_ignored_where_none_is_required() {
    let mesh = Mesh::start().await;
    for leaf in [None, Some(Authority::root("other").named(GATEWAY)), Some(mesh.root.named("x.example"))] {
        for version in ["-tls1_3", "-tls1_2"] {
            assert_eq!(verdict(&s_client(&mesh, Port::Skip, leaf.as_ref(), &[version]).await), "200");
        }
    }
}

#[tokio::test]
async fn older_versions_are_answered_with_an_alert() {
    let mesh = Mesh::start().await;
    let gateway = mesh.root.named(GATEWAY);
    for version in ["-tls1_1", "-tls1"] {
        let options = [version, "-cipher", "DEFAULT@SECLEVEL=0"];
        assert_eq!(
            verdict(&s_client(&mesh, Port::Https, Some(&gateway), &options).await),
            "alert 70",
            "{version}"
        );
    }
}

#[tokio::test]
async fn names_and_protocols_of_ingress_controllers_are_accepted() {
    let mesh = Mesh::start().await;
    let gateway = mesh.root.named(GATEWAY);
    for options in [
        &["-noservername"][..],
        &["-servername", "httpbin.httpbin.cluster.local"],
        &["-servername", "foo.example", "-alpn", "http/1.1"],
        &["-servername", "httpbin.httpbin.svc.cluster.local", "-alpn", "osm"],
        &["-groups", "X25519:P-256"],
        &["-groups", "P-521:P-384"],
    ] {
        assert_eq!(
            verdict(&s_client(&mesh, Port::Https, Some(&gateway), options).await),
            "200",
            "{options:?}"
        );
    }
    for (port, offered, chosen) in [
        (Port::Https, &["h2", "http/1.1"][..], Some("http/1.1")),
        (Port::Https, &["h2"], Some("h2")),
        (Port::Grpc, &["http/1.1", "h2"], Some("h2")),
        (Port::Grpc, &["http/1.1"], Some("http/1.1")),
        (Port::Https, &["osm"], None),
        (Port::Https, &[], None),
    ] {
        let client = tls(&mesh, port, Some(&gateway), offered).await.unwrap();
        assert_eq!(client.get_ref().1.alpn_protocol(), chosen.map(str::as_bytes), "{port:?} {offered:?}");
    }
}

#[tokio::test]
async fn no_ticket_and_no_session_is_given() {
    let mesh = Mesh::start().await;
    let gateway = mesh.root.named(GATEWAY);
    for (port, leaf) in [(Port::Https, Some(&gateway)), (Port::Skip, None)] {
        let said = s_client(&mesh, port, leaf, &["-tls1_3"]).await;
        assert!(said.contains("HTTP/1.1 200") && !said.contains("TLS session ticket"), "{said}");
        let said = s_client(&mesh, port, leaf, &["-tls1_2"]).await;
        assert!(said.contains("HTTP/1.1 200") && !said.contains("TLS session ticket"), "{said}");
        let id = said.lines().find_map(|line| line.trim().strip_prefix("Session-ID:")).unwrap();
        assert_eq!(id.trim(), "", "{said}");
    }
}

#[tokio::test]
async fn the_client_receives_the_names_of_trusted_cas() {
    let mesh = Mesh::start().await;
    let said = s_client(&mesh, Port::Https, Some(&mesh.root.named(GATEWAY)), &["-tls1_2"]).await;
    assert!(said.contains("Acceptable client certificate CA names\nCN = root\n"), "{said}");
}

#[tokio::test]
async fn a_megabyte_of_certificates_is_refused_quickly() {
    let mesh = Mesh::start().await;
    let mut huge = mesh.root.named(GATEWAY);
    let other = mesh.root.named("other.example").chain;
    while huge.chain.iter().map(|certificate| certificate.len()).sum::<usize>() < 60_000 {
        huge.chain.extend(other.iter().cloned());
    }
    let start = Instant::now();
    let mut client = tls(&mesh, Port::Https, Some(&huge), &[]).await.unwrap();
    assert!(get(&mut client).await.unwrap_err().to_string().contains("BadCertificate"));
    assert!(start.elapsed() < Duration::from_secs(2));
}
