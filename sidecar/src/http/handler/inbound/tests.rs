mod mesh_peers;
mod rate_limits;

use std::collections::BTreeMap;
use std::time::SystemTime;

use ::http::HeaderMap;
use ::http::header::{CONTENT_TYPE, HeaderValue};
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::policy::{
    ActiveIngressRule, ClientCheck, InboundPolicy, IngressRule, IngressTransport, MeshRule, PortPolicy,
    Reason, RuleState, Sources, Terms,
};
use tidegate_core::{CidrSet, EgressMode, Identity, ObjectRef, Principal, TrustDomain};

use super::*;
use crate::connection_info::ConnectionInfo;
use crate::http::handler::{Handler, Rule};
use crate::snapshot::{self, Publisher};
use crate::telemetry::ResponseFlag;

const PORT: u16 = 14001;
const APP: &str = "127.0.0.1:8080";

/// A connection's handler, and the publisher of its policy.
struct World {
    handler: Handler,
    publisher: Publisher,
}

impl World {
    /// A client at 10.0.0.7 that sent this server name, if it uses TLS. No policy has arrived yet.
    fn new(server_name: Option<&str>) -> Self {
        let tls = server_name.is_some();
        let info = ConnectionInfo {
            peer: "10.0.0.7:4321".parse().unwrap(),
            local: "10.0.0.1:14001".parse().unwrap(),
            port: PORT,
            app: APP.parse().unwrap(),
            terms: if tls { Terms::IngressTls } else { Terms::IngressPlaintext },
            tls,
            server_name: server_name.map(Into::into),
            client: None,
            identity: "spiffe://cluster.local/ns/httpbin/sa/httpbin".into(),
            remote: Default::default(),
            accepted: SystemTime::UNIX_EPOCH,
        };
        Self::of(info)
    }

    /// This connection. No policy has arrived yet.
    fn of(info: ConnectionInfo) -> Self {
        let (publisher, snapshots) = snapshot::channel();
        let handler = Handler::inbound(Rc::new(Authorizer::new(Rc::new(info), snapshots)));
        Self { handler, publisher }
    }

    /// Publishes a policy for the connection's port.
    fn publish(&self, protocol: AppProtocol, rules: Vec<ActiveIngressRule>) {
        let ingress = rules.into_iter().map(|rule| IngressRule {
            origin: ObjectRef::new("IngressBackend", "httpbin", "ingress"),
            backend: "httpbin/httpbin".into(),
            state: RuleState::Active(rule),
        });
        let mesh = MeshRule::Deny("closed".into());
        self.publish_port(PortPolicy {
            protocol,
            services: vec![],
            mesh,
            ingress: ingress.collect(),
            rate_limits: vec![],
        });
    }

    fn publish_port(&self, port: PortPolicy) {
        let policy = InboundPolicy {
            workload: "httpbin/httpbin-1".into(),
            identity: Identity::new(TrustDomain::default(), "httpbin", "httpbin").unwrap(),
            locality: None,
            telemetry: Default::default(),
            external_authorization: None,
            egress: EgressMode::AllowAny,
            retries: Vec::new(),
            egress_proxies: Vec::new(),
            ports: BTreeMap::from([(PORT, port)]),
        };
        self.publisher.update(|snapshot| snapshot.policy = Some(policy.into()));
    }

    fn get(&self, authority: &str) -> HandlerAction {
        let fields = HeaderMap::new();
        self.handler.handle(&Request::from_map(b"GET", authority.as_bytes(), b"/", &fields)).action
    }
}

fn https(sni_hosts: &[&str], client: ClientCheck) -> ActiveIngressRule {
    let sni_hosts = sni_hosts.iter().map(|host| DnsPattern::parse(host).unwrap()).collect();
    ActiveIngressRule { sources: Sources::Any, transport: IngressTransport::Https { sni_hosts, client } }
}

fn plaintext(sources: Sources) -> ActiveIngressRule {
    ActiveIngressRule { sources, transport: IngressTransport::Http }
}

#[test]
fn client_port_and_grpc_decide_the_http_version_to_the_app() {
    use AppProtocol::{H2c, Http};
    use UpstreamProtocol::{Http1, Http2};

    let mut grpc = HeaderMap::new();
    grpc.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let fields = [HeaderMap::new(), grpc];
    let lines = [vec![], vec![httparse::Header { name: "Content-Type", value: b"application/grpc" }]];
    for (tls, app, of_http1, of_http2) in [
        (false, Http, [Http1, Http1], [Http2, Http2]),
        (true, Http, [Http1, Http1], [Http1, Http2]),
        (false, H2c, [Http2, Http2], [Http2, Http2]),
        (true, H2c, [Http2, Http2], [Http2, Http2]),
    ] {
        let world = World::new(tls.then_some("a.example"));
        let rule = if tls { https(&[], ClientCheck::Skip) } else { plaintext(Sources::Any) };
        world.publish(app, vec![rule]);
        for is_grpc in [0, 1] {
            let http1 = Request::from_lines(b"POST", b"a", b"/", Version::Http11, &lines[is_grpc]);
            let http2 = Request::from_map(b"POST", b"a", b"/", &fields[is_grpc]);
            for (request, protocol) in [(http1, of_http1[is_grpc]), (http2, of_http2[is_grpc])] {
                let version = request.version.as_str();
                let what = format!("{version}, TLS {tls}, app {app:?}, gRPC {is_grpc}");
                let HandlerAction::Forward(forward) = world.handler.handle(&request).action else {
                    panic!("{what}")
                };
                let address = forward.endpoint().address.to_string();
                assert_eq!((&*address, forward.protocol), (APP, protocol), "{what}");
            }
        }
    }
}

#[test]
fn each_request_is_authorized_by_the_newest_policy_and_a_403_has_one_flag() {
    let world = World::new(None);
    let refused = |action, reason: Reason, flag| {
        let HandlerAction::Reply(reply) = action else { panic!("passed on") };
        assert_eq!(reply, local_reply::denied(&reason));
        assert_eq!((reply.status, reply.body, reply.flag), (403, "RBAC: access denied", flag));
    };
    refused(world.get("a"), Reason::NoPolicy, ResponseFlag::NoRoute);
    world.publish(AppProtocol::Http, vec![]);
    refused(world.get("a"), Reason::NoIngressBackend, ResponseFlag::NoRoute);
    world.publish(AppProtocol::Http, vec![plaintext(Sources::Any)]);
    assert!(matches!(world.get("a"), HandlerAction::Forward(_)));
    let elsewhere = Sources::Ranges(CidrSet::parse(["192.0.2.0/24"]).unwrap());
    world.publish(AppProtocol::Http, vec![plaintext(elsewhere)]);
    refused(world.get("a"), Reason::SourceNotAllowed, ResponseFlag::Refused);
    world.publish(AppProtocol::Http, vec![plaintext(Sources::Any)]);
    assert!(matches!(world.get("a"), HandlerAction::Forward(_)));
}

#[test]
fn the_decision_is_returned_with_the_action_for_the_access_log() {
    let world = World::new(None);
    let fields = HeaderMap::new();
    let handle = || world.handler.handle(&Request::from_map(b"GET", b"a", b"/", &fields));
    assert!(
        matches!(handle().decision.as_deref(), Some(Decision::Deny(denial)) if denial.reason == Reason::NoPolicy)
    );
    world.publish(AppProtocol::Http, vec![plaintext(Sources::Any)]);
    assert!(matches!(handle().decision.as_deref(), Some(Decision::Allow(_))));
}

#[test]
fn a_host_of_another_rule_is_421_where_rules_differ_by_name() {
    let world = World::new(Some("open.example"));
    let gateway = ClientCheck::Principals(vec![Principal::parse("gateway.example")].into());
    let rules = vec![https(&["open.example"], ClientCheck::Skip), https(&["secret.example"], gateway)];
    world.publish(AppProtocol::Http, rules);
    assert!(matches!(world.get("OPEN.example:443"), HandlerAction::Forward(_)));
    assert!(matches!(world.get("httpbin"), HandlerAction::Forward(_)));
    let HandlerAction::Reply(reply) = world.get("secret.example") else { panic!("passed on") };
    assert_eq!((reply.status, reply.flag), (421, ResponseFlag::Refused));
}
