//! Inbound policies.
//!
//! On the wire a policy is the workload, its identity and a list of ports, each with the app's protocol, the Services
//! in front of it, the rule for mesh peers and the rules for other clients. The list becomes a map, and a port that
//! occurs twice is refused: the policies of one port are joined by the controller, never by the sidecar.
//!
//! A rule that the controller could not compile is still sent, with its reason, so that a refusal can name it.
//! Everything that restricts a rule distinguishes absent from empty: absent source ranges admit any address, an empty
//! list admits none; an absent client check is an error, not "no certificate required"; an absent mesh rule is an
//! error, not "any peer". Rules for mesh peers and rate limits are lists of the whole policy, to which its ports refer. Principals are the exception to strictness: one that cannot be parsed is kept as a
//! principal that matches no certificate, because the others of its list still hold.

mod egress;
mod egress_proxy;
mod external_authorization;
mod global_rate_limits;
mod peers;
mod rate_limits;
mod retries;

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_core::dns_name::DnsPattern;
use tidegate_core::policy::{
    ActiveIngressRule, ClientCheck, InboundPolicy, IngressRule, IngressTransport, MeshRule, PeerRule,
    PortPolicy, RateLimits, RuleState, Sources,
};
use tidegate_core::{CidrSet, EgressMode, Principal};

use self::egress::{egress_from_wire, egress_to_wire};
use self::egress_proxy::{egress_proxy_from_wire, egress_proxy_to_wire};
use self::external_authorization::{external_from_wire, external_to_wire};
use self::peers::{PeerRuleList, peer_rules_from_wire, referred};
use self::rate_limits::{RateLimitList, rate_limits_from_wire, referred_limits};
use self::retries::{retry_of_service_from_wire, retry_of_service_to_wire};
use super::protocol::{app_protocol_from_wire, app_protocol_to_wire};
use super::telemetry::{telemetry_from_wire, telemetry_to_wire};
use super::topology::{locality_from_wire, locality_to_wire};
use super::{
    ConversionError, bad, identity_from_wire, identity_to_wire, missing, object_from_wire, object_to_wire,
    port_number,
};
use crate::discovery as wire;

impl From<&InboundPolicy> for wire::InboundPolicy {
    fn from(policy: &InboundPolicy) -> Self {
        let (mut peer_rules, mut rate_limits) = (PeerRuleList::default(), RateLimitList::default());
        let ports = policy.ports.iter();
        let ports = ports
            .map(|(port, policy)| port_to_wire(*port, policy, &mut peer_rules, &mut rate_limits))
            .collect();
        Self {
            workload: policy.workload.to_string(),
            identity: Some(identity_to_wire(&policy.identity)),
            ports,
            peer_rules: peer_rules.to_wire(),
            locality: policy.locality.as_ref().map(locality_to_wire),
            telemetry: Some(telemetry_to_wire(&policy.telemetry)),
            rate_limits: rate_limits.to_wire(),
            external_authorization: policy.external_authorization.as_deref().map(external_to_wire),
            registry_only: match &policy.egress {
                EgressMode::AllowAny => None,
                EgressMode::RegistryOnly(reason) => Some(reason.to_string()),
                EgressMode::Policies(policies) => Some(policies.reason.to_string()),
            },
            egress_policies: match &policy.egress {
                EgressMode::AllowAny | EgressMode::RegistryOnly(_) => None,
                EgressMode::Policies(policies) => Some(egress_to_wire(policies)),
            },
            retries: policy.retries.iter().map(|retry| retry_of_service_to_wire(retry)).collect(),
            egress_proxies: policy.egress_proxies.iter().map(|rule| egress_proxy_to_wire(rule)).collect(),
        }
    }
}

impl TryFrom<wire::InboundPolicy> for InboundPolicy {
    type Error = ConversionError;

    fn try_from(policy: wire::InboundPolicy) -> Result<Self, ConversionError> {
        let identity = policy.identity.ok_or_else(|| missing("identity"))?;
        let identity = identity_from_wire("identity", &identity)?;
        let peer_rules = peer_rules_from_wire(policy.peer_rules)?;
        let rate_limits = rate_limits_from_wire(policy.rate_limits)?;
        let mut ports = BTreeMap::new();
        for port in policy.ports {
            let number = port_number("ports[].port", port.port)?;
            let path = format!("ports[{number}]");
            if ports.insert(number, port_from_wire(&path, port, &peer_rules, &rate_limits)?).is_some() {
                return Err(bad(&path, "duplicate port"));
            }
        }
        let locality = policy.locality.map(locality_from_wire);
        let telemetry = policy.telemetry.map(telemetry_from_wire).transpose()?.unwrap_or_default();
        let external = policy.external_authorization.map(external_from_wire).transpose()?;
        let external_authorization = external.map(Arc::new);
        let workload = policy.workload.into();
        let egress = match (policy.registry_only, policy.egress_policies) {
            (None, None) => EgressMode::AllowAny,
            (None, Some(_)) => return Err(missing("registry_only")),
            (Some(reason), None) => EgressMode::RegistryOnly(reason.into()),
            (Some(reason), Some(policies)) => {
                EgressMode::Policies(egress_from_wire(reason.into(), policies)?.into())
            }
        };
        let retry = |(i, retry)| retry_of_service_from_wire(&format!("retries[{i}]"), retry).map(Arc::new);
        let retries = policy.retries.into_iter().enumerate().map(retry).collect::<Result<_, _>>()?;
        let proxies = policy.egress_proxies.into_iter().enumerate();
        let proxies = proxies.map(|(i, rule)| egress_proxy_from_wire(&format!("egress_proxies[{i}]"), rule));
        let egress_proxies = proxies.map(|rule| rule.map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(Self {
            workload,
            identity,
            locality,
            telemetry,
            egress,
            retries,
            egress_proxies,
            ports,
            external_authorization,
        })
    }
}

/// An item of a list, not a value of a map: maps are encoded in any order, and a version is a hash of the bytes.
fn port_to_wire<'p>(
    port: u16,
    policy: &'p PortPolicy,
    peer_rules: &mut PeerRuleList<'p>,
    rate_limits: &mut RateLimitList<'p>,
) -> wire::PortPolicy {
    let mesh = match &policy.mesh {
        MeshRule::Deny(why) => wire::mesh_rule::Rule::DenyReason(why.to_string()),
        MeshRule::AnyPeer => wire::mesh_rule::Rule::AnyPeer(wire::AnyPeer {}),
        MeshRule::Rules(rules) => wire::mesh_rule::Rule::Rules(peer_rules.places(rules)),
        MeshRule::Audit(rules) => wire::mesh_rule::Rule::Audit(peer_rules.places(rules)),
    };
    wire::PortPolicy {
        port: port.into(),
        protocol: app_protocol_to_wire(policy.protocol).into(),
        services: policy.services.iter().map(ToString::to_string).collect(),
        mesh: Some(wire::MeshRule { rule: Some(mesh) }),
        ingress: policy.ingress.iter().map(rule_to_wire).collect(),
        rate_limits: rate_limits.places(&policy.rate_limits),
    }
}

/// `path` has the port's number, such as `ports[14001]`.
fn port_from_wire(
    path: &str,
    port: wire::PortPolicy,
    peer_rules: &[Arc<PeerRule>],
    rate_limits: &[Arc<RateLimits>],
) -> Result<PortPolicy, ConversionError> {
    let protocol = app_protocol_from_wire(&format!("{path}.protocol"), port.protocol)?;
    let mesh_path = format!("{path}.mesh");
    let mesh = match port.mesh.and_then(|mesh| mesh.rule).ok_or_else(|| missing(&mesh_path))? {
        wire::mesh_rule::Rule::DenyReason(why) => MeshRule::Deny(why.into()),
        wire::mesh_rule::Rule::AnyPeer(wire::AnyPeer {}) => MeshRule::AnyPeer,
        wire::mesh_rule::Rule::Rules(rules) => MeshRule::Rules(referred(&mesh_path, &rules, peer_rules)?),
        wire::mesh_rule::Rule::Audit(rules) => MeshRule::Audit(referred(&mesh_path, &rules, peer_rules)?),
    };
    let rule = |(i, rule)| rule_from_wire(&format!("{path}.ingress[{i}]"), rule);
    Ok(PortPolicy {
        protocol,
        services: port.services.into_iter().map(Into::into).collect(),
        mesh,
        ingress: port.ingress.into_iter().enumerate().map(rule).collect::<Result<_, _>>()?,
        rate_limits: referred_limits(&format!("{path}.rate_limits"), &port.rate_limits, rate_limits)?,
    })
}

fn rule_to_wire(rule: &IngressRule) -> wire::IngressRule {
    let state = match &rule.state {
        RuleState::Invalid(why) => wire::ingress_rule::State::InvalidReason(why.to_string()),
        RuleState::Active(active) => wire::ingress_rule::State::Active(active_to_wire(active)),
    };
    wire::IngressRule {
        origin: Some(object_to_wire(&rule.origin)),
        backend: rule.backend.to_string(),
        state: Some(state),
    }
}

/// `path` has the rule's place among those of its port, such as `ports[14001].ingress[0]`.
fn rule_from_wire(path: &str, rule: wire::IngressRule) -> Result<IngressRule, ConversionError> {
    let state = match rule.state.ok_or_else(|| missing(path))? {
        wire::ingress_rule::State::InvalidReason(why) => RuleState::Invalid(why.into()),
        wire::ingress_rule::State::Active(active) => RuleState::Active(active_from_wire(path, active)?),
    };
    let origin = object_from_wire(&format!("{path}.origin"), rule.origin)?;
    Ok(IngressRule { origin, backend: rule.backend.into(), state })
}

fn active_to_wire(rule: &ActiveIngressRule) -> wire::ActiveIngressRule {
    let sources = match &rule.sources {
        Sources::Any => None,
        Sources::Ranges(ranges) => {
            Some(wire::SourceRanges { cidrs: ranges.ranges().iter().map(ToString::to_string).collect() })
        }
    };
    let transport = match &rule.transport {
        IngressTransport::Http => wire::active_ingress_rule::Transport::Http(wire::PlainHttp {}),
        IngressTransport::Tcp => wire::active_ingress_rule::Transport::Tcp(wire::OpaqueTcp {}),
        IngressTransport::Https { sni_hosts, client } => {
            let client = match client {
                ClientCheck::Skip => wire::https::Client::Skip(wire::SkipClientCertValidation {}),
                ClientCheck::Principals(names) => wire::https::Client::Principals(principals_to_wire(names)),
            };
            let sni_hosts = sni_hosts.iter().map(ToString::to_string).collect();
            wire::active_ingress_rule::Transport::Https(wire::Https { sni_hosts, client: Some(client) })
        }
    };
    wire::ActiveIngressRule { sources, transport: Some(transport) }
}

/// CIDR ranges and host patterns are parsed again: the controller has parsed them, but it may be of another version.
fn active_from_wire(path: &str, rule: wire::ActiveIngressRule) -> Result<ActiveIngressRule, ConversionError> {
    let sources = match rule.sources {
        None => Sources::Any,
        Some(ranges) => {
            let ranges = CidrSet::parse(ranges.cidrs.iter().map(String::as_str));
            Sources::Ranges(ranges.map_err(|e| bad(&format!("{path}.sources"), e))?)
        }
    };
    let transport = match rule.transport.ok_or_else(|| missing(&format!("{path}.transport")))? {
        wire::active_ingress_rule::Transport::Http(wire::PlainHttp {}) => IngressTransport::Http,
        wire::active_ingress_rule::Transport::Tcp(wire::OpaqueTcp {}) => IngressTransport::Tcp,
        wire::active_ingress_rule::Transport::Https(https) => {
            let hosts = https.sni_hosts.iter().map(|host| DnsPattern::parse(host)).collect::<Result<_, _>>();
            let client = match https.client.ok_or_else(|| missing(&format!("{path}.https.client")))? {
                wire::https::Client::Skip(wire::SkipClientCertValidation {}) => ClientCheck::Skip,
                wire::https::Client::Principals(names) => {
                    ClientCheck::Principals(principals_from_wire(&names).into())
                }
            };
            IngressTransport::Https {
                sni_hosts: hosts.map_err(|e| bad(&format!("{path}.https.sni_hosts"), e))?,
                client,
            }
        }
    };
    Ok(ActiveIngressRule { sources, transport })
}

/// By their text, in which a type is recognized by its form: `*`, a name with `://`, or a DNS name.
fn principals_to_wire(principals: &[Principal]) -> wire::Principals {
    wire::Principals { names: principals.iter().map(ToString::to_string).collect() }
}

/// Never fails: see the module's documentation.
fn principals_from_wire(principals: &wire::Principals) -> Vec<Principal> {
    principals.names.iter().map(|name| Principal::parse(name)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message;
    use tidegate_core::ServiceRetry;
    use tidegate_core::backend::Locality;
    use tidegate_core::policy::{
        ActivePeerRule, AppProtocol, GlobalRateLimits, PeerRuleState, PeerTraffic, RouteRateLimit,
    };
    use tidegate_core::route::filter::{HeaderEdits, LocalRateLimit};
    use tidegate_core::route::matching::{HeaderMatch, PathMatch, RouteMatch};
    use tidegate_core::route::{RetryPolicy, Timeouts};
    use tidegate_core::telemetry::{TelemetrySettings, TraceCollector, TracingSettings};
    use tidegate_core::token_bucket::TokenRate;
    use tidegate_core::{Identity, ObjectRef, TrustDomain};

    use super::egress_proxy::tests::egress_proxy;
    use super::*;

    /// One of each state: matches, everything, nothing.
    fn peer_rules() -> [Arc<PeerRule>; 3] {
        let path = PathMatch::regex("/books.*").unwrap();
        let header = HeaderMatch::regex("x-version", "1|2").unwrap();
        let matches = vec![
            Arc::new(RouteMatch::new(Some(path), vec![], vec![header], vec![])),
            Arc::new(RouteMatch::any()),
        ];
        let source = |account| Identity::new(TrustDomain::default(), "a", account).unwrap();
        let sources: Arc<[Identity]> = [source("cart"), source("shop.v1")].into();
        let active = |traffic| PeerRuleState::Active(ActivePeerRule { sources: sources.clone(), traffic });
        let origin = ObjectRef::new("TrafficTarget", "a", "t");
        [
            active(PeerTraffic::Requests(matches)),
            active(PeerTraffic::Any),
            PeerRuleState::Invalid("why".into()),
        ]
        .map(|state| Arc::new(PeerRule { origin: origin.clone(), state }))
    }

    fn rate_limits() -> RateLimits {
        let origin = ObjectRef::new("UpstreamTrafficSetting", "a", "c");
        let rate = TokenRate { tokens: 3, per: Duration::from_secs(60), burst: 2 };
        let limit = |bucket: &str, headers: &[(&str, &str)]| LocalRateLimit {
            origin: origin.clone(),
            bucket: bucket.into(),
            rate,
            status: 503,
            headers: Arc::new(HeaderEdits::new(headers, &[], &[]).unwrap()),
        };
        let path = PathMatch::regex("/books.*").unwrap();
        let route = RouteRateLimit {
            requests: RouteMatch::new(Some(path), vec![], vec![], vec![]),
            limit: limit("/books.*", &[]),
        };
        let requests = Some(limit("", &[("x-limited", "yes")]));
        RateLimits {
            origin: origin.clone(),
            is_audit: true,
            connections: Some(rate),
            requests,
            routes: vec![route],
            global: GlobalRateLimits::default(),
        }
    }

    fn telemetry() -> TelemetrySettings {
        let collector = TraceCollector { host: "jaeger".into(), port: 4318, path: Some("/v1".into()) };
        let tracing = TracingSettings { collector, sampled_per_million: 10_000 };
        TelemetrySettings { workload: Some("cart".into()), tracing: Some(tracing) }
    }

    fn principals() -> Vec<Principal> {
        vec![Principal::Any, Principal::parse("a.b.c"), Principal::parse("spiffe://td/ns/a/sa/b")]
    }

    /// Ports with each kind of rule.
    fn ports() -> BTreeMap<u16, PortPolicy> {
        let [requests, any, invalid] = peer_rules();
        let active = |sources, transport| RuleState::Active(ActiveIngressRule { sources, transport });
        let origin = || ObjectRef::new("IngressBackend", "a", "b");
        let rule = |state| IngressRule { origin: origin(), backend: "a/c".into(), state };
        let ranges = Sources::Ranges(CidrSet::parse(["10.0.0.0/24", "fd00::1/128"]).unwrap());
        let https = |client| IngressTransport::Https {
            sni_hosts: vec![DnsPattern::parse("*.bar.example").unwrap()],
            client,
        };
        let limits = Arc::new(rate_limits());
        let port = |protocol, mesh, ingress| PortPolicy {
            protocol,
            services: vec!["a/c".into()],
            mesh,
            ingress,
            rate_limits: vec![limits.clone()],
        };
        BTreeMap::from([
            (
                1,
                port(
                    AppProtocol::Http,
                    MeshRule::AnyPeer,
                    vec![
                        rule(active(ranges, https(ClientCheck::Principals(principals().into())))),
                        rule(active(Sources::Any, https(ClientCheck::Skip))),
                        rule(RuleState::Invalid("why".into())),
                    ],
                ),
            ),
            (2, port(AppProtocol::H2c, MeshRule::Deny("off".into()), vec![])),
            (
                3,
                port(
                    AppProtocol::TcpServerFirst,
                    MeshRule::Rules(vec![requests.clone(), invalid]),
                    vec![rule(active(Sources::Ranges(CidrSet::default()), IngressTransport::Tcp))],
                ),
            ),
            (
                4,
                port(
                    AppProtocol::Tcp,
                    MeshRule::AnyPeer,
                    vec![rule(active(Sources::Any, IngressTransport::Http))],
                ),
            ),
            (5, port(AppProtocol::Undeclared, MeshRule::Audit(vec![requests, any]), vec![])),
        ])
    }

    fn policy() -> InboundPolicy {
        InboundPolicy {
            workload: "a/pod".into(),
            identity: Identity::new(TrustDomain::default(), "a", "b").unwrap(),
            locality: Some(Locality { node: Some("node-1".into()), zone: None }),
            telemetry: telemetry(),
            egress: EgressMode::RegistryOnly("enableEgress is false".into()),
            retries: vec![Arc::new(ServiceRetry {
                origin: ObjectRef::new("Retry", "a", "again"),
                service: "c/d".into(),
                timeouts: Timeouts::new(None, Some(Duration::from_millis(1500))).unwrap(),
                policy: RetryPolicy::unprocessed(),
            })],
            egress_proxies: vec![Arc::new(egress_proxy())],
            ports: ports(),
            external_authorization: None,
        }
    }

    #[test]
    fn a_policy_comes_back_from_the_wire_as_it_was() {
        let (nowhere, unknown) = (Some(Locality::default()), None);
        for locality in [policy().locality, nowhere, unknown] {
            let egress = if locality.is_none() { EgressMode::AllowAny } else { policy().egress };
            let policy = InboundPolicy { locality, egress, ..policy() };
            let bytes = wire::InboundPolicy::from(&policy).encode_to_vec();
            let decoded = wire::InboundPolicy::decode(bytes.as_slice()).unwrap();
            assert_eq!(InboundPolicy::try_from(decoded).unwrap(), policy);
        }
    }

    #[test]
    fn a_rule_for_mesh_peers_and_a_limit_are_sent_once_for_all_ports() {
        let sent = wire::InboundPolicy::from(&policy());
        assert_eq!((sent.peer_rules.len(), sent.rate_limits.len()), (3, 1));
        let InboundPolicy { ports, .. } = InboundPolicy::try_from(sent).unwrap();
        let (MeshRule::Rules(of_3), MeshRule::Audit(of_5)) = (&ports[&3].mesh, &ports[&5].mesh) else {
            panic!()
        };
        assert!(Arc::ptr_eq(&of_3[0], &of_5[0]), "and is kept once");
    }

    #[test]
    fn what_is_not_understood_refuses_the_whole_policy_and_names_the_field() {
        let spoil = |change: fn(&mut wire::InboundPolicy)| {
            let mut policy = wire::InboundPolicy::from(&policy());
            change(&mut policy);
            InboundPolicy::try_from(policy).unwrap_err().to_string()
        };
        assert_eq!(spoil(|p| p.identity = None), "identity: missing");
        assert_eq!(spoil(|p| p.ports[0].mesh = None), "ports[1].mesh: missing");
        assert_eq!(spoil(|p| p.ports[0].protocol = 99), "ports[1].protocol: unknown value 99");
        assert_eq!(spoil(|p| p.ports[0].port = 70000), "ports[].port: 70000 is not a port");
        assert_eq!(spoil(|p| p.ports[1].port = 1), "ports[1]: duplicate port");
        assert_eq!(spoil(|p| p.ports[0].ingress[2].state = None), "ports[1].ingress[2]: missing");
        assert_eq!(spoil(|p| p.ports[0].ingress[1].origin = None), "ports[1].ingress[1].origin: missing");
        let nameless = spoil(|p| p.ports[0].ingress[1].origin = Some(wire::ObjectRef::default()));
        assert_eq!(nameless, "ports[1].ingress[1].origin.kind: missing");
        assert_eq!(spoil(|p| p.peer_rules[2].state = None), "peer_rules[2]: missing");
        assert_eq!(spoil(|p| p.peer_rules[0].origin = None), "peer_rules[0].origin: missing");
        let limited = |change: fn(&mut wire::RateLimits)| {
            let mut policy = wire::InboundPolicy::from(&policy());
            change(&mut policy.rate_limits[0]);
            InboundPolicy::try_from(policy).unwrap_err().to_string()
        };
        assert_eq!(spoil(|p| p.rate_limits.clear()), "ports[1].rate_limits: rate_limits has no entry 0");
        assert_eq!(limited(|l| l.routes[0].requests = None), "rate_limits[0].routes[0].requests: missing");
        assert_eq!(
            limited(|l| l.connections = Some(wire::TokenRate::default())),
            "rate_limits[0].connections.per: missing"
        );
        assert_eq!(
            limited(|l| l.requests.as_mut().unwrap().status = 200),
            "rate_limits[0].requests.status: \"200\" is not a status of 400 to 599"
        );
        assert_eq!(spoil(|p| p.peer_rules.truncate(1)), "ports[3].mesh: there is no rule 1");
        let active = |change: fn(&mut wire::ActivePeerRule)| {
            move |p: &mut wire::InboundPolicy| {
                let Some(wire::peer_rule::State::Active(rule)) = &mut p.peer_rules[0].state else { panic!() };
                change(rule);
            }
        };
        let mut spoiled = wire::InboundPolicy::from(&policy());
        active(|rule| rule.traffic = None)(&mut spoiled);
        let error = InboundPolicy::try_from(spoiled).unwrap_err().to_string();
        assert_eq!(error, "peer_rules[0].traffic: missing");
        let mut many = wire::InboundPolicy::from(&policy());
        active(|rule| {
            let Some(wire::active_peer_rule::Traffic::Requests(requests)) = &mut rule.traffic else {
                panic!()
            };
            requests.matches = vec![requests.matches[0].clone(); 513];
        })(&mut many);
        let error = InboundPolicy::try_from(many).unwrap_err().to_string();
        assert_eq!(error, "peer_rules: 1026 regular expressions, more than 1024");
        let bad_range = spoil(|p| {
            let Some(wire::ingress_rule::State::Active(rule)) = &mut p.ports[0].ingress[0].state else {
                panic!()
            };
            rule.sources = Some(wire::SourceRanges { cidrs: vec!["10.0.0.1".into()] });
        });
        assert!(bad_range.starts_with("ports[1].ingress[0].sources: expected CIDR"), "{bad_range}");
    }
}
