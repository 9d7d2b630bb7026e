//! The Pods of a folder, whose sidecars standalone mode starts.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// A Pod with one of our sidecars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// `status.podIP`.
    pub ip: Option<IpAddr>,
    /// Its service account.
    pub service_account: String,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// The ports in its policy, sorted.
    pub ports: Vec<u16>,
}
