use super::target::version_number;
use super::*;

fn certificates() -> (tempfile::TempDir, RunCertificates) {
    let directory = tempfile::tempdir().unwrap();
    let certificates = RunCertificates::create(directory.path()).unwrap();
    (directory, certificates)
}

pub(super) fn programs() -> Programs {
    Programs { tidegate: PathBuf::new(), nginx: None, haproxy: None, envoy: None }
}

/// A site whose app listens on port 4001.
pub(super) fn site<'a>(
    topology: ProxyTopology,
    directory: &'a Path,
    certificates: &'a RunCertificates,
    programs: &'a Programs,
) -> TargetSite<'a> {
    let app = "127.0.0.1:4001".parse().unwrap();
    TargetSite {
        topology,
        directory,
        certificates,
        app,
        core: 0,
        load_core: 1,
        programs,
        is_http2: false,
        has_access_log: false,
    }
}

#[test]
fn each_peers_configuration_names_its_addresses_files_and_the_one_client_it_admits() {
    let (directory, certificates) = certificates();
    let programs = programs();
    let listen = "127.0.7.10:4002".parse().unwrap();
    let mut site = site(ProxyTopology::Ingress, directory.path(), &certificates, &programs);
    let ca = format!("{}", certificates.ca.display());

    let nginx = nginx::render_inbound(&site, listen).unwrap();
    for part in ["listen 127.0.7.10:4002 ssl", "server 127.0.0.1:4001;", "ssl_verify_client on;", &ca] {
        assert!(nginx.contains(part), "{part} is not in {nginx}");
    }
    assert!(nginx.contains("\"CN=ingress-nginx.ingress-nginx.cluster.local\" 1;"));

    let haproxy = haproxy::render_inbound(&site, listen).unwrap();
    for part in ["bind 127.0.7.10:4002", "server app 127.0.0.1:4001", "verify required", &ca] {
        assert!(haproxy.contains(part), "{part} is not in {haproxy}");
    }
    assert!(haproxy.contains("unless { ssl_c_s_dn(cn) -m str ingress-nginx.ingress-nginx.cluster.local }"));

    let envoy = envoy::render_inbound(&site, &envoy::HTTP_INBOUND, listen).unwrap();
    for part in [
        "{address: 127.0.7.10, port_value: 4002}",
        "{address: 127.0.0.1, port_value: 4001}",
        "require_client_certificate: true",
        "principal_name: {exact: ingress-nginx.ingress-nginx.cluster.local}",
        &ca,
    ] {
        assert!(envoy.contains(part), "{part} is not in {envoy}");
    }

    site.topology = ProxyTopology::Pair;
    for config in [
        nginx::render_inbound(&site, listen).unwrap(),
        haproxy::render_inbound(&site, listen).unwrap(),
        envoy::render_inbound(&site, &envoy::HTTP_INBOUND, listen).unwrap(),
        envoy::render_inbound(&site, &envoy::TCP_INBOUND, listen).unwrap(),
    ] {
        assert!(config.contains("caller.httpbin.cluster.local"), "{config}");
        assert!(!config.contains("ingress-nginx"), "{config}");
    }
}

#[test]
fn the_client_s_side_of_each_pair_presents_its_certificate_and_verifies_the_other_side() {
    let (directory, certificates) = certificates();
    let programs = programs();
    let site = site(ProxyTopology::Pair, directory.path(), &certificates, &programs);
    let [listen, to] = ["127.0.7.10:4003", "127.0.7.10:4002"].map(|address| address.parse().unwrap());
    let ca = certificates.ca.display();
    let (certificate, key) = (certificates.caller.certificate.display(), certificates.caller.key.display());
    let both = certificates.caller_with_key.display();
    let server = SERVER;

    let nginx = nginx::render_outbound(&site, listen, to).unwrap();
    for part in [
        "listen 127.0.7.10:4003 ".to_owned(),
        "server 127.0.7.10:4002;".to_owned(),
        format!("proxy_ssl_certificate {certificate};"),
        format!("proxy_ssl_certificate_key {key};"),
        format!("proxy_ssl_trusted_certificate {ca};"),
        "proxy_ssl_verify on;".to_owned(),
        format!("proxy_ssl_name {server};"),
    ] {
        assert!(nginx.contains(&part), "{part} is not in {nginx}");
    }
    let haproxy = haproxy::render_outbound(&site, listen, to).unwrap();
    for part in [
        "bind 127.0.7.10:4003 ".to_owned(),
        format!(
            "127.0.7.10:4002 pool-max-conn 256 ssl crt {both} ca-file {ca} verify required verifyhost {server}"
        ),
    ] {
        assert!(haproxy.contains(&part), "{part} is not in {haproxy}");
    }
    for template in [envoy::HTTP_OUTBOUND, envoy::TCP_OUTBOUND] {
        let envoy = envoy::render_outbound(&site, &template, listen, to).unwrap();
        for part in [
            "{address: 127.0.7.10, port_value: 4003}".to_owned(),
            "{address: 127.0.7.10, port_value: 4002}".to_owned(),
            format!("certificate_chain: {{filename: \"{certificate}\"}}"),
            format!("trusted_ca: {{filename: \"{ca}\"}}"),
            format!("- {{san_type: DNS, matcher: {{exact: {server}}}}}"),
        ] {
            assert!(envoy.contains(&part), "{part} is not in {envoy}");
        }
    }
}

#[test]
fn envoy_opens_tunnels_through_the_app_to_the_name_in_the_client_hello() {
    let (directory, certificates) = certificates();
    let programs = programs();
    let site = site(ProxyTopology::Egress, directory.path(), &certificates, &programs);
    let envoy = envoy::render_tunnels(&site, "127.0.7.10:4003".parse().unwrap()).unwrap();
    for part in [
        "{address: 127.0.7.10, port_value: 4003}",
        "{address: 127.0.0.1, port_value: 4001}",
        "hostname: \"%REQUESTED_SERVER_NAME%:443\"",
    ] {
        assert!(envoy.contains(part), "{part} is not in {envoy}");
    }
}

#[test]
fn opaque_tcp_is_measured_in_pairs_only() {
    let all = [ProxyTopology::Ingress, ProxyTopology::Pair, ProxyTopology::Egress].map(Target::all);
    let [ingress, pair, egress] = all;
    for target in [Target::TidegateTcp, Target::EnvoyTcp] {
        assert!(pair.contains(&target) && !ingress.contains(&target) && !egress.contains(&target));
    }
    assert!(all.iter().all(|targets| targets.is_sorted()), "the order of the report's columns");
}

#[test]
fn an_extended_run_adds_targets_that_differ_by_one_setting() {
    for topology in [ProxyTopology::Ingress, ProxyTopology::Pair] {
        for target in Target::extended(topology) {
            assert!(target.is_variant() && !Target::all(topology).contains(target), "{target}");
        }
    }
    assert!(!Target::extended(ProxyTopology::Ingress).contains(&Target::TidegateTraces));
}

#[test]
fn the_access_log_and_http2_reach_each_peers_configuration_only_if_they_are_wanted() {
    let (directory, certificates) = certificates();
    let programs = programs();
    let mut site = site(ProxyTopology::Pair, directory.path(), &certificates, &programs);
    let [listen, to] = ["127.0.7.10:4003", "127.0.7.10:4002"].map(|address| address.parse().unwrap());
    for wanted in [false, true] {
        (site.is_http2, site.has_access_log) = (wanted, wanted);
        let nginx = [nginx::render_inbound(&site, listen), nginx::render_outbound(&site, listen, to)];
        for config in nginx.map(Result::unwrap) {
            assert_eq!(config.contains("access_log /dev/null;"), wanted, "{config}");
            assert_eq!(config.contains("access_log off;"), !wanted, "{config}");
        }
        let inbound = haproxy::render_inbound(&site, listen).unwrap();
        assert_eq!(inbound.contains("server app 127.0.0.1:4001 pool-max-conn 256 proto h2\n"), wanted);
        let outbound = haproxy::render_outbound(&site, listen, to).unwrap();
        assert_eq!(outbound.contains("no-ssl-reuse alpn h2\n"), wanted, "{outbound}");
        let inbound = envoy::render_inbound(&site, &envoy::HTTP_INBOUND, listen);
        let outbound = envoy::render_outbound(&site, &envoy::HTTP_OUTBOUND, listen, to);
        for config in [inbound, outbound].map(Result::unwrap) {
            assert_eq!(config.contains("path: /dev/null"), wanted, "{config}");
            assert_eq!(config.contains("          http2_protocol_options: {}\n"), wanted, "{config}");
        }
    }
}

#[test]
fn a_missing_program_is_an_error_that_says_how_to_get_it() {
    let error = find(None, "no-such-proxy", &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "no-such-proxy is not installed; run bench/setup.sh, or give its path with --no-such-proxy"
    );
    let error = programs().tidegate().unwrap_err().to_string();
    assert!(error.contains("cargo build --release"), "{error}");
}

#[test]
fn free_addresses_differ() {
    let addresses: [SocketAddr; 50] = free_addresses().unwrap();
    assert_eq!(std::collections::BTreeSet::from(addresses).len(), 50);
}

#[test]
fn a_version_is_found_in_what_each_program_prints() {
    assert_eq!(version_number("nginx version: nginx/1.22.1\n"), Some("1.22.1"));
    assert_eq!(
        version_number("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https"),
        Some("2.6.12-1+deb12u4")
    );
    assert_eq!(version_number("envoy  version: 9e5580/1.40.0/Clean/RELEASE/BoringSSL"), Some("1.40.0"));
    assert_eq!(version_number("tidegate-sidecar 0.1.0"), Some("0.1.0"));
    assert_eq!(version_number("no number"), None);
}
