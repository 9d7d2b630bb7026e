//! What the policy says of a connection, and why.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::model::{
    ActiveIngressRule, AppProtocol, ClientCheck, InboundPolicy, IngressTransport, MeshRule, PortPolicy,
    RuleState,
};
use crate::dns_name::DnsPattern;
use crate::identity::Identity;
use crate::principal::Principal;
use crate::san::San;

/// What is inside TLS between sidecars; named by its ALPN protocol, so that nothing is sniffed twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeshProtocol {
    /// `tidegate/h1`: HTTP/1.1.
    Http1,
    /// `tidegate/h2`: HTTP/2.
    Http2,
    /// `tidegate/tcp`: the bytes of one connection of the app.
    Tcp,
}

/// What the first bytes of a connection showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening<'a> {
    /// TLS with an ALPN protocol of ours.
    Mesh(MeshProtocol),
    /// Any other TLS.
    Tls {
        /// The ClientHello's server name, if it has one.
        server_name: Option<&'a str>,
    },
    /// Anything else.
    Plaintext,
}

/// All that is known of a connection once its handshake, if any, is done.
#[derive(Clone, Copy, Debug)]
pub struct Session<'a> {
    /// The pod's port that was dialled.
    pub port: u16,
    /// Address of the TCP peer.
    pub source: IpAddr,
    /// Its first bytes.
    pub opening: Opening<'a>,
    /// The names in the client certificate, if one was asked for and verified against the trust bundle.
    pub client: Option<&'a [San]>,
}

/// How a connection goes on. Ordered by what it asks of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Terms {
    /// Serve plaintext HTTP.
    IngressPlaintext,
    /// Terminate TLS and ask for no client certificate.
    IngressTls,
    /// Terminate TLS and demand a client certificate of the mesh's CA.
    IngressMutualTls,
    /// Terminate TLS 1.3 and demand a client certificate; a mesh peer.
    MeshTls(MeshProtocol),
    /// Answer `400 Bad Request` in plaintext: TLS where plaintext HTTP is due.
    BadRequest,
    /// Pass the bytes on as they are.
    Opaque,
}

/// The verdict, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let in.
    Allow(Grant),
    /// Kept out.
    Deny(Denial),
}

/// The rule that lets a connection in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// The mesh rule of the port: permissive mode, or this principal of the peer.
    Mesh(Option<Principal>),
    /// An IngressBackend (`<namespace>/<name>`), and the principal of it that the client's certificate holds.
    Ingress(Arc<str>, Option<Principal>),
}

/// Why a connection or request is refused, and the IngressBackend that came closest to letting it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// What was missing.
    pub reason: Reason,
    /// `<namespace>/<name>` of the IngressBackend that would have been the next to grant it.
    pub policy: Option<Arc<str>>,
}

/// What was missing. Ordered by how close the connection came to a grant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// There is no policy for the workload yet.
    NoPolicy,
    /// The port belongs to no Service of the workload, and none of its containers declares it.
    NoSuchPort,
    /// No IngressBackend names the port, and the client is no mesh peer.
    NoIngressBackend,
    /// The IngressBackend for the port is not in force; why.
    InvalidRule(Arc<str>),
    /// Plaintext where TLS is due.
    TlsRequired,
    /// TLS where plaintext is due.
    PlaintextRequired,
    /// The peer's address is not among the rule's sources.
    SourceNotAllowed,
    /// The server name is not among the rule's `sniHosts`.
    ServerNameNotAllowed,
    /// A client certificate is due and there is none.
    ClientCertificateRequired,
    /// The client certificate is not that of a workload of this mesh: mesh peers carry both spellings of an identity.
    NotAWorkload,
    /// Mesh peers may not use the port; why.
    MeshDenied(Arc<str>),
    /// None of the names in the client certificate is allowed.
    PrincipalNotAllowed,
    /// The connection was opened for another protocol than the port is served by now.
    ProtocolChanged,
    /// The request is for a host of another rule's `sniHosts` than the connection was opened for.
    Misdirected,
}

impl InboundPolicy {
    /// Whether a connection from this address to this port could be let in at all. Nothing was read from it yet.
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

    /// Whether the app's first bytes must be passed on before the client has sent any: the app speaks first and a
    /// rule lets this address through to it.
    pub fn serves_first(&self, port: u16, source: IpAddr) -> bool {
        self.port(port).is_ok_and(|policy| {
            let is_open = |rule: &ActiveIngressRule| match rule.transport {
                IngressTransport::Tcp => rule.admits(source, Opening::Plaintext),
                IngressTransport::Http | IngressTransport::Https { .. } => Err(Reason::NoIngressBackend),
            };
            policy.protocol == AppProtocol::TcpServerFirst && first_grant(policy, is_open).is_ok()
        })
    }

    /// How a connection with these first bytes goes on. Of several rules that admit it, the one that asks least of
    /// the client decides, and HTTP goes before opaque bytes.
    pub fn open(&self, port: u16, source: IpAddr, opening: Opening<'_>) -> Result<Terms, Denial> {
        let policy = self.port(port)?;
        if let Opening::Mesh(protocol) = opening {
            return match &policy.mesh {
                MeshRule::Deny(why) => Err(Denial::new(Reason::MeshDenied(why.clone()))),
                MeshRule::AnyPeer | MeshRule::Principals(_) => Ok(Terms::MeshTls(protocol)),
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

    /// The verdict on a connection that was opened on the terms of [`InboundPolicy::open`]; for HTTP, on each of
    /// its requests.
    pub fn authorize(&self, session: &Session<'_>) -> Decision {
        match self.grant(session) {
            Ok(grant) => Decision::Allow(grant),
            Err(denial) => Decision::Deny(denial),
        }
    }

    /// Whether this session's requests have to be directed, too ([`InboundPolicy::direct`]): rules of its port differ by
    /// server name.
    pub fn differs_by_name(&self, session: &Session<'_>) -> bool {
        matches!(session.opening, Opening::Tls { .. })
            && self
                .ports
                .get(&session.port)
                .is_some_and(|policy| policy.active_rules().any(|rule| !rule.sni_hosts().is_empty()))
    }

    /// Whether a request for this host (no port) may come by a session that is let in. Rules grant by server name, and
    /// the host of a request is a name of the client's choice, too: one of another rule's `sniHosts` belongs on a
    /// connection that was opened for it (RFC 9110 §7.4, 421). Hosts that no rule names are the app's business.
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
                owner = Some(rule.policy.clone());
            }
        }
        match owner {
            Some(policy) => Err(Denial { reason: Reason::Misdirected, policy: Some(policy) }),
            None => Ok(()),
        }
    }

    fn grant(&self, session: &Session<'_>) -> Result<Grant, Denial> {
        let policy = self.port(session.port)?;
        if let Opening::Mesh(_) = session.opening {
            return self
                .authorize_mesh_peer(&policy.mesh, session.client)
                .map(Grant::Mesh)
                .map_err(Denial::new);
        }
        first_grant(policy, |rule| rule.judge(session))
            .map(|(rule, principal)| Grant::Ingress(rule.policy.clone(), principal.cloned()))
    }

    fn port(&self, port: u16) -> Result<&PortPolicy, Denial> {
        self.ports.get(&port).ok_or_else(|| Denial::new(Reason::NoSuchPort))
    }

    fn authorize_mesh_peer(
        &self,
        rule: &MeshRule,
        client: Option<&[San]>,
    ) -> Result<Option<Principal>, Reason> {
        let names = client.ok_or(Reason::ClientCertificateRequired)?;
        if Identity::of_workload(names, self.identity.trust_domain()).is_none() {
            return Err(Reason::NotAWorkload);
        }
        match rule {
            MeshRule::Deny(why) => Err(Reason::MeshDenied(why.clone())),
            MeshRule::AnyPeer => Ok(None),
            MeshRule::Principals(allowed) => {
                let principal = allowed.iter().find(|principal| principal.matches(names));
                principal.cloned().map(Some).ok_or(Reason::PrincipalNotAllowed)
            }
        }
    }
}

impl PortPolicy {
    fn active_rules(&self) -> impl Iterator<Item = &ActiveIngressRule> {
        self.ingress.iter().filter_map(|rule| match &rule.state {
            RuleState::Active(rule) => Some(rule),
            RuleState::Invalid(_) => None,
        })
    }

    /// Whether plaintext HTTP, and no TLS at all, is served at this port to this address.
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

    /// Whether the rule lets the session in, and by which of its principals.
    fn judge(&self, session: &Session<'_>) -> Result<Option<&Principal>, Reason> {
        self.admits(session.source, session.opening)?;
        let IngressTransport::Https { client: ClientCheck::Principals(allowed), .. } = &self.transport else {
            return Ok(None);
        };
        let names = session.client.ok_or(Reason::ClientCertificateRequired)?;
        let principal = allowed.iter().find(|principal| principal.matches(names));
        principal.map(Some).ok_or(Reason::PrincipalNotAllowed)
    }

    /// The server names that the rule is limited to; empty: it is not.
    fn sni_hosts(&self) -> &[DnsPattern] {
        match &self.transport {
            IngressTransport::Https { sni_hosts, .. } => sni_hosts,
            IngressTransport::Http | IngressTransport::Tcp => &[],
        }
    }

    fn names(&self, host: &str) -> bool {
        self.sni_hosts().iter().any(|pattern| pattern.matches(host))
    }

    /// Whether the rule is one for connections from this address with these first bytes.
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

/// The first rule that passes a test, with what the test found; else the closest miss.
fn first_grant<'p, T>(
    policy: &'p PortPolicy,
    test: impl Fn(&'p ActiveIngressRule) -> Result<T, Reason>,
) -> Result<(RuleRef<'p>, T), Denial> {
    let mut closest = Denial::new(Reason::NoIngressBackend);
    for rule in &policy.ingress {
        let result = match &rule.state {
            RuleState::Active(active) => {
                test(active).map(|found| (RuleRef { policy: &rule.policy, active }, found))
            }
            RuleState::Invalid(why) => Err(Reason::InvalidRule(why.clone())),
        };
        match result {
            Ok(grant) => return Ok(grant),
            Err(reason) if reason > closest.reason => {
                closest = Denial { reason, policy: Some(rule.policy.clone()) };
            }
            Err(_) => {}
        }
    }
    Err(closest)
}

/// A rule in force and the IngressBackend it comes from.
struct RuleRef<'p> {
    policy: &'p Arc<str>,
    active: &'p ActiveIngressRule,
}

impl RuleRef<'_> {
    fn terms(&self) -> Terms {
        self.active.terms()
    }
}

impl Denial {
    /// A denial that no IngressBackend comes close to changing.
    pub fn new(reason: Reason) -> Self {
        Self { reason, policy: None }
    }
}

impl Reason {
    /// A stable word for logs and metric labels.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::NoSuchPort => "no_such_port",
            Self::NoIngressBackend => "no_ingress_backend",
            Self::InvalidRule(_) => "invalid_rule",
            Self::TlsRequired => "tls_required",
            Self::PlaintextRequired => "plaintext_required",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::ServerNameNotAllowed => "server_name_not_allowed",
            Self::ClientCertificateRequired => "client_certificate_required",
            Self::NotAWorkload => "not_a_workload",
            Self::MeshDenied(_) => "mesh_denied",
            Self::PrincipalNotAllowed => "principal_not_allowed",
            Self::ProtocolChanged => "protocol_changed",
            Self::Misdirected => "misdirected",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("the workload has no policy yet"),
            Self::NoSuchPort => f.write_str(
                "the port belongs to no Service of the workload and is declared by none of its containers",
            ),
            Self::NoIngressBackend => f.write_str("no IngressBackend opens the port"),
            Self::InvalidRule(why) => write!(f, "the IngressBackend is not in force: {why}"),
            Self::TlsRequired => f.write_str("plaintext where TLS is required"),
            Self::PlaintextRequired => f.write_str("TLS where plaintext is required"),
            Self::SourceNotAllowed => f.write_str("the source address is not among the sources"),
            Self::ServerNameNotAllowed => f.write_str("the server name is not among sniHosts"),
            Self::ClientCertificateRequired => f.write_str("a client certificate is required"),
            Self::NotAWorkload => {
                f.write_str("the client certificate is not that of a workload of this mesh")
            }
            Self::MeshDenied(why) => write!(f, "mesh peers may not use the port: {why}"),
            Self::PrincipalNotAllowed => {
                f.write_str("none of the client certificate's names is an allowed principal")
            }
            Self::ProtocolChanged => f.write_str("the port is served by another protocol now"),
            Self::Misdirected => f.write_str(
                "the request's host is among the sniHosts of another rule than the connection's server name",
            ),
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.policy {
            Some(policy) => write!(f, "{} (IngressBackend {policy})", self.reason),
            None => self.reason.fmt(f),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh(None) => f.write_str("permissive mode lets every workload of the mesh in"),
            Self::Mesh(Some(principal)) => write!(f, "mesh peer {principal}"),
            Self::Ingress(policy, None) => write!(f, "IngressBackend {policy}"),
            Self::Ingress(policy, Some(principal)) => {
                write!(f, "IngressBackend {policy}, principal {principal}")
            }
        }
    }
}
