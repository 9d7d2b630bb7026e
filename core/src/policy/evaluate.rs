//! Evaluation of the policy for a connection, with the reason of the decision.

use std::net::IpAddr;

use super::decision::{Decision, Denial, Grant};
use super::model::{
    ActiveIngressRule, AppProtocol, ClientCheck, InboundPolicy, IngressTransport, MeshRule, PortPolicy,
    RuleState,
};
use super::peers::{self, RequestRules};
use super::reason::Reason;
use crate::dns_name::DnsPattern;
use crate::identity::Identity;
use crate::object_ref::ObjectRef;
use crate::principal::Principal;
use crate::san::San;

/// Protocol inside TLS between sidecars. ALPN names it, so that it need not be detected again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeshProtocol {
    /// `tidegate/h1`: HTTP/1.1.
    Http1,
    /// `tidegate/h2`: HTTP/2.
    Http2,
    /// `tidegate/tcp`: the bytes of one app connection.
    Tcp,
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening<'a> {
    /// TLS with one of Tidegate's ALPN protocols.
    Mesh(MeshProtocol),
    /// Any other TLS.
    Tls {
        /// Server name of the ClientHello, if any.
        server_name: Option<&'a str>,
    },
    /// Anything else.
    Plaintext,
}

/// The facts about a connection after its handshake, if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Session<'a> {
    /// Port of the pod that the client connected to.
    pub port: u16,
    /// Address of the TCP peer.
    pub source: IpAddr,
    /// First bytes.
    pub opening: Opening<'a>,
    /// Names in the client certificate, if one was requested and verified against the trust bundle.
    pub client: Option<&'a [San]>,
}

/// How a connection is served. Ordered by what is required of the client, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Terms {
    /// Serve plaintext HTTP.
    IngressPlaintext,
    /// Terminate TLS without requesting a client certificate.
    IngressTls,
    /// Terminate TLS and require a client certificate issued by the mesh's CA.
    IngressMutualTls,
    /// Terminate TLS 1.3 and require a client certificate: a mesh peer.
    MeshTls(MeshProtocol),
    /// Answer `400 Bad Request` in plaintext: the client sent TLS where plaintext HTTP is expected.
    BadRequest,
    /// Forward the bytes unchanged.
    Opaque,
}

impl MeshProtocol {
    /// Whether the sidecar parses what is inside.
    fn is_parsed(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2)
    }
}

impl InboundPolicy {
    /// Whether any rule could allow a connection from this address to this port. No byte has been read yet.
    pub fn admit(&self, port: u16, source: IpAddr) -> Result<(), Denial> {
        let policy = self.port(port)?;
        if !matches!(policy.mesh, MeshRule::Deny(_)) {
            return Ok(());
        }
        let admits = |rule: &ActiveIngressRule| {
            if rule.sources.contains(source) { Ok(()) } else { Err(Reason::SourceNotAllowed) }
        };
        first_grant(policy, admits).map(|_| ())
    }

    /// Whether the app's first bytes must be forwarded before the client has sent any: the app sends first, and a rule
    /// admits this address without further conditions.
    pub fn serves_first(&self, port: u16, source: IpAddr) -> bool {
        self.port(port).is_ok_and(|policy| {
            let is_open = |rule: &ActiveIngressRule| match rule.transport {
                IngressTransport::Tcp => rule.admits(source, Opening::Plaintext),
                IngressTransport::Http | IngressTransport::Https { .. } => Err(Reason::NoIngressBackend),
            };
            policy.protocol == AppProtocol::TcpServerFirst && first_grant(policy, is_open).is_ok()
        })
    }

    /// How a connection with these first bytes is served. Of several rules that admit it, the one that requires least of
    /// the client decides, and HTTP has precedence over opaque bytes.
    pub fn open(&self, port: u16, source: IpAddr, opening: Opening<'_>) -> Result<Terms, Denial> {
        let policy = self.port(port)?;
        if let Opening::Mesh(protocol) = opening {
            return match &policy.mesh {
                MeshRule::Deny(why) => Err(Denial::new(Reason::MeshDenied(why.clone()))),
                MeshRule::AnyPeer | MeshRule::Rules(_) | MeshRule::Audit(_) => Ok(Terms::MeshTls(protocol)),
            };
        }
        let admitting = policy.active_rules().filter(|rule| rule.admits(source, opening).is_ok());
        if let Some(terms) = admitting.map(ActiveIngressRule::terms).min() {
            return Ok(terms);
        }
        if policy.is_plaintext_only(source) && matches!(opening, Opening::Tls { .. }) {
            return Ok(Terms::BadRequest);
        }
        first_grant(policy, |rule| rule.admits(source, opening)).map(|(rule, ())| rule.terms())
    }

    /// The decision about a connection that was opened on the terms of [`InboundPolicy::open`]; for HTTP, about each of
    /// its requests, unless there are [`InboundPolicy::request_rules`] for them.
    pub fn authorize(&self, session: &Session<'_>) -> Decision {
        match self.grant(session) {
            Ok(grant) => Decision::Allow(grant),
            Err(denial) => Decision::Deny(denial),
        }
    }

    /// The rules that decide about each request of a mesh peer's connection. `None` if the decision about the connection
    /// holds for all of its requests.
    pub fn request_rules(&self, session: &Session<'_>) -> Option<RequestRules> {
        match session.opening {
            Opening::Mesh(protocol) if protocol.is_parsed() => {
                let policy = self.port(session.port).ok()?;
                RequestRules::new(&policy.mesh, self.peer(session).ok()?)
            }
            _ => None,
        }
    }

    /// Whether the host of each request must be checked, too ([`InboundPolicy::direct`]), because rules of this port
    /// differ by server name.
    pub fn differs_by_name(&self, session: &Session<'_>) -> bool {
        matches!(session.opening, Opening::Tls { .. })
            && self
                .ports
                .get(&session.port)
                .is_some_and(|policy| policy.active_rules().any(|rule| !rule.sni_hosts().is_empty()))
    }

    /// Whether a request for this host (without port) may use an allowed session. Rules grant by server name, but the
    /// client chooses each request's host as well: a host among another rule's `sniHosts` needs a connection opened for
    /// it (RFC 9110 §7.4, 421). Hosts that no rule names are left to the app.
    pub fn direct(&self, session: &Session<'_>, host: &str) -> Result<(), Denial> {
        let policy = self.port(session.port)?;
        let mut owner = None;
        for rule in &policy.ingress {
            let RuleState::Active(active) = &rule.state else { continue };
            let (is_named, is_open) = (active.names(host), active.sni_hosts().is_empty());
            if (is_named || is_open) && active.judge(session).is_ok() {
                return Ok(());
            }
            if is_named && owner.is_none() {
                owner = Some(&rule.origin);
            }
        }
        match owner {
            Some(origin) => Err(Denial { reason: Reason::Misdirected, origin: Some(origin.clone()) }),
            None => Ok(()),
        }
    }

    fn grant(&self, session: &Session<'_>) -> Result<Grant, Denial> {
        let policy = self.port(session.port)?;
        if let Opening::Mesh(protocol) = session.opening {
            return peers::grant(&policy.mesh, &self.peer(session)?, protocol.is_parsed());
        }
        first_grant(policy, |rule| rule.judge(session))
            .map(|(rule, principal)| Grant::Ingress(rule.origin.clone(), principal.cloned()))
    }

    fn port(&self, port: u16) -> Result<&PortPolicy, Denial> {
        self.ports.get(&port).ok_or_else(|| Denial::new(Reason::NoSuchPort))
    }

    /// The workload at the other end of a connection between sidecars.
    fn peer(&self, session: &Session<'_>) -> Result<Identity, Denial> {
        let names = session.client.ok_or_else(|| Denial::new(Reason::ClientCertificateRequired))?;
        Identity::of_workload(names, self.identity.trust_domain())
            .ok_or_else(|| Denial::new(Reason::NotAWorkload))
    }
}

impl PortPolicy {
    fn active_rules(&self) -> impl Iterator<Item = &ActiveIngressRule> {
        self.ingress.iter().filter_map(|rule| match &rule.state {
            RuleState::Active(rule) => Some(rule),
            RuleState::Invalid(_) => None,
        })
    }

    /// Whether this port serves plaintext HTTP, and never TLS, to this address.
    fn is_plaintext_only(&self, source: IpAddr) -> bool {
        let admits = |rule: &ActiveIngressRule| {
            matches!(rule.transport, IngressTransport::Http) && rule.sources.contains(source)
        };
        self.active_rules().any(admits)
            && !self.active_rules().any(|rule| matches!(rule.transport, IngressTransport::Https { .. }))
    }
}

impl ActiveIngressRule {
    fn terms(&self) -> Terms {
        match &self.transport {
            IngressTransport::Http => Terms::IngressPlaintext,
            IngressTransport::Https { client: ClientCheck::Skip, .. } => Terms::IngressTls,
            IngressTransport::Https { client: ClientCheck::Principals(_), .. } => Terms::IngressMutualTls,
            IngressTransport::Tcp => Terms::Opaque,
        }
    }

    /// Whether the rule allows the session, and by which of its principals.
    fn judge(&self, session: &Session<'_>) -> Result<Option<&Principal>, Reason> {
        self.admits(session.source, session.opening)?;
        let IngressTransport::Https { client: ClientCheck::Principals(allowed), .. } = &self.transport else {
            return Ok(None);
        };
        let names = session.client.ok_or(Reason::ClientCertificateRequired)?;
        let principal = allowed.iter().find(|principal| principal.matches(names));
        principal.map(Some).ok_or(Reason::PrincipalNotAllowed)
    }

    /// The server names that the rule is limited to; empty if it is not.
    fn sni_hosts(&self) -> &[DnsPattern] {
        match &self.transport {
            IngressTransport::Https { sni_hosts, .. } => sni_hosts,
            IngressTransport::Http | IngressTransport::Tcp => &[],
        }
    }

    fn names(&self, host: &str) -> bool {
        self.sni_hosts().iter().any(|pattern| pattern.matches(host))
    }

    /// Whether the rule applies to connections from this address with these first bytes.
    fn admits(&self, source: IpAddr, opening: Opening<'_>) -> Result<(), Reason> {
        match (&self.transport, opening) {
            (IngressTransport::Http, Opening::Tls { .. }) => return Err(Reason::PlaintextRequired),
            (IngressTransport::Https { .. }, Opening::Plaintext) => return Err(Reason::TlsRequired),
            _ => {}
        }
        if !self.sources.contains(source) {
            return Err(Reason::SourceNotAllowed);
        }
        match (&self.transport, opening) {
            (IngressTransport::Https { sni_hosts, .. }, Opening::Tls { server_name }) => {
                if sni_hosts.is_empty() || server_name.is_some_and(|name| self.names(name)) {
                    Ok(())
                } else {
                    Err(Reason::ServerNameNotAllowed)
                }
            }
            _ => Ok(()),
        }
    }
}

/// The first rule that passes a test, with the test's result; otherwise the denial that came closest to a grant.
fn first_grant<'p, T>(
    policy: &'p PortPolicy,
    test: impl Fn(&'p ActiveIngressRule) -> Result<T, Reason>,
) -> Result<(RuleRef<'p>, T), Denial> {
    let mut closest = Denial::new(Reason::NoIngressBackend);
    for rule in &policy.ingress {
        let result = match &rule.state {
            RuleState::Active(active) => {
                test(active).map(|found| (RuleRef { origin: &rule.origin, active }, found))
            }
            RuleState::Invalid(why) => Err(Reason::InvalidRule(why.clone())),
        };
        match result {
            Ok(grant) => return Ok(grant),
            Err(reason) if reason > closest.reason => {
                closest = Denial { reason, origin: Some(rule.origin.clone()) };
            }
            Err(_) => {}
        }
    }
    Err(closest)
}

/// A rule in force and the object that it was compiled from.
struct RuleRef<'p> {
    origin: &'p ObjectRef,
    active: &'p ActiveIngressRule,
}

impl RuleRef<'_> {
    fn terms(&self) -> Terms {
        self.active.terms()
    }
}
