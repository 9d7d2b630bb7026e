//! What the texts of a ServiceEntry mean.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_core::destination::HostSource;
use tidegate_core::{DnsName, Identity, PortProtocol};

use super::{EntryPort, ServiceEntrySpec, WorkloadEntry};

/// How the address of a Unix socket begins.
pub(crate) const SOCKET: &str = "unix://";

/// What connections to a port carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryProtocol {
    /// Bytes that are not parsed.
    Tcp,
    /// The app's own TLS, with a server name.
    Tls,
    /// HTTP in the client's version.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Nothing is declared.
    Undeclared,
    /// Not TCP.
    Udp,
}

/// Where the addresses of endpoints come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The address that was dialled.
    None,
    /// The entry's endpoints, or the Pods that it selects.
    Static,
    /// DNS: all addresses.
    Dns,
    /// DNS: one address after the other.
    DnsRoundRobin,
    /// DNS: the name that each request or connection is for.
    DynamicDns,
}

/// Whether endpoints are part of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryLocation {
    /// They are not.
    External,
    /// They are.
    Internal,
}

impl ServiceEntrySpec {
    /// Where the addresses of endpoints come from; the text, if it is not known.
    pub fn resolution(&self) -> Result<Resolution, &str> {
        match self.resolution.as_deref() {
            None | Some("NONE") => Ok(Resolution::None),
            Some("STATIC") => Ok(Resolution::Static),
            Some("DNS") => Ok(Resolution::Dns),
            Some("DNS_ROUND_ROBIN") => Ok(Resolution::DnsRoundRobin),
            Some("DYNAMIC_DNS") => Ok(Resolution::DynamicDns),
            Some(other) => Err(other),
        }
    }

    /// Whether endpoints are part of the mesh; the text, if it is not known.
    pub fn location(&self) -> Result<EntryLocation, &str> {
        match self.location.as_deref() {
            None | Some("MESH_EXTERNAL") => Ok(EntryLocation::External),
            Some("MESH_INTERNAL") => Ok(EntryLocation::Internal),
            Some(other) => Err(other),
        }
    }

    /// The addresses as ranges; an address is a range of one. What cannot be parsed is left out.
    pub fn ranges(&self) -> impl Iterator<Item = IpNet> {
        self.addresses.iter().filter_map(|text| address_range(text))
    }

    /// The port with this number.
    pub fn port(&self, number: u16) -> Option<&EntryPort> {
        self.ports.iter().find(|port| port.number == u32::from(number))
    }

    /// What names the host by which connections to a port are told apart, at a range of addresses; `None`: at every address
    /// without a range. `None` where the address decides alone: for bytes that name no host, and where the entry lists the single
    /// address, unless several hosts lead to different servers.
    pub fn host_source(&self, port: &EntryPort, range: Option<IpNet>) -> Option<HostSource> {
        let is_one_address = range.is_some_and(|range| range.prefix_len() == range.max_prefix_len());
        let source = match port.protocol().ok()? {
            EntryProtocol::Tls => HostSource::Tls,
            EntryProtocol::Http | EntryProtocol::Http2 => HostSource::Http,
            EntryProtocol::Tcp | EntryProtocol::Undeclared | EntryProtocol::Udp => return None,
        };
        (!is_one_address || self.hosts.len() > 1 && self.resolves_hosts()).then_some(source)
    }

    /// Whether connections go where DNS says that their host is.
    pub fn resolves_hosts(&self) -> bool {
        let is_dns = matches!(
            self.resolution(),
            Ok(Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns)
        );
        is_dns && self.endpoints.is_empty() && self.workload_selector.is_none()
    }

    /// The labels of the Pods that are the endpoints; `None` if no Pods are.
    pub fn selected_pods(&self) -> Option<&BTreeMap<String, String>> {
        let takes_endpoints =
            matches!(self.resolution(), Ok(Resolution::Static | Resolution::Dns | Resolution::DnsRoundRobin));
        let labels = &self.workload_selector.as_ref().filter(|_| takes_endpoints)?.labels;
        (!labels.is_empty()).then_some(labels)
    }

    /// The workloads among `subjectAltNames`: certificates of the mesh have no other names.
    pub fn server_identities(&self) -> impl Iterator<Item = Identity> {
        self.subject_alt_names.iter().filter_map(|name| Identity::from_spiffe_uri(name).ok())
    }

    /// Whether the workloads of a namespace see the entry, which is in the namespace `own`.
    pub fn is_exported_to(&self, namespace: &str, own: &str) -> bool {
        let is_meant = |text: &String| match text.as_str() {
            "*" => true,
            "~" => false,
            "." => namespace == own,
            name => namespace == name,
        };
        self.export_to.is_empty() || self.export_to.iter().any(is_meant)
    }
}

impl EntryPort {
    /// The number, if it is one of a port.
    pub fn number(&self) -> Option<u16> {
        port(self.number)
    }

    /// What connections carry; the text, if it is not known.
    pub fn protocol(&self) -> Result<EntryProtocol, &str> {
        let Some(text) = self.protocol.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(EntryProtocol::Undeclared);
        };
        match text.to_ascii_uppercase().as_str() {
            "TCP" | "MONGO" | "REDIS" | "MYSQL" => Ok(EntryProtocol::Tcp),
            "TLS" | "HTTPS" => Ok(EntryProtocol::Tls),
            "HTTP" | "GRPC-WEB" | "HTTP_PROXY" => Ok(EntryProtocol::Http),
            "HTTP2" | "GRPC" => Ok(EntryProtocol::Http2),
            "UDP" => Ok(EntryProtocol::Udp),
            _ => Err(text),
        }
    }
}

impl EntryProtocol {
    /// The same in the terms of a Service's port. TLS is passed on as it is.
    pub fn of_port(self) -> PortProtocol {
        match self {
            Self::Tcp | Self::Tls | Self::Udp => PortProtocol::Tcp,
            Self::Http => PortProtocol::Http,
            Self::Http2 => PortProtocol::Http2,
            Self::Undeclared => PortProtocol::Undeclared,
        }
    }
}

impl WorkloadEntry {
    /// Its IP address; none for a name or a socket.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address.as_deref()?.parse().ok().map(|ip: IpAddr| ip.to_canonical())
    }

    /// Its DNS name; none for an address or a socket.
    pub fn name(&self) -> Option<DnsName> {
        self.ip().is_none().then(|| DnsName::parse(self.address.as_deref()?).ok()).flatten()
    }

    /// Its Unix socket, as written; none for an address or a name.
    pub fn socket(&self) -> Option<&str> {
        self.address.as_deref().filter(|address| address.starts_with(SOCKET))
    }

    /// The service account as which it runs, if that is named.
    pub fn account(&self) -> Option<&str> {
        self.service_account.as_deref().filter(|account| !account.is_empty())
    }

    /// Its share of connections and requests, relative to the others'.
    pub fn weight(&self) -> u32 {
        self.weight.filter(|weight| *weight > 0).unwrap_or(1)
    }

    /// Its port for one of the entry's.
    pub fn port(&self, of: &EntryPort) -> Option<u16> {
        port(self.ports.get(&of.name).copied().or(of.target_port).unwrap_or(of.number))
    }
}

/// The range that an IP address or a CIDR text is; its host bits are zero.
pub(crate) fn address_range(text: &str) -> Option<IpNet> {
    let range: Option<IpNet> = text.parse().ok();
    let range = range.or_else(|| text.parse::<IpAddr>().ok().map(|ip| IpNet::from(ip.to_canonical())));
    range.map(|range| range.trunc())
}

/// The number of a port.
pub(crate) fn port(number: u32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number > 0)
}
