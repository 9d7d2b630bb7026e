//! The page `/egress` of the admin server, which `tidegate egress learn` reads.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::detect::server::SpokenProtocol;

/// What a workload has reached outside the mesh since its sidecar started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressReport {
    /// `<namespace>/<pod>`.
    pub workload: String,
    /// The service account as which it runs; absent until the sidecar has its policy.
    pub service_account: Option<String>,
    /// When the sidecar started.
    #[serde(serialize_with = "serialize_time", deserialize_with = "deserialize_time")]
    pub since: SystemTime,
    /// Connections and requests to servers beyond the number that is told apart.
    pub unlisted: u64,
    /// The servers: named ones first.
    pub reached: Vec<ReachedHost>,
}

/// A server outside the mesh, and a port of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReachedHost {
    /// What the app speaks.
    pub protocol: SpokenProtocol,
    /// SNI or `Host` in lower case; absent if the app named no server.
    pub host: Option<String>,
    /// Addresses that the app dialled, at most 16.
    pub addresses: Vec<IpAddr>,
    /// The port that the app dialled.
    pub port: u16,
    /// Connections, or requests of HTTP where the sidecar handles these; with the refused ones.
    pub count: u64,
    /// How many were refused, because no object has the address.
    pub refused: u64,
    /// Bytes from the app; of bodies only where the sidecar handles requests.
    pub bytes_sent: u64,
    /// Bytes to the app, likewise.
    pub bytes_received: u64,
    /// When the first one began.
    #[serde(serialize_with = "serialize_time", deserialize_with = "deserialize_time")]
    pub first_seen: SystemTime,
    /// When the last one ended.
    #[serde(serialize_with = "serialize_time", deserialize_with = "deserialize_time")]
    pub last_seen: SystemTime,
    /// What allowed or refused the last one.
    pub outcome: EgressOutcome,
    /// The object that allowed the last one, such as `ServiceEntry shop/api`.
    pub allowed_by: Option<String>,
}

/// What allowed or refused a connection that leaves the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EgressOutcome {
    /// Allowed only because `enableEgress` is on: no object has the address.
    EnableEgress,
    /// Allowed by an object.
    Allowed,
    /// Refused: `enableEgress` is off, and no object has the address.
    Refused,
}

impl EgressOutcome {
    const ALL: [Self; 3] = [Self::EnableEgress, Self::Allowed, Self::Refused];

    pub(super) fn code(self) -> u64 {
        self as u64
    }

    pub(super) fn of_code(code: u64) -> Self {
        Self::ALL.into_iter().find(|outcome| outcome.code() == code).unwrap_or(Self::EnableEgress)
    }
}

impl EgressReport {
    pub(super) fn new(workload: &str, service_account: Option<&str>, since: SystemTime) -> Self {
        Self {
            workload: workload.to_owned(),
            service_account: service_account.map(ToOwned::to_owned),
            since,
            unlisted: 0,
            reached: Vec::new(),
        }
    }

    /// Adds what another worker has recorded.
    pub(super) fn add(&mut self, more: ReachedHost) {
        match self.reached.iter_mut().find(|known| known.is_same_server(&more)) {
            Some(known) => known.add(more),
            None => self.reached.push(more),
        }
    }

    pub(super) fn sort(&mut self) {
        self.reached.sort_by(|one, other| one.place().cmp(&other.place()));
    }
}

impl ReachedHost {
    /// Whether both are the same port of the same server.
    fn is_same_server(&self, other: &Self) -> bool {
        self.host == other.host
            && self.port == other.port
            && self.protocol == other.protocol
            && (self.host.is_some() || self.addresses == other.addresses)
    }

    /// Adds counts of the same server.
    pub fn add(&mut self, other: Self) {
        self.count += other.count;
        self.refused += other.refused;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.addresses.extend(other.addresses);
        self.addresses.sort_unstable();
        self.addresses.dedup();
        self.first_seen = self.first_seen.min(other.first_seen);
        if other.last_seen >= self.last_seen {
            (self.last_seen, self.outcome, self.allowed_by) =
                (other.last_seen, other.outcome, other.allowed_by);
        }
    }

    fn place(&self) -> impl Ord + '_ {
        (Reverse(self.host.is_some()), &self.host, &self.addresses, self.port, self.protocol)
    }
}

fn serialize_time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

fn deserialize_time<'d, D: Deserializer<'d>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_rfc3339(&text).map_err(de::Error::custom)
}
