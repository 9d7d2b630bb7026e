use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use serde_json::{Value, json};
use tidegate_runtime::trust_bundle::fingerprint;

use super::*;
use crate::cluster::testing::{TestCluster, control_plane_pod, ingress_backend, meshed_pod};

const AT_ONCE: RotationPace = RotationPace {
    one_step: false,
    timeout: Duration::ZERO,
    waits_for_expiry: false,
    revokes: false,
    ignores_copies: false,
    without: BTreeSet::new(),
};
const STEPS: [&str; 4] = ["steady", "trust-both", "issue-new", "steady"];

/// A cert-manager and a sidecar that trusts a root as soon as it is published, unless it is stuck.
#[derive(Clone, Default)]
struct Mesh(Arc<Mutex<Authority>>);

#[derive(Default)]
struct Authority {
    asked: usize,
    taken: usize,
    is_stuck: bool,
    not_yet: Option<&'static str>,
    /// Whether the last step may be taken once all certificates are renewed.
    may_be_vouched: bool,
    /// Holders of certificates of the old root: `sidecar`, `control plane`, both.
    not_renewed: Vec<&'static str>,
    vouched: bool,
    /// The query of each step.
    queries: Vec<String>,
    /// A namespace that cannot receive the roots.
    unreached: Option<&'static str>,
    old_certificates_end: Option<&'static str>,
    /// How many looks to answer with this status first.
    failing: Option<(usize, StatusCode)>,
}

impl Authority {
    fn roots(&self) -> Vec<&'static str> {
        match self.taken {
            0 => vec!["old"],
            3 => vec!["new"],
            _ => vec!["old", "new"],
        }
    }

    fn rotation(&self) -> Value {
        let roots: Vec<Value> = self
            .roots()
            .iter()
            .map(|root| json!({"fingerprint": root, "not_after": "2036-01-01T00:00:00Z"}))
            .collect();
        json!({
            "step": STEPS[self.taken], "since": "2026-01-01T00:00:00Z",
            "issuing_root": if self.taken < 2 { "old" } else { "new" },
            "trusted_roots": roots, "next_allowed": self.not_yet.is_none(), "reason": self.not_yet,
            "old_certificates_end": self.old_certificates_end, "next_allowed_once_renewed": self.may_be_vouched,
            "bridge_ends": "2036-01-01T00:00:00Z",
            "unreached": self.unreached.map(|namespace| json!({"namespace": namespace, "reason": "full"}))
                .into_iter().collect::<Vec<_>>(),
        })
    }

    fn workloads(&self) -> Value {
        let trusted = if self.is_stuck { vec!["old"] } else { self.roots() };
        json!([{
            "workload": "httpbin/a", "version": "v", "error": null,
            "sidecar": {"connected": true, "connectedSince": "2026-01-01T00:00:00Z", "program": "0.1.0",
                        "sentVersion": null, "ackedVersion": null, "rejected": null, "trustedRoots": trusted,
                        "certificateNotAfter": "2030-01-01T00:00:00Z",
                        "certificateRoots": self.certificate_roots("sidecar")},
        }])
    }

    fn certificate_roots(&self, holder: &str) -> Vec<&'static str> {
        if self.taken < 2 || self.not_renewed.contains(&holder) { vec!["old"] } else { vec!["new"] }
    }
}

impl Mesh {
    fn change(&self, change: impl FnOnce(&mut Authority)) {
        change(&mut self.0.lock().unwrap());
    }

    async fn start(&self) -> TestCluster {
        let fake = TestCluster::start(vec![
            control_plane_pod("tidegate-cert-manager", "ca"),
            control_plane_pod("tidegate-controller", "c"),
            meshed_pod("httpbin", "a"),
        ])
        .await;
        let ca = Router::new()
            .route("/rotation", get(Self::rotation))
            .route("/rotation/next", post(Self::next))
            .with_state(self.clone());
        fake.admin("tidegate-system/ca", ca).await;
        let workloads = get(async |State(mesh): State<Self>| axum::Json(mesh.0.lock().unwrap().workloads()));
        let certificate = get(async |State(mesh): State<Self>| {
            let roots = mesh.0.lock().unwrap().certificate_roots("control plane");
            axum::Json(json!({"names": "", "notAfter": "", "trustedRoots": [], "certificateRoots": roots}))
        });
        let controller = Router::new()
            .route("/workloads", workloads)
            .route("/certificate", certificate)
            .with_state(self.clone());
        fake.admin("tidegate-system/c", controller).await;
        fake
    }

    async fn rotation(State(mesh): State<Self>) -> Response {
        let mut state = mesh.0.lock().unwrap();
        state.asked += 1;
        if let Some((left @ 1.., status)) = &mut state.failing {
            *left -= 1;
            return (*status, "starting").into_response();
        }
        axum::Json(state.rotation()).into_response()
    }

    async fn next(State(mesh): State<Self>, RawQuery(query): RawQuery) -> Response {
        let mut state = mesh.0.lock().unwrap();
        state.queries.push(query.clone().unwrap_or_default());
        state.vouched = query.as_deref() == Some("renewed=true");
        if let Some(reason) = state.not_yet.filter(|_| !state.vouched) {
            return (StatusCode::CONFLICT, reason).into_response();
        }
        state.taken += 1;
        axum::Json(state.rotation()).into_response()
    }

    fn taken(&self) -> usize {
        self.0.lock().unwrap().taken
    }
}

#[tokio::test]
async fn three_steps_replace_the_root() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    let said = rotate(&fake.cluster(), AT_ONCE).await.unwrap();
    assert_eq!(said, "The root of mesh osm is new");
    assert_eq!(mesh.taken(), 3);
}

#[tokio::test]
async fn a_namespace_that_cannot_have_the_roots_holds_up_no_mesh_that_has_no_sidecar_there() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    mesh.change(|state| state.unreached = Some("shop"));
    rotate(&fake.cluster(), AT_ONCE).await.unwrap();
    assert_eq!(mesh.0.lock().unwrap().queries, ["without=shop"; 3]);

    mesh.change(|state| *state = Authority { unreached: Some("httpbin"), ..Authority::default() });
    let error = rotate(&fake.cluster(), AT_ONCE).await.unwrap_err().to_string();
    let expected =
        "namespace httpbin cannot receive the roots: full (--without-namespace=httpbin proceeds without it)";
    assert!(error.contains(expected), "{error}");
    // Its sidecars are not waited for either.
    mesh.change(|state| state.is_stuck = true);
    let pace = RotationPace { without: ["httpbin".to_owned()].into(), ..AT_ONCE };
    rotate(&fake.cluster(), pace).await.unwrap();
    assert_eq!(mesh.taken(), 3);
}

#[tokio::test]
async fn who_revokes_says_so_with_each_step_and_waits_for_copies_of_the_old_root() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    let roots = |authority: &CertifiedIssuer<'static, KeyPair>| {
        json!({"apiVersion": "v1", "kind": "Secret", "type": "nginx.org/ca",
            "metadata": {"name": "roots", "namespace": "nginx"},
            "data": {"ca.crt": k8s_openapi::ByteString(authority.pem().into_bytes())}})
    };
    let (old, new) = (authority("old"), authority("new"));
    fake.put(roots(&old));
    let rotation = |trusted: &[&CertifiedIssuer<'static, KeyPair>]| {
        let roots: Vec<Value> = trusted
            .iter()
            .map(|root| json!({"fingerprint": fingerprint(root.der()), "not_after": ""}))
            .collect();
        serde_json::from_value::<Rotation>(json!({
            "step": "issue-new", "since": "", "issuing_root": fingerprint(new.der()), "trusted_roots": roots,
            "next_allowed": true, "bridge_ends": "2036-01-01T00:00:00Z",
        }))
        .unwrap()
    };
    let (both, foreign) = (rotation(&[&new, &old]), rotation(&[&new]));
    let revoking = RotationPace { revokes: true, ..AT_ONCE };
    let held = stale_copies(&fake.cluster(), &both, &revoking).await.unwrap().unwrap();
    let expected = "Secret nginx/roots (type nginx.org/ca) does not hold the new root";
    assert_eq!(held, format!("{expected} (--ignore-copies revokes anyway)"));
    for (rotation, pace) in [
        (&both, AT_ONCE),
        (&both, RotationPace { ignores_copies: true, ..revoking.clone() }),
        (&foreign, revoking.clone()),
    ] {
        assert_eq!(stale_copies(&fake.cluster(), rotation, &pace).await.unwrap(), None);
    }
    let notes = copies::notes(&fake.cluster(), &both, false).await.unwrap();
    assert_eq!(notes[0], format!("copies of the old root: {expected}"));
    assert!(
        notes[1].ends_with("still chain to the old root, but only until 2036-01-01T00:00:00Z"),
        "{notes:?}"
    );
    let notes = copies::notes(&fake.cluster(), &both, true).await.unwrap();
    assert!(notes[1].ends_with("workload certificates no longer chain to the old root"), "{notes:?}");

    fake.put(roots(&new));
    rotate(&fake.cluster(), revoking).await.unwrap();
    assert_eq!(mesh.0.lock().unwrap().queries, ["revoke=true"; 3]);
}

#[tokio::test]
async fn clients_whose_roots_the_mesh_cannot_see_are_named_by_policy() {
    let fake = Mesh::default().start().await;
    let backend = |name: &str, protocol: &str, sources: Value| {
        let mut policy = ingress_backend("shop", name, &["cart"], 8080, sources);
        policy["spec"]["backends"][0]["port"]["protocol"] = json!(protocol);
        fake.put(policy);
    };
    let principal = |name: &str| json!([{"kind": "AuthenticatedPrincipal", "name": name}]);
    backend("ours", "https", principal("nginx.nginx.cluster.local"));
    backend("theirs", "https", principal("partner.example"));
    backend("anybody", "https", json!([]));
    backend("plain", "http", json!([]));
    fake.put(json!({"apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "tidegate-system"},
        "spec": {"certificate": {"serviceCertValidityDuration": "24h", "certKeyBitSize": 2048, "ingressGateway": {
            "subjectAltNames": ["nginx.nginx.cluster.local"], "validityDuration": "24h",
            "secret": {"name": "client", "namespace": "nginx"}}}}}));
    let rotation: Rotation = serde_json::from_value(Authority::default().rotation()).unwrap();
    let notes = copies::notes(&fake.cluster(), &rotation, false).await.unwrap();
    assert_eq!(
        notes[0],
        "clients that verify workloads with roots that the mesh cannot see: every client of IngressBackend \
         shop/anybody, partner.example of IngressBackend shop/theirs"
    );
    assert!(notes[1].contains("ConfigMap tidegate-system/tidegate-trust-bundle"), "{notes:?}");
}

#[tokio::test]
async fn a_replica_that_does_not_answer_is_passed_over() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    // Running as a Pod, though its container is not; and the first by name.
    fake.put(control_plane_pod("tidegate-cert-manager", "a-crashing"));
    rotate(&fake.cluster(), AT_ONCE).await.unwrap();
    assert_eq!(mesh.taken(), 3);
}

#[tokio::test]
async fn one_step_at_a_time_is_possible() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    let said = rotate(&fake.cluster(), RotationPace { one_step: true, ..AT_ONCE }).await.unwrap();
    assert_eq!(said, "Step taken: trust-both. Run `tidegate certificate rotate` to continue");
    assert_eq!(mesh.taken(), 1);
}

#[tokio::test]
async fn a_sidecar_without_the_new_root_holds_the_rotation_and_is_named() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    mesh.change(|state| state.is_stuck = true);
    let error = rotate(&fake.cluster(), AT_ONCE).await.unwrap_err().to_string();
    let expected = "the rotation stays at step trust-both after 0ns: sidecars are not ready: httpbin/a (does not \
                    trust every root yet). Nothing is broken meanwhile; run `tidegate certificate rotate` again to continue";
    assert_eq!(error, expected);
    assert_eq!(mesh.taken(), 1);
}

#[tokio::test]
async fn a_pod_that_no_controller_knows_holds_the_rotation() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    fake.put(meshed_pod("shop", "cart"));
    let error = rotate(&fake.cluster(), AT_ONCE).await.unwrap_err().to_string();
    assert!(error.contains("sidecars are not ready: shop/cart (not connected to a controller)"), "{error}");
    assert_eq!(mesh.taken(), 0);

    // A sidecar that has not started has no connections to lose.
    let mut pending = meshed_pod("shop", "cart");
    pending["status"] = json!({"phase": "Pending"});
    fake.put(pending);
    rotate(&fake.cluster(), AT_ONCE).await.unwrap();
    assert_eq!(mesh.taken(), 3);
}

#[tokio::test]
async fn what_the_cert_manager_waits_for_is_said() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    mesh.change(|state| {
        state.taken = 2;
        state.not_yet = Some("certificates under the old root may still be in use; wait 23h");
        state.old_certificates_end = Some("2999-01-01T00:00:00Z");
    });
    // With an hour's timeout, a wait of a day fails at once.
    let hours = RotationPace { timeout: Duration::from_secs(3600), waits_for_expiry: true, ..AT_ONCE };
    let error = rotate(&fake.cluster(), hours).await.unwrap_err().to_string();
    assert!(
        error.starts_with("the rotation stays at step issue-new: certificates under the old root may"),
        "{error}"
    );
}

#[tokio::test]
async fn the_last_step_is_taken_as_soon_as_no_certificate_of_the_old_root_is_in_use() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    mesh.change(|state| {
        state.taken = 2;
        state.not_yet = Some("certificates under the old root may still be in use; wait 23h");
        state.may_be_vouched = true;
        state.old_certificates_end = Some("2999-01-01T00:00:00Z");
        state.not_renewed = vec!["sidecar", "control plane"];
    });
    let error = rotate(&fake.cluster(), AT_ONCE).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "the rotation stays at step issue-new after 0ns: certificates of the old root are still in use: httpbin/a (has a \
         certificate of the old root), tidegate-system/c (has a certificate of the old root). Nothing is broken \
         meanwhile; run `tidegate certificate rotate` again to continue, at the latest after 2999-01-01T00:00:00Z"
    );
    let shown = text(&status(&fake.cluster()).await.unwrap());
    assert!(shown.contains("still holding a certificate of the old root:\nhttpbin/a (has a"), "{shown}");

    // With workloads unknown to the controllers, the user waits for expiry.
    mesh.change(|state| state.not_renewed.clear());
    let pace = RotationPace { waits_for_expiry: true, ..AT_ONCE };
    assert!(rotate(&fake.cluster(), pace).await.unwrap_err().to_string().contains("wait 23h"));
    assert_eq!(rotate(&fake.cluster(), AT_ONCE).await.unwrap(), "The root of mesh osm is new");
    assert!(mesh.0.lock().unwrap().vouched);
}

#[tokio::test]
async fn a_sidecar_that_does_not_say_what_its_certificate_hangs_on_holds_the_last_step() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    fake.put(meshed_pod("shop", "cart"));
    let said = holders::not_renewed(&fake.cluster(), "new", &BTreeSet::new()).await.unwrap();
    assert_eq!(said[1], "shop/cart (not connected to a controller)");
    let silent = json!([{"workload": "shop/cart", "version": "v", "error": null, "sidecar": {
        "connected": true, "connectedSince": "2026-01-01T00:00:00Z", "program": "0.0.9", "sentVersion": null,
        "ackedVersion": null, "rejected": null, "trustedRoots": ["new"], "certificateNotAfter": "2030-01-01T00:00:00Z"}}]);
    let workloads = get(async move || axum::Json(silent));
    fake.admin("tidegate-system/c", Router::new().route("/workloads", workloads)).await;
    let said = holders::not_renewed(&fake.cluster(), "new", &BTreeSet::new()).await.unwrap();
    assert_eq!(said[1], "shop/cart (does not report the root of its certificate)");
}

#[tokio::test]
async fn the_ingress_controller_s_secret_is_a_holder_too() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    mesh.change(|state| state.taken = 2);
    let (old, new) = (authority("old"), authority("new"));
    let pem = |authority: &CertifiedIssuer<'static, KeyPair>| authority.pem();
    let root = fingerprint(new.der());
    fake.put(json!({"apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "tidegate-system"},
        "spec": {"certificate": {"serviceCertValidityDuration": "24h", "certKeyBitSize": 2048, "ingressGateway": {
            "subjectAltNames": ["nginx"], "validityDuration": "24h",
            "secret": {"name": "client", "namespace": "nginx"}}}}}));
    fake.put(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "tidegate-trust-bundle", "namespace": "tidegate-system"},
        "data": {"ca.crt": format!("{}{}", pem(&new), pem(&old))}}));
    for (issuer, is_renewed) in [(&old, false), (&new, true)] {
        let mut params = CertificateParams::new(vec!["nginx".to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().pem();
        fake.put(json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "client", "namespace": "nginx"},
            "data": {"tls.crt": k8s_openapi::ByteString(leaf.into_bytes())}}));
        let said = holders::not_renewed(&fake.cluster(), &root, &BTreeSet::new()).await.unwrap();
        let expected = "Secret nginx/client (has a certificate of the old root)";
        assert_eq!(said.iter().any(|holder| holder == expected), !is_renewed, "{said:?}");
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[tokio::test]
async fn a_step_is_waited_for() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    mesh.change(|state| state.not_yet = Some("not published"));
    let cluster = fake.cluster();
    let rotation = tokio::spawn(async move {
        rotate(&cluster, RotationPace { one_step: true, timeout: Duration::from_secs(60), ..AT_ONCE }).await
    });
    while mesh.0.lock().unwrap().asked < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(mesh.taken(), 0);
    mesh.change(|state| state.not_yet = None);
    rotation.await.unwrap().unwrap();
    assert_eq!(mesh.taken(), 1);
}

#[tokio::test]
async fn a_certificate_authority_that_restarts_is_waited_for() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    let pace = RotationPace { timeout: Duration::from_secs(60), ..AT_ONCE };
    mesh.change(|state| state.failing = Some((2, StatusCode::SERVICE_UNAVAILABLE)));
    rotate(&fake.cluster(), pace.clone()).await.unwrap();
    assert_eq!(mesh.taken(), 3);

    // Nothing listens at the Pod's port, then there is no Pod, then there is one again.
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    fake.delete("Pod", "tidegate-system", "ca");
    let cluster = fake.cluster();
    let rotation = tokio::spawn(async move { rotate(&cluster, pace).await });
    let looks = || fake.api.requests().iter().filter(|request| request.verb == "list").count();
    while looks() < 2 {
        tokio::task::yield_now().await;
    }
    fake.put(control_plane_pod("tidegate-cert-manager", "silent"));
    let before = looks();
    while looks() < before + 2 {
        tokio::task::yield_now().await;
    }
    fake.delete("Pod", "tidegate-system", "silent");
    fake.put(control_plane_pod("tidegate-cert-manager", "ca"));
    rotation.await.unwrap().unwrap();
    assert_eq!(mesh.taken(), 3);
}

#[tokio::test]
async fn a_look_that_keeps_failing_ends_with_its_reason_and_one_that_cannot_succeed_at_once() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    mesh.change(|state| state.failing = Some((9, StatusCode::SERVICE_UNAVAILABLE)));
    let error = rotate(&fake.cluster(), AT_ONCE).await.unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "no answer within 0ns; run `tidegate certificate rotate` again to continue: pod tidegate-system/ca: /rotation: \
         503 Service Unavailable: starting"
    );
    mesh.change(|state| state.failing = Some((9, StatusCode::NOT_FOUND)));
    let patient = RotationPace { timeout: Duration::from_secs(3600), ..AT_ONCE };
    let error = rotate(&fake.cluster(), patient).await.unwrap_err();
    assert_eq!(format!("{error:#}"), "pod tidegate-system/ca: /rotation: 404 Not Found: starting");
    assert_eq!(mesh.taken(), 0);
}

#[tokio::test]
async fn the_status_shows_roots_and_who_is_not_ready() {
    let mesh = Mesh::default();
    let fake = mesh.start().await;
    mesh.change(|state| {
        state.taken = 1;
        state.is_stuck = true;
    });
    assert_eq!(
        text(&status(&fake.cluster()).await.unwrap()),
        "step       trust-both since 2026-01-01T00:00:00Z\n\
         next step  allowed\n\
         sidecars   1, 1 not ready for the next step\n\
         \n\
         TRUSTED ROOT   ENDS                   ISSUES\n\
         old            2036-01-01T00:00:00Z   yes\n\
         new            2036-01-01T00:00:00Z   no\n\
         \n\
         httpbin/a (does not trust every root yet)\n"
    );
}
