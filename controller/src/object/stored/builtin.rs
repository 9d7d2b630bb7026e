//! The kinds that every cluster has.
//!
//! Each is decoded leanly ([`lean`]) and counted by what the decoded object takes ([`size`]). Namespaces,
//! Nodes and ServiceAccounts have no share: the index keeps nothing of them that their authors could make large.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{Scope, Stored, lean, size};
use crate::object::{Object, OfKind};

impl Stored for Namespace {
    const HAS_SHARE: bool = false;

    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        lean::namespace(text).map(|object| Self::wrap(object.into()))
    }

    fn size(&self) -> usize {
        0
    }
}

impl Stored for ServiceAccount {
    const SCOPE: Scope = Scope::Folder;
    const HAS_SHARE: bool = false;

    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        serde_json::from_str::<Self>(text).map(|object| Self::wrap(object.into()))
    }

    fn size(&self) -> usize {
        0
    }
}

impl Stored for Service {
    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        lean::service(text).map(|object| Self::wrap(object.into()))
    }

    fn size(&self) -> usize {
        size::of_service(self)
    }
}

impl Stored for EndpointSlice {
    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        lean::endpoint_slice(text).map(|object| Self::wrap(object.into()))
    }

    fn size(&self) -> usize {
        size::of_slice(self)
    }
}

impl Stored for Node {
    const HAS_SHARE: bool = false;
    const MISSING_WITHOUT: Option<&'static str> =
        Some("the zones of workloads are not known, and EndpointSlice hints for zones have no effect");

    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        lean::node(text).map(|object| Self::wrap(object.into()))
    }

    fn size(&self) -> usize {
        0
    }
}

impl Stored for Pod {
    fn decode(text: &str, control_plane: &str) -> serde_json::Result<Object> {
        lean::pod(text, control_plane).map(|object| Self::wrap(object.into()))
    }

    fn size(&self) -> usize {
        size::of_pod(self)
    }
}
