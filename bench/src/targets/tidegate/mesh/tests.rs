use super::*;
use crate::certificates::RunCertificates;
use crate::targets;
use crate::targets::tests::site;

fn settings(protocol: &'static str) -> PairSettings {
    PairSettings { protocol, rules: 0, is_traced: false }
}

#[test]
fn the_manifests_put_the_sidecar_before_the_apps_port() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = RunCertificates::create(directory.path()).unwrap();
    let programs = targets::tests::programs();
    let site = site(ProxyTopology::Ingress, directory.path(), &certificates, &programs);
    let manifests = render(&site, "http", None).unwrap();
    for part in [
        "podIP: 127.0.7.1\n",
        "targetPort: 4001\n",
        "number: 4001\n      protocol: https\n",
        "kind: AuthenticatedPrincipal\n    name: ingress-nginx.ingress-nginx.cluster.local\n",
    ] {
        assert!(manifests.contains(part), "{part} is not in {manifests}");
    }
}

#[test]
fn each_program_is_configured_with_what_the_others_offer() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = RunCertificates::create(directory.path()).unwrap();
    let programs = targets::tests::programs();
    let site = site(ProxyTopology::Ingress, directory.path(), &certificates, &programs);
    let mesh = LocalMesh::prepare(&site, settings("http"), None).unwrap();
    let ca = mesh.ca_arguments(&site).0.join(" ");
    let controller = mesh.controller_arguments().0.join(" ");
    let sidecar = mesh.sidecar_arguments(&site).0.join(" ");

    assert!(sidecar.contains("--inbound 127.0.7.1:4001=127.0.0.1:4001"), "{sidecar}");
    assert!(sidecar.contains(&format!("--discovery-address https://{}", mesh.discovery)), "{sidecar}");
    assert!(controller.contains(&format!("--listen {}", mesh.discovery)), "{controller}");
    assert!(ca.contains(&format!("--listen {}", mesh.ca)), "{ca}");
    assert!(ca.contains(&format!("--ca-key {}", certificates.ca_key.display())), "{ca}");
    assert!(ca.contains("--gateway-san ingress-nginx.ingress-nginx.cluster.local"), "{ca}");
    for (arguments, token) in [(&controller, &mesh.controller_token), (&sidecar, &mesh.sidecar_token)] {
        assert!(arguments.contains(&format!("--ca-address https://{}", mesh.ca)), "{arguments}");
        assert!(arguments.contains(&format!("--token-file {}", token.display())), "{arguments}");
        assert!(arguments.contains(&mesh.trust_bundle.display().to_string()), "{arguments}");
        assert_eq!(fs::read_to_string(token).unwrap().split('.').count(), 3);
    }
}

#[test]
fn the_caller_of_a_pair_dials_a_service_whose_port_declares_the_protocol() {
    let certificates_directory = tempfile::tempdir().unwrap();
    let certificates = RunCertificates::create(certificates_directory.path()).unwrap();
    let programs = targets::tests::programs();
    for protocol in ["http", "tcp"] {
        let directory = tempfile::tempdir().unwrap();
        let site = site(ProxyTopology::Pair, directory.path(), &certificates, &programs);
        let mesh = LocalMesh::prepare(&site, settings(protocol), None).unwrap();
        let caller = mesh.caller.as_ref().unwrap();
        let arguments = caller.arguments(&site, &mesh).0.join(" ");
        assert!(arguments.contains("--workload httpbin/caller"), "{arguments}");
        assert!(
            arguments.contains(&format!("--outbound {}=10.96.0.10:4001", caller.outbound)),
            "{arguments}"
        );
        let manifests = fs::read_to_string(mesh.manifests.join("httpbin.yaml")).unwrap();
        for part in [
            "clusterIP: 10.96.0.10\n".to_owned(),
            format!(
                "  - name: {protocol}\n    port: 4001\n    targetPort: 4001\n    appProtocol: {protocol}\n"
            ),
            "- addresses: [127.0.7.1]\n".to_owned(),
            "podIP: 127.0.7.2\n".to_owned(),
        ] {
            assert!(manifests.contains(&part), "{part} is not in {manifests}");
        }
        let objects: Vec<Value> = serde_saphyr::from_multiple(&manifests).unwrap();
        let kinds: Vec<_> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
        assert_eq!(
            kinds,
            [
                "MeshConfig",
                "Namespace",
                "ServiceAccount",
                "ServiceAccount",
                "Service",
                "EndpointSlice",
                "Pod",
                "Pod"
            ]
        );
    }
}

#[test]
fn access_log_and_traces_are_off_unless_the_target_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = RunCertificates::create(directory.path()).unwrap();
    let programs = targets::tests::programs();
    let mut site = site(ProxyTopology::Pair, directory.path(), &certificates, &programs);
    let mesh = LocalMesh::prepare(&site, settings("http"), None).unwrap();
    let caller = mesh.caller.as_ref().unwrap();
    let arguments = |site: &TargetSite<'_>| {
        [mesh.sidecar_arguments(site), caller.arguments(site, &mesh)].map(|flags| flags.0)
    };
    for arguments in arguments(&site) {
        assert!(arguments.join(" ").contains("--access-log-format off"), "{arguments:?}");
        assert!(!arguments.contains(&"--access-log-file".to_owned()), "{arguments:?}");
    }
    site.has_access_log = true;
    for arguments in arguments(&site) {
        let arguments = arguments.join(" ");
        assert!(arguments.contains("--access-log-format json --access-log-file /dev/null"), "{arguments}");
    }

    let tracing = |collector| {
        let manifests = render(&site, "http", collector).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&manifests).unwrap();
        objects[0]["spec"]["observability"]["tracing"].clone()
    };
    assert_eq!(tracing(None), json!({"enable": false}));
    let collector = "127.0.0.1:4317".parse().unwrap();
    let expected = json!({"enable": true, "address": "127.0.0.1", "port": 4317, "sampledFraction": "0.01"});
    assert_eq!(tracing(Some(collector)), expected);
}
