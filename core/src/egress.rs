//! Whether workloads reach what no object has.

pub mod policies;

use std::sync::Arc;

use serde::Serialize;

use self::policies::EgressPolicies;

/// Where connections to addresses that no object has go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EgressMode {
    /// To these addresses, unchanged.
    AllowAny,
    /// Nowhere: they are refused, for this reason.
    RegistryOnly(Arc<str>),
    /// Where policies for the workload allow.
    Policies(Arc<EgressPolicies>),
}
