//! Checks of the control plane's own objects.
//!
//! They read the Deployments' status, the MeshConfig's status and conditions, the trust bundle and the ingress
//! controller's Secret; no daemon is contacted, so that a daemon that is down fails one check and not all.

use anyhow::{Context, anyhow};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject};
use tidegate_core::PeerCertificate;
use tidegate_core::contract::names::{MESH_CONFIG_NAME, TRUST_BUNDLE_KEY, trust_bundle_config_map};
use tidegate_crds::manifest;
use tidegate_crds::mesh_config::{INGRESS_GATEWAY_READY, MeshConfig};
use tidegate_crds::stored;
use tidegate_runtime::tls::load_pem_certificates;
use tidegate_runtime::trust_bundle::TrustBundle;

use super::{Check, CheckOutcome, CheckReport, days_until};
use crate::cluster::client::Cluster;
use crate::cluster::control_plane::Part;
use crate::cluster::mesh::{self, version};

const CATEGORY: &str = "Control plane";
/// Warn about a root with fewer days left.
const ROOT_DAYS: u64 = 60;
/// The type of Secret that ingress controllers expect.
const TLS_SECRET: &str = "kubernetes.io/tls";

const THERE: Check = Check {
    id: "control-plane-there",
    category: CATEGORY,
    title: "the mesh is installed",
    hint: "check the cluster with `tidegate check --pre`, install with `tidegate install --apply --wait`",
};
const DEFINITIONS: Check = Check {
    id: "crds-installed",
    category: CATEGORY,
    title: "the custom resources are defined",
    hint: "install the chart tidegate-crds, or run `tidegate install`",
};
const READY: Check = Check {
    id: "deployments-ready",
    category: CATEGORY,
    title: "every daemon is ready",
    hint: "`kubectl -n {control-plane} describe pods` and the pods' logs say why; --wait waits for them",
};
const VERSIONS: Check = Check {
    id: "control-plane-version",
    category: CATEGORY,
    title: "this command and the control plane have the same version",
    hint: "use the control plane's version of this command, or run `tidegate upgrade`",
};
const CONFIG: Check = Check {
    id: "mesh-config",
    category: CATEGORY,
    title: "the MeshConfig exists and is valid",
    hint: "correct it with `kubectl -n {control-plane} edit meshconfig osm-mesh-config`; without one, permissive mode is off and the other settings have their defaults",
};
const ROOT: Check = Check {
    id: "root-certificate",
    category: CATEGORY,
    title: "the root certificates are valid",
    hint: "`tidegate certificate rotate` replaces the root under load",
};
const GATEWAY: Check = Check {
    id: "gateway-certificate",
    category: CATEGORY,
    title: "the ingress controller's certificate exists and is valid",
    hint: "the log of tidegate-cert-manager says why it is not renewed; MeshConfig's spec.certificate.ingressGateway requests it",
};

/// Whether any part of the control plane exists in its namespace; if not, the report says where a control plane is.
pub(super) async fn is_there(cluster: &Cluster, report: &mut CheckReport) -> bool {
    match elsewhere(cluster).await {
        Ok(None) => return true,
        Ok(Some(outcome)) => report.add(&THERE, Ok(outcome)),
        Err(error) => report.add(&THERE, Err(error)),
    }
    false
}

/// The outcome if the namespace has none of the daemons.
async fn elsewhere(cluster: &Cluster) -> anyhow::Result<Option<CheckOutcome>> {
    let (namespace, name) = (&cluster.control_plane, &cluster.mesh_name);
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    for part in Part::ALL {
        let what = format!("Deployment {namespace}/{part}");
        if cluster.get(&api, part.name(), &what).await?.is_some() {
            return Ok(None);
        }
    }
    let meshes = mesh::list(cluster).await?;
    let message = |others: &str| format!("namespace {namespace} has no control plane{others}");
    if meshes.is_empty() {
        return Ok(Some(CheckOutcome::failed(message(", nor has any other namespace"))));
    }
    let others: Vec<_> = meshes
        .iter()
        .map(|mesh| format!("mesh {} has its control plane in {}", mesh.mesh, mesh.namespace))
        .collect();
    let meant = meshes.iter().find(|mesh| mesh.mesh == *name).unwrap_or(&meshes[0]);
    let hint = format!(
        "give --tidegate-namespace {} --mesh-name {}, or set TIDEGATE_NAMESPACE and TIDEGATE_MESH_NAME",
        meant.namespace, meant.mesh
    );
    Ok(Some(CheckOutcome::failed(message(&format!("; {}", super::enumerate(&others)))).hint(hint)))
}

/// The checks in this order; the one of the ingress controller's certificate only if MeshConfig requests one.
pub(super) async fn check(cluster: &Cluster, report: &mut CheckReport) {
    report.add(&DEFINITIONS, definitions(cluster).await);
    let (ready, versions) = deployments(cluster).await;
    report.add(&READY, ready);
    if let Some(versions) = versions {
        report.add(&VERSIONS, Ok(versions));
    }
    let config = mesh_config(cluster).await;
    let secret = config.as_ref().ok().and_then(|config| config.as_ref()).and_then(gateway_secret);
    report.add(&CONFIG, config.map(|config| judge_config(config.as_ref())));
    report.add(&ROOT, root(cluster).await);
    if let Some((namespace, name)) = secret {
        report.add(&GATEWAY, gateway(cluster, &namespace, &name).await);
    }
}

/// The trust bundle in a namespace, if it exists.
pub(crate) async fn bundle(cluster: &Cluster, namespace: &str) -> anyhow::Result<Option<TrustBundle>> {
    let name = trust_bundle_config_map(&cluster.mesh_name);
    let what = format!("ConfigMap {namespace}/{name}");
    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let Some(map) = cluster.get(&api, &name, &what).await? else { return Ok(None) };
    let pem = map.data.unwrap_or_default().remove(TRUST_BUNDLE_KEY).unwrap_or_default();
    TrustBundle::parse(pem.as_bytes()).with_context(|| format!("{what}: {TRUST_BUNDLE_KEY}")).map(Some)
}

/// Whether the definitions exist and serve the version that this program reads.
async fn definitions(cluster: &Cluster) -> anyhow::Result<CheckOutcome> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut wrong = Vec::new();
    for (_, ours) in manifest::all() {
        let name = ours.name_any();
        let stored = ours.spec.versions.iter().find(|version| version.storage);
        let version = stored.map(|version| version.name.as_str()).unwrap_or_default();
        match cluster.get(&api, &name, &format!("CustomResourceDefinition {name}")).await? {
            // Kinds of Istio are optional.
            None if manifest::is_shared(&ours) => {}
            None => wrong.push(format!("{name} is missing")),
            Some(crd) => {
                let is_served =
                    crd.spec.versions.iter().any(|served| served.name == version && served.served);
                if !is_served {
                    wrong.push(format!("{name} does not serve {version}"));
                }
            }
        }
    }
    Ok(CheckOutcome::failed_for(&wrong))
}

/// Whether every daemon has all its replicas, and whether they have this program's version; the second is `None` if
/// no Deployment exists.
async fn deployments(cluster: &Cluster) -> (anyhow::Result<CheckOutcome>, Option<CheckOutcome>) {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.control_plane);
    let (mut unready, mut others) = (Vec::new(), Vec::new());
    let mut is_any = false;
    for part in Part::ALL {
        let what = format!("Deployment {}/{part}", cluster.control_plane);
        let deployment = match cluster.get(&api, part.name(), &what).await {
            Ok(Some(deployment)) => deployment,
            Ok(None) => {
                unready
                    .push(format!("Deployment {part} does not exist in namespace {}", cluster.control_plane));
                continue;
            }
            Err(error) => return (Err(error), None),
        };
        is_any = true;
        let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
        let wanted = deployment.spec.replicas.unwrap_or(1);
        if ready < wanted || wanted == 0 {
            unready.push(format!("{part}: {ready} of {wanted} ready"));
        }
        let version = version(&deployment);
        if version != env!("CARGO_PKG_VERSION") {
            others.push(format!("{part} is {version}"));
        }
    }
    let versions = if others.is_empty() {
        CheckOutcome::ok_with(env!("CARGO_PKG_VERSION"))
    } else {
        CheckOutcome::warning(format!(
            "this command is {}; {}",
            env!("CARGO_PKG_VERSION"),
            super::enumerate(&others)
        ))
    };
    (Ok(CheckOutcome::failed_for(&unready)), is_any.then_some(versions))
}

/// The current MeshConfig, if there is one.
pub(crate) async fn mesh_config(cluster: &Cluster) -> anyhow::Result<Option<MeshConfig>> {
    let resource = ApiResource::erase::<MeshConfig>(&());
    let api: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), &cluster.control_plane, &resource);
    let what = format!("MeshConfig {}/{MESH_CONFIG_NAME}", cluster.control_plane);
    let Some(object) = cluster.get(&api, MESH_CONFIG_NAME, &what).await? else { return Ok(None) };
    stored::read(&serde_json::to_value(&object)?)
        .map(Some)
        .map_err(|finding| anyhow!("{finding}; mesh peers are refused until it is corrected"))
}

/// Fails for what its status or the gateway's condition reports, and warns about what is likely a mistake.
fn judge_config(config: Option<&MeshConfig>) -> CheckOutcome {
    let Some(config) = config else {
        return CheckOutcome::warning(format!("{MESH_CONFIG_NAME} does not exist"));
    };
    let status = config.status.as_ref();
    if status.and_then(|status| status.current_status.as_deref()) == Some("error") {
        let reason = status.and_then(|status| status.reason.clone());
        return CheckOutcome::failed(reason.unwrap_or_else(|| "its status is error".to_owned()));
    }
    let gateway = status.and_then(|status| status.condition(INGRESS_GATEWAY_READY));
    if let Some(condition) = gateway.filter(|condition| condition.status == "False") {
        return CheckOutcome::failed(condition.message.clone());
    }
    let findings: Vec<String> =
        tidegate_crds::validate::mesh_config(&config.spec).iter().map(ToString::to_string).collect();
    CheckOutcome::warning_for(&findings)
}

/// The root that expires first decides: it fails once expired, and warns with less than [`ROOT_DAYS`] left.
async fn root(cluster: &Cluster) -> anyhow::Result<CheckOutcome> {
    let bundle = bundle(cluster, &cluster.control_plane).await?.with_context(|| {
        let name = trust_bundle_config_map(&cluster.mesh_name);
        format!("ConfigMap {name} does not exist in namespace {}", cluster.control_plane)
    })?;
    let mut least = u64::MAX;
    for root in bundle.roots() {
        let certificate = PeerCertificate::from_der(root)?;
        let end = humantime::format_rfc3339_seconds(certificate.not_after);
        let Some(days) = days_until(certificate.not_after) else {
            return Ok(CheckOutcome::failed(format!("a root expired at {end}")));
        };
        least = least.min(days);
    }
    let message = format!("{} trusted, {least} days left", bundle.roots().len());
    Ok(if least < ROOT_DAYS { CheckOutcome::warning(message) } else { CheckOutcome::ok_with(message) })
}

/// Namespace and name of the ingress controller's Secret, if one is configured.
pub(crate) fn gateway_secret(config: &MeshConfig) -> Option<(String, String)> {
    let secret = &config.spec.ingress_gateway()?.secret;
    Some((secret.namespace.clone(), secret.name.clone()))
}

/// Whether the Secret exists, has the type that ingress controllers expect, and holds a certificate that has not
/// expired. The key beside it is not read.
async fn gateway(cluster: &Cluster, namespace: &str, name: &str) -> anyhow::Result<CheckOutcome> {
    let what = format!("Secret {namespace}/{name}");
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let Some(secret) = cluster.get(&api, name, &what).await? else {
        return Ok(CheckOutcome::failed(format!("{what} does not exist")));
    };
    if secret.type_.as_deref() != Some(TLS_SECRET) {
        return Ok(CheckOutcome::failed(format!("{what} is of type {:?}", secret.type_.unwrap_or_default())));
    }
    let chain = secret.data.unwrap_or_default().remove("tls.crt").unwrap_or_default().0;
    let chain = load_pem_certificates(&chain).with_context(|| format!("{what}: tls.crt"))?;
    let leaf = chain.first().with_context(|| format!("{what}: tls.crt is empty"))?;
    let leaf = PeerCertificate::from_der(leaf)?;
    let end = humantime::format_rfc3339_seconds(leaf.not_after);
    Ok(match days_until(leaf.not_after) {
        None => CheckOutcome::failed(format!("{what}: the certificate expired at {end}")),
        Some(_) => CheckOutcome::ok_with(format!("until {end}")),
    })
}
