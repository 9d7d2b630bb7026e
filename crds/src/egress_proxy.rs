//! `EgressProxy`: traffic that leaves the mesh goes through a company's HTTP forward proxy.

#![allow(clippy::duplicated_attributes, reason = "columns of one type")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use tidegate_core::forward_proxy::ForwardedHeaders;
use tidegate_core::go_duration;

use crate::bounded;
use crate::common_status::CommonStatus;
use crate::numbers::{port_number, port_numbers};

/// Maximum proxies of a list.
pub const MOST_PROXIES: usize = 8;
/// Maximum hosts, namespaces, and exceptions.
pub const MOST_NAMES: usize = 256;
/// Maximum ports.
pub const MOST_PORTS: usize = 64;
/// Maximum labels of the selector.
const MOST_LABELS: usize = 64;
/// Maximum characters of a host, a namespace, a name, a label or an exception.
const NAME: usize = 261;
/// Maximum characters of a CA bundle.
const BUNDLE: usize = 16 * 1024;
/// Maximum characters of a length of time.
const DURATION: usize = 63;
/// The ports of targets if none are listed.
const PORTS: [u16; 2] = [80, 443];
/// The time for a connection to a proxy if none is set.
const CONNECT: Duration = Duration::from_secs(5);
/// The time for the answer to `CONNECT` if none is set: less than Squid waits for a dead DNS server (30 s).
const RESPONSE: Duration = Duration::from_secs(15);

/// Which traffic leaves the mesh through which forward proxies.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "tidegate.io",
    version = "v1alpha1",
    kind = "EgressProxy",
    plural = "egressproxies",
    singular = "egressproxy",
    shortname = "egp",
    namespaced,
    status = "CommonStatus",
    derive = "PartialEq",
    doc = "Sends traffic that leaves the mesh through an HTTP forward proxy of which apps have no knowledge.",
    printcolumn(json_path = ".status.currentStatus", name = "Status", type_ = "string"),
    printcolumn(
        json_path = ".status.conditions[?(@.type==\"Accepted\")].reason",
        name = "Reason",
        type_ = "string"
    ),
    printcolumn(
        json_path = ".status.conditions[?(@.type==\"Healthy\")].status",
        name = "Healthy",
        type_ = "string"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct EgressProxySpec {
    /// The Pods whose traffic it is. Absent: all Pods of the namespace; in the MeshConfig's namespace, all Pods of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<EgressPodSelector>,
    /// Namespaces of Pods, for an object in the MeshConfig's namespace. Empty: all of the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "namespaces")]
    #[schemars(length(max = MOST_NAMES), inner(length(max = NAME)))]
    pub namespaces: Vec<String>,
    /// Names of targets, which may begin with `*.`. Empty, or `*`: all targets, also those that name no host.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "hosts")]
    #[schemars(length(max = MOST_NAMES), inner(length(max = NAME)))]
    pub hosts: Vec<String>,
    /// Ports of targets. Default: 80 and 443.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "ports")]
    #[schemars(schema_with = "port_list")]
    pub ports: Vec<u16>,
    /// The proxies. The first is used while it can be reached, then the others.
    #[serde(deserialize_with = "proxies")]
    #[schemars(length(min = 1, max = MOST_PROXIES))]
    pub proxies: Vec<ProxyAddressSpec>,
    /// Other proxies for requests of plaintext HTTP/1. Default: `proxies`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "http_proxies")]
    #[schemars(length(max = MOST_PROXIES))]
    pub http_proxies: Vec<ProxyAddressSpec>,
    /// Targets that are reached directly, as in Go's `NO_PROXY`: names, which include their subdomains, `.suffix`, addresses,
    /// CIDR ranges, each name and address with or without a port, and `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "no_proxy")]
    #[schemars(length(max = MOST_NAMES), inner(length(max = NAME)))]
    pub no_proxy: Vec<String>,
    /// Basic credentials for the proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<ProxyCredentialsSpec>,
    /// TLS to the proxies themselves. Absent: plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ProxyTlsSpec>,
    /// What happens to `X-Forwarded-*`, `X-Real-IP`, `Forwarded` and `Via` in requests of plaintext HTTP/1: `Append` the Pod's
    /// address to `X-Forwarded-For`, pass them on (`Transparent`, the default), or `Delete` them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "forwarded_headers")]
    pub forwarded_headers: Option<ForwardedHeadersSpec>,
    /// How long a proxy may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<ProxyTimeoutsSpec>,
}

/// Labels of Pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EgressPodSelector {
    /// Labels that a Pod must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "labels")]
    #[schemars(schema_with = "label_map")]
    pub match_labels: BTreeMap<String, String>,
}

/// A proxy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProxyAddressSpec {
    /// Its IP address.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub address: String,
    /// Its port.
    #[schemars(schema_with = "port_number")]
    pub port: u16,
}

/// Where Basic credentials are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProxyCredentialsSpec {
    /// Name of a Secret in the namespace of this object, with `username` and `password`.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// TLS to a proxy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProxyTlsSpec {
    /// The name that the proxy's certificate must have. It is sent as SNI.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = 253))]
    pub server_name: String,
    /// The roots that the certificate must chain to, in PEM.
    #[serde(deserialize_with = "bounded::text::<_, BUNDLE>")]
    #[schemars(length(max = BUNDLE))]
    pub ca_bundle: String,
}

/// What happens to fields that name clients and proxies before.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedHeadersSpec {
    /// The Pod's address is appended.
    Append,
    /// They are passed on.
    Transparent,
    /// They are removed.
    Delete,
}

/// How long a proxy may take, each such as `5s`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProxyTimeoutsSpec {
    /// For a connection to it, and for its TLS handshake. Default: 5s.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, DURATION>"
    )]
    #[schemars(length(max = DURATION))]
    pub connect: Option<String>,
    /// For its answer to `CONNECT`. Default: 15s.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, DURATION>"
    )]
    #[schemars(length(max = DURATION))]
    pub response: Option<String>,
}

impl EgressProxySpec {
    /// The ports of targets.
    pub fn target_ports(&self) -> Vec<u16> {
        if self.ports.is_empty() { PORTS.to_vec() } else { self.ports.clone() }
    }

    /// The most time for a connection to a proxy; that of an invalid text is the default.
    pub fn connect_timeout(&self) -> Duration {
        timeout(self.timeouts.as_ref().and_then(|timeouts| timeouts.connect.as_deref()), CONNECT)
    }

    /// The most time for the answer to `CONNECT`, likewise.
    pub fn response_timeout(&self) -> Duration {
        timeout(self.timeouts.as_ref().and_then(|timeouts| timeouts.response.as_deref()), RESPONSE)
    }

    /// What happens to fields that name clients.
    pub fn forwarded(&self) -> ForwardedHeaders {
        match self.forwarded_headers {
            Some(ForwardedHeadersSpec::Append) => ForwardedHeaders::Append,
            Some(ForwardedHeadersSpec::Delete) => ForwardedHeaders::Delete,
            Some(ForwardedHeadersSpec::Transparent) | None => ForwardedHeaders::Transparent,
        }
    }
}

impl ProxyAddressSpec {
    /// The address; `None` unless it is valid.
    pub fn socket(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.address.parse().ok()?;
        (!ip.is_unspecified() && !ip.is_multicast()).then(|| SocketAddr::new(ip.to_canonical(), self.port))
    }
}

fn timeout(text: Option<&str>, default: Duration) -> Duration {
    text.and_then(|text| go_duration::parse(text).ok()).unwrap_or(default)
}

fn namespaces<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::texts::<_, NAME>(deserializer, "spec.namespaces", MOST_NAMES)
}

fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::texts::<_, NAME>(deserializer, "spec.hosts", MOST_NAMES)
}

fn no_proxy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    bounded::texts::<_, NAME>(deserializer, "spec.noProxy", MOST_NAMES)
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    Ok(bounded::optional_list(deserializer, "spec.ports", MOST_PORTS)?.unwrap_or_default())
}

fn proxies<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ProxyAddressSpec>, D::Error> {
    bounded::list(deserializer, "spec.proxies", MOST_PROXIES)
}

fn http_proxies<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ProxyAddressSpec>, D::Error> {
    Ok(bounded::optional_list(deserializer, "spec.httpProxies", MOST_PROXIES)?.unwrap_or_default())
}

fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let labels =
        bounded::map::<_, NAME, bounded::Text<NAME>>(deserializer, "spec.selector.matchLabels", MOST_LABELS)?;
    Ok(labels.into_iter().map(|(name, value)| (name, value.into())).collect())
}

fn port_list(generator: &mut SchemaGenerator) -> Schema {
    port_numbers(generator, MOST_PORTS)
}

fn label_map(_: &mut SchemaGenerator) -> Schema {
    let value = json_schema!({ "type": "string", "maxLength": NAME });
    json_schema!({ "type": "object", "maxProperties": MOST_LABELS, "additionalProperties": value })
}

fn forwarded_headers(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["Append", "Transparent", "Delete"], "nullable": true })
}
