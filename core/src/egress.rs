//! Whether workloads reach what no object has.

use std::sync::Arc;

use serde::Serialize;

/// Where connections to addresses that no object has go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EgressMode {
    /// To these addresses, unchanged.
    AllowAny,
    /// Nowhere: they are refused, for this reason.
    RegistryOnly(Arc<str>),
}
