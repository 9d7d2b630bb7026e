//! A client of an app outside the mesh: through a forward proxy, or to names that ServiceEntries or Egresses list.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{LocalMesh, Running, TargetSite, caller};
use crate::certificates::OUTSIDE;
use crate::targets::StartedProxy;
use crate::template;

/// Objects of the client, with placeholders.
const CLIENT: &str = include_str!("../../../templates/outside.yaml");
/// What the client dials to be taken to a forward proxy: no host has it.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 443);
/// Hosts of one Egress: its limit.
const HOSTS_OF_EGRESS: usize = 256;

/// What lets the client reach the app.
#[derive(Debug, Clone, Copy)]
pub(in crate::targets) enum OutsidePolicy {
    /// An EgressProxy.
    ForwardProxy,
    /// This many ServiceEntries of one host each, while egress is off. The app's names are the last ones.
    Entries(usize),
    /// Egresses with this many hosts, likewise.
    Hosts(usize),
}

/// Starts the mesh and the sidecar beside the client, which is measured.
pub(in crate::targets) async fn start_outside(
    site: &TargetSite<'_>,
    policy: OutsidePolicy,
) -> Result<Running> {
    let programs = site.programs.tidegate()?;
    // Loopback addresses never go through a forward proxy.
    let dialled = match policy {
        OutsidePolicy::ForwardProxy => ELSEWHERE,
        OutsidePolicy::Entries(_) | OutsidePolicy::Hosts(_) => site.app,
    };
    let mesh = LocalMesh::with_manifests(site, &manifests(policy, site.app)?, Some(dialled))?;
    let [controller, ca] = mesh.start_control_plane(site, &programs).await?;
    let caller = mesh.caller.as_ref().context("no sidecar beside the client")?;
    let process = programs.start_sidecar(site, "caller", caller.arguments(site, &mesh), caller.admin).await?;
    Ok(Running::outside(StartedProxy { process, listen: caller.outbound }, vec![controller, ca], site))
}

/// All objects: JSON documents, as YAML.
fn manifests(policy: OutsidePolicy, app: SocketAddr) -> Result<String> {
    let is_open = matches!(policy, OutsidePolicy::ForwardProxy);
    let values = [("enable_egress", is_open.to_string()), ("caller_address", caller::POD.to_string())];
    let mut text = template::render(CLIENT, &values).context("outside.yaml")?;
    let objects = match policy {
        OutsidePolicy::ForwardProxy => vec![forward_proxy(app)],
        OutsidePolicy::Entries(count) => {
            hosts(count).enumerate().map(|(at, host)| entry(at, &host, app)).collect()
        }
        OutsidePolicy::Hosts(count) => {
            let hosts: Vec<_> = hosts(count).collect();
            hosts.chunks(HOSTS_OF_EGRESS).enumerate().map(|(at, hosts)| egress(at, hosts, app)).collect()
        }
    };
    for object in objects {
        text += &format!("---\n{object}\n");
    }
    Ok(text)
}

/// This many names, of which the app's are the last.
fn hosts(count: usize) -> impl Iterator<Item = String> {
    let others = (0..count.saturating_sub(OUTSIDE.len())).map(|at| format!("host-{at}.example.com"));
    others.chain(OUTSIDE.map(str::to_owned))
}

fn forward_proxy(app: SocketAddr) -> Value {
    let spec = json!({"proxies": [{"address": app.ip(), "port": app.port()}]});
    object("tidegate.io/v1alpha1", "EgressProxy", "corporate", &spec)
}

fn entry(at: usize, host: &str, app: SocketAddr) -> Value {
    let spec = json!({
        "hosts": [host],
        "ports": [{"number": app.port(), "name": "tls", "protocol": "TLS"}],
        "location": "MESH_EXTERNAL",
        "resolution": "NONE",
    });
    object("networking.istio.io/v1", "ServiceEntry", &format!("entry-{at}"), &spec)
}

fn egress(at: usize, hosts: &[String], app: SocketAddr) -> Value {
    let spec = json!({
        "sources": [{"kind": "ServiceAccount", "name": "caller", "namespace": "httpbin"}],
        "hosts": hosts,
        "ports": [{"number": app.port(), "protocol": "https"}],
    });
    object("policy.openservicemesh.io/v1alpha1", "Egress", &format!("egress-{at}"), &spec)
}

fn object(version: &str, kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "httpbin"}, "spec": spec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_s_names_are_the_last_of_many_and_no_egress_has_more_hosts_than_its_kind_allows() {
        let app = "127.0.0.1:4001".parse().unwrap();
        let objects = |policy, kind: &str| -> Vec<Value> {
            let text = manifests(policy, app).unwrap();
            let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
            assert_eq!(objects[0]["spec"]["traffic"]["enableEgress"], kind == "EgressProxy");
            objects.into_iter().filter(|object| object["kind"] == *kind).collect()
        };
        let hosts = |objects: &[Value]| -> Vec<Value> {
            objects.iter().flat_map(|object| object["spec"]["hosts"].as_array().unwrap().clone()).collect()
        };
        let entries = objects(OutsidePolicy::Entries(1000), "ServiceEntry");
        assert_eq!(hosts(&entries)[997..], OUTSIDE);
        let egresses = objects(OutsidePolicy::Hosts(1000), "Egress");
        assert_eq!(hosts(&egresses), hosts(&entries));
        let most = egresses.iter().map(|egress| egress["spec"]["hosts"].as_array().unwrap().len()).max();
        assert_eq!((egresses.len(), most), (4, Some(HOSTS_OF_EGRESS)));
        let proxy = &objects(OutsidePolicy::ForwardProxy, "EgressProxy")[0]["spec"]["proxies"][0];
        assert_eq!(*proxy, json!({"address": "127.0.0.1", "port": 4001}));
    }
}
