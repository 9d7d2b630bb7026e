//! EgressProxies: which of a workload's traffic goes through which forward proxies, and the status of each object.
//!
//! An object is for the Pods of its namespace; one in the MeshConfig's namespace is for all Pods of the mesh. Objects of a
//! Pod's own namespace come first, then older ones, then by name. One that cannot be understood has its place among them, and
//! takes the traffic of its ports nowhere: past the proxy is where it must not go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tidegate_core::DnsName;
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::forward_proxy::{EgressProxyRule, NoProxy, ProxyCredentials, ProxySettings};
use tidegate_core::tls_origination::{ServerName, ServerVerification, TlsOrigination, TrustRoots};
use tidegate_crds::egress_proxy::{EgressProxySpec, ProxyTlsSpec};
use tidegate_crds::{EgressProxy, Finding, validate};
use tidegate_runtime::forward_proxy::HttpProxy;

use super::status::{ACCEPTED, Compiled, HealthCondition, Judged, ObjectStatus, StatusScope};
use crate::index::{Index, secret_of};
use crate::object::unreadable::Unreadable;
use crate::object::{Kind, ObjectName};
use crate::proxy_health::{ProbedProxies, ProxyProbe};
use crate::service::has_labels;

/// The most objects of a namespace that are in force: each is in the policy of all its workloads.
const MOST: usize = 8;
/// The reason of the condition where the credentials that an object names cannot be used.
const NO_CREDENTIALS: &str = "CredentialsNotFound";
/// The most proxies that are probed: those of each namespace's oldest object, then of its next, as far as whole objects fit.
const MOST_PROBED: usize = 256;

/// The rules that Pods of a namespace may get.
pub(crate) struct NamespaceEgress(Vec<SelectedRule>);

/// A rule, and the Pods that it is for.
struct SelectedRule {
    labels: BTreeMap<String, String>,
    rule: Arc<EgressProxyRule>,
}

impl NamespaceEgress {
    /// In the order in which they count.
    pub(crate) fn new(index: &Index, namespace: &str) -> Self {
        let root = index.root_namespace();
        let meshs = root.as_deref().filter(|root| *root != namespace);
        let all = [namespace].into_iter().chain(meshs).flat_map(|place| {
            let is_root = root.as_deref() == Some(place);
            of_namespace(index, place).into_iter().filter(move |it| !is_root || it.is_for(namespace))
        });
        Self(all.map(|candidate| candidate.compiled(index)).collect())
    }

    /// All of them, each with the labels of the Pods that it is for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&BTreeMap<String, String>, &Arc<EgressProxyRule>)> {
        self.0.iter().map(|selected| (&selected.labels, &selected.rule))
    }

    /// Those of a Pod.
    pub(super) fn of(&self, pod: &Pod) -> Vec<Arc<EgressProxyRule>> {
        self.0.iter().filter(|selected| has_labels(pod, &selected.labels)).map(|it| it.rule.clone()).collect()
    }
}

/// An object that may be in force.
enum Candidate<'i> {
    Read(&'i ObjectName, &'i EgressProxy),
    Unreadable(&'i Unreadable),
}

/// The objects of a namespace that are in force, as far as there may be: the oldest, and as many that cannot be read.
fn of_namespace<'i>(index: &'i Index, namespace: &str) -> Vec<Candidate<'i>> {
    if index.outside_mesh(namespace).is_some() && index.root_namespace().as_deref() != Some(namespace) {
        return Vec::new();
    }
    let read = index.egress_proxies_in(namespace).map(|(name, proxy)| Candidate::Read(name, proxy));
    let unreadable = index.unreadable_in(Kind::EgressProxy, namespace);
    let mut all = oldest(read.collect());
    all.extend(oldest(unreadable.map(|object| Candidate::Unreadable(object)).collect()));
    all.sort_by_cached_key(Candidate::age);
    all
}

/// As many as may be in force, in their order.
fn oldest(mut candidates: Vec<Candidate<'_>>) -> Vec<Candidate<'_>> {
    candidates.sort_by_cached_key(Candidate::age);
    candidates.truncate(MOST);
    candidates
}

impl<'i> Candidate<'i> {
    /// What their order is by.
    fn age(&self) -> (Option<&'i Time>, ObjectName) {
        match *self {
            Self::Read(name, proxy) => (proxy.metadata.creation_timestamp.as_ref(), name.clone()),
            Self::Unreadable(object) => (object.metadata.creation_timestamp.as_ref(), object.name()),
        }
    }

    /// Whether an object of the MeshConfig's namespace is for the Pods of this one.
    fn is_for(&self, namespace: &str) -> bool {
        match self {
            Self::Read(_, EgressProxy { spec, .. }) => {
                spec.namespaces.is_empty() || spec.namespaces.iter().any(|listed| listed == namespace)
            }
            Self::Unreadable(_) => true,
        }
    }

    /// The rule for sidecars, and the Pods that it is for.
    fn compiled(&self, index: &Index) -> SelectedRule {
        match self {
            Self::Read(name, proxy) => {
                let selector = proxy.spec.selector.as_ref();
                let labels = selector.map(|selector| selector.match_labels.clone()).unwrap_or_default();
                SelectedRule { labels, rule: Arc::new(rule(index, name, proxy)) }
            }
            Self::Unreadable(object) => {
                let spec = EgressProxySpec { proxies: Vec::new(), ..empty() };
                let proxy = EgressProxy { metadata: object.metadata.clone(), spec, status: None };
                SelectedRule { labels: BTreeMap::new(), rule: Arc::new(rule(index, &object.name(), &proxy)) }
            }
        }
    }
}

/// A specification without anything.
fn empty() -> EgressProxySpec {
    EgressProxySpec {
        selector: None,
        namespaces: Vec::new(),
        hosts: Vec::new(),
        ports: Vec::new(),
        proxies: Vec::new(),
        http_proxies: Vec::new(),
        no_proxy: Vec::new(),
        credentials: None,
        tls: None,
        forwarded_headers: None,
        timeouts: None,
    }
}

/// What an object means. Without proxies, connections are refused: so it is with one that has errors.
fn rule(index: &Index, name: &ObjectName, proxy: &EgressProxy) -> EgressProxyRule {
    let spec = &proxy.spec;
    let hosts = spec.hosts.iter().filter(|host| *host != "*");
    let hosts: Result<Vec<_>, _> = hosts.map(|host| DnsPattern::parse(host)).collect();
    let no_proxy = NoProxy::parse(spec.no_proxy.iter().map(String::as_str));
    let is_valid = error_of(spec).is_none();
    let usable = |list: &[tidegate_crds::egress_proxy::ProxyAddressSpec]| {
        list.iter().filter(|_| is_valid).filter_map(|proxy| proxy.socket()).collect()
    };
    let (credentials, credentials_version) = credentials(index, proxy);
    EgressProxyRule {
        hosts: if spec.hosts.iter().any(|host| host == "*") { Vec::new() } else { hosts.unwrap_or_default() },
        ports: spec.target_ports().into_iter().filter(|port| *port > 0).collect(),
        no_proxy: no_proxy.unwrap_or_default(),
        proxies: usable(&spec.proxies),
        http_proxies: usable(&spec.http_proxies),
        settings: Arc::new(ProxySettings {
            origin: name.to_ref(Kind::EgressProxy),
            credentials,
            credentials_version,
            tls: spec.tls.as_ref().and_then(origination),
            connect_timeout: spec.connect_timeout(),
            response_timeout: spec.response_timeout(),
            forwarded_headers: spec.forwarded(),
        }),
    }
}

/// The credentials of an object. If they cannot be read, the proxy gets none and refuses: that is what the log then says.
fn credentials(index: &Index, proxy: &EgressProxy) -> (Option<ProxyCredentials>, Arc<str>) {
    let secret = secret_of(proxy).and_then(|name| index.credentials(&name));
    let credentials = secret.and_then(|secret| secret.credentials.as_ref().ok()).cloned();
    (credentials, secret.map(|secret| secret.version.clone()).unwrap_or_default())
}

/// TLS to the proxies. `None` only for an object with errors.
fn origination(tls: &ProxyTlsSpec) -> Option<TlsOrigination> {
    let name = DnsName::parse(&tls.server_name).ok()?;
    let roots = TrustRoots::Pem(tls.ca_bundle.as_str().into());
    let verify = ServerVerification { roots, names: vec![ServerName::Dns(name)] };
    Some(TlsOrigination { sni: Some(tls.server_name.as_str().into()), verify, client_certificate: None })
}

/// The first error of a specification.
fn error_of(spec: &EgressProxySpec) -> Option<String> {
    let findings = validate::egress_proxy(spec);
    let found = findings.iter().find(|finding| finding.is_error()).map(Finding::to_string);
    found.or_else(|| {
        let bundle = spec.tls.as_ref()?.ca_bundle.as_bytes();
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bundle).collect();
        let is_good = roots.is_ok_and(|roots| !roots.is_empty());
        (!is_good).then(|| "spec.tls.caBundle: cannot be read as certificates in PEM".to_owned())
    })
}

/// The proxies of the objects in force, to be probed. On a cluster without loopback and link-local addresses, which mean
/// another machine to the controller than to Pods: an author of objects has no access to the controller's own.
pub(crate) fn probes(index: &Index) -> Vec<ProxyProbe> {
    let namespaces: BTreeSet<_> = index.egress_proxies().map(|(name, _)| &*name.namespace).collect();
    let ranked =
        namespaces.into_iter().flat_map(|namespace| of_namespace(index, namespace).into_iter().enumerate());
    let mut candidates: Vec<_> = ranked.collect();
    candidates.sort_by_key(|(rank, _)| *rank);
    let mut probes = Vec::new();
    for (_, candidate) in candidates {
        let Candidate::Read(name, proxy) = candidate else { continue };
        let more = probes_of(index, name, proxy);
        if probes.len() + more.len() > MOST_PROBED {
            break;
        }
        probes.extend(more);
    }
    probes
}

fn probes_of(index: &Index, name: &ObjectName, proxy: &EgressProxy) -> Vec<ProxyProbe> {
    let EgressProxyRule { proxies, http_proxies, settings, .. } = rule(index, name, proxy);
    let tls = proxy.spec.tls.as_ref();
    let certificate_name =
        tls.and_then(|tls| rustls_pki_types::ServerName::try_from(tls.server_name.clone()).ok());
    let roots: Option<Arc<str>> = tls.map(|tls| tls.ca_bundle.as_str().into());
    let probe = |address: SocketAddr, opens_tunnels| ProxyProbe {
        object: name.clone(),
        proxy: HttpProxy::at(address, certificate_name.clone(), settings.credentials.clone()),
        roots: roots.clone(),
        opens_tunnels,
        connect_timeout: settings.connect_timeout,
        response_timeout: settings.response_timeout,
    };
    let for_requests = http_proxies.iter().filter(|address| !proxies.contains(address));
    let all =
        proxies.iter().map(|address| (address, true)).chain(for_requests.map(|address| (address, false)));
    let reachable = all.filter(|(address, _)| !index.is_of_cluster() || !is_local(address.ip()));
    reachable.map(|(address, opens_tunnels)| probe(*address, opens_tunnels)).collect()
}

/// Whether an address means another machine in each network namespace, or on each link.
fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

impl Compiled for EgressProxy {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let objects = scope.index.egress_proxies();
        let wanted = objects.filter(|(name, _)| Self::is_wanted(scope, name));
        wanted
            .map(|(name, object)| {
                let status = judge(scope.index, name, object);
                Judged {
                    name: name.clone(),
                    uid: object.metadata.uid.clone(),
                    is_incomplete: status.condition == Some(NO_CREDENTIALS)
                        && !has_secret(scope.index, object),
                    status,
                }
            })
            .collect()
    }
}

/// Whether the Secret that the object names is there.
fn has_secret(index: &Index, proxy: &EgressProxy) -> bool {
    secret_of(proxy).is_some_and(|name| index.credentials(&name).is_some())
}

/// Whether an object is in force, and as far as it is not, why.
fn judge(index: &Index, name: &ObjectName, proxy: &EgressProxy) -> ObjectStatus {
    let is_root = index.root_namespace().as_ref() == Some(&name.namespace);
    let outside = index.outside_mesh(&name.namespace).filter(|_| !is_root);
    let error = outside
        .map(|reason| ("OutsideMesh", reason))
        .or_else(|| {
            let reason = error_of(&proxy.spec)?;
            Some(("Invalid", format!("{reason}; connections to its ports are refused")))
        })
        .or_else(|| {
            let in_force = of_namespace(index, &name.namespace);
            let is_first =
                in_force.iter().any(|it| matches!(it, Candidate::Read(known, _) if *known == name));
            let reason = || format!("only the {MOST} oldest EgressProxies of a namespace are in force");
            (!is_first).then(|| ("TooMany", reason()))
        })
        .or_else(|| Some((NO_CREDENTIALS, missing_credentials(index, proxy)?)));
    let findings = validate::egress_proxy(&proxy.spec);
    let mut warnings: Vec<_> =
        findings.iter().filter(|finding| !finding.is_error()).map(Finding::to_string).collect();
    if !is_root && !proxy.spec.namespaces.is_empty() {
        warnings.push("spec.namespaces: has an effect only in the MeshConfig's namespace".to_owned());
    }
    let (condition, error) = error.unzip();
    let status = ObjectStatus::new(error, warnings, &proxy.metadata);
    let status = status.with_condition(condition.unwrap_or(ACCEPTED));
    match index.proxy_health().of(name) {
        Some(probed) => status.with_health(health(probed)),
        None => status,
    }
}

/// Whether the proxies of an object work. One that fails counts although another takes over.
fn health(ProbedProxies { count, defects }: &ProbedProxies) -> HealthCondition {
    let Some(first) = defects.first() else {
        let message = "each proxy answers the controller".to_owned();
        return HealthCondition { is_healthy: true, reason: "Healthy", message };
    };
    let reason = if defects.len() < *count { "Degraded" } else { first.reason };
    let messages: Vec<_> = defects.iter().map(|defect| &*defect.message).collect();
    let message = format!("{} of {count} proxies fail: {}", defects.len(), messages.join("; "));
    HealthCondition { is_healthy: false, reason, message }
}

/// Why the credentials that the object names cannot be used.
fn missing_credentials(index: &Index, proxy: &EgressProxy) -> Option<String> {
    let name = secret_of(proxy)?;
    let reason = match index.credentials(&name) {
        None => "does not exist, or the controller may not read it".to_owned(),
        Some(secret) => secret.credentials.as_ref().err()?.to_string(),
    };
    Some(format!("spec.credentials.secretName: Secret {name}: {reason}; the proxies get no credentials"))
}

#[cfg(test)]
mod tests;
