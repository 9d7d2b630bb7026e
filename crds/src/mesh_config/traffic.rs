//! `spec.traffic`.

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use tidegate_core::policy::{AuthorizationServer, CheckedBody, MOST_CHECKED_BODY, ServerAddress};

use super::bounds::{MOST_CHARACTERS, MOST_ITEMS, optional_text, port_list, texts};
use crate::call_timeout::call_timeout;
use crate::numbers::{port_number, port_numbers};

/// Traffic.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TrafficSpec {
    /// Whether workloads may reach addresses that no object has. Services and their headless endpoints stay reachable.
    /// Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_egress: Option<bool>,
    /// IPv4 ranges that bypass outbound interception. Default: none.
    #[serde(
        default,
        rename = "outboundIPRangeExclusionList",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "texts"
    )]
    #[schemars(length(max = MOST_ITEMS), inner(length(max = MOST_CHARACTERS)))]
    pub outbound_ip_range_exclusion_list: Option<Vec<String>>,
    /// The only IPv4 ranges to which outbound interception applies. Default: all.
    #[serde(
        default,
        rename = "outboundIPRangeInclusionList",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "texts"
    )]
    #[schemars(length(max = MOST_ITEMS), inner(length(max = MOST_CHARACTERS)))]
    pub outbound_ip_range_inclusion_list: Option<Vec<String>>,
    /// Ports that bypass outbound interception. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "port_list")]
    #[schemars(schema_with = "ports")]
    pub outbound_port_exclusion_list: Option<Vec<u16>>,
    /// Ports that bypass inbound interception. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "port_list")]
    #[schemars(schema_with = "ports")]
    pub inbound_port_exclusion_list: Option<Vec<u16>>,
    /// Network interfaces that bypass interception. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "texts")]
    #[schemars(length(max = MOST_ITEMS), inner(length(max = MOST_CHARACTERS)))]
    pub network_interface_exclusion_list: Option<Vec<String>>,
    /// Whether workloads of the mesh may reach each other without a policy. Admits no client from outside the mesh.
    /// Default: false; the chart's MeshConfig sets true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_permissive_traffic_policy_mode: Option<bool>,
    /// Used in early v1alpha1 manifests: whether ingress controllers use HTTPS. Default: false.
    /// Accepted, but has no effect yet: each IngressBackend sets it.
    #[serde(default, rename = "useHTTPSIngress", skip_serializing_if = "Option::is_none")]
    pub use_https_ingress: Option<bool>,
    /// A server that also authorizes each HTTP request that policy allows. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound_external_authorization: Option<ExternalAuthorizationSpec>,
}

/// A server of Envoy's gRPC `ext_authz` protocol, `envoy.service.auth.v3.Authorization`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAuthorizationSpec {
    /// Whether requests are subject to it. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<bool>,
    /// DNS name or IP address of the server. Required if it is enabled.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub address: Option<String>,
    /// Port of the server. Required if it is enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "port_number")]
    pub port: Option<u16>,
    /// Prefix of its metrics. Default: inboundExtAuthz. Accepted, but has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(schema_with = "stat_prefix")]
    pub stat_prefix: Option<String>,
    /// Time for one check, at most 60s. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(schema_with = "timeout")]
    pub timeout: Option<String>,
    /// Whether a request is forwarded if its check fails. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_mode_allow: Option<bool>,
    /// The part of a request's body that the server gets; the request waits for it. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_request_body_in_check: Option<RequestBodyInCheck>,
}

/// A part of a request's body, with the names of Istio's MeshConfig.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RequestBodyInCheck {
    /// The most bytes that the server gets, at most 32768. Required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "request_bytes")]
    pub max_request_bytes: Option<u32>,
    /// Whether it gets the beginning of a body that is longer, or late. Default: false; such a request is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_partial_message: Option<bool>,
    /// Whether it gets bytes, raw_body, in place of text, body. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pack_as_bytes: Option<bool>,
}

/// A field that keeps a setting from being carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// The field within the setting.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// Time for one check if none is set, as in OSM.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

impl ExternalAuthorizationSpec {
    /// The server to call.
    ///
    /// # Errors
    ///
    /// If it is unknown where the server is.
    pub fn server(&self) -> Result<AuthorizationServer, FieldProblem> {
        let problem = |field, problem: String| FieldProblem { field, problem };
        let port = self.port.filter(|port| *port > 0);
        let port = port.ok_or_else(|| problem("port", "must be set from 1 to 65535".into()))?;
        let address = ServerAddress::parse(self.address.as_deref().unwrap_or_default(), port)
            .map_err(|error| problem("address", error.to_string()))?;
        let timeout = self.check_timeout().unwrap_or_else(|(timeout, _)| timeout);
        Ok(AuthorizationServer {
            address,
            timeout,
            failure_mode_allow: self.failure_mode_allow == Some(true),
            body: self.include_request_body_in_check.as_ref().map(RequestBodyInCheck::read).transpose()?,
        })
    }

    /// The time for one check.
    ///
    /// # Errors
    ///
    /// If that is not the time which is set: the time that applies instead, and why.
    pub(crate) fn check_timeout(&self) -> Result<Duration, (Duration, String)> {
        call_timeout(self.timeout.as_deref(), CHECK_TIMEOUT)
    }
}

fn ports(generator: &mut SchemaGenerator) -> Schema {
    port_numbers(generator, MOST_ITEMS)
}

impl RequestBodyInCheck {
    fn read(&self) -> Result<CheckedBody, FieldProblem> {
        let bytes = self.max_request_bytes.filter(|bytes| (1..=MOST_CHECKED_BODY).contains(bytes));
        let most_bytes = bytes.ok_or_else(|| FieldProblem {
            field: "includeRequestBodyInCheck.maxRequestBytes",
            problem: format!("must be set from 1 to {MOST_CHECKED_BODY}"),
        })?;
        let allow_partial = self.allow_partial_message == Some(true);
        Ok(CheckedBody { most_bytes, allow_partial, as_bytes: self.pack_as_bytes == Some(true) })
    }
}

fn request_bytes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": MOST_CHECKED_BODY })
}

fn stat_prefix(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "default": "inboundExtAuthz" })
}

fn timeout(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "default": "1s" })
}
