//! What this workload reaches outside the mesh, and what it is refused: by server and port, with counts, bytes and times.
//!
//! Each worker has a table of its own, whose cells the admin page `/egress` reads and adds up. A request or connection finds
//! its cell without a lock and without allocating; only a server that is new to the worker, or a new address of it, takes
//! a lock. A table has a bound; what comes beyond is counted and not told apart.

mod report;

use std::cell::RefCell;
use std::cmp::Ordering as Order;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tidegate_core::DnsName;

pub use self::report::{EgressOutcome, EgressReport, ReachedHost};
use super::metrics::Count;
use super::{OutboundRecord, Record};
use crate::connection_info::{AddressOwner, UNREGISTERED};
use crate::detect::server::SpokenProtocol;

/// The most servers of a worker that are told apart.
const MOST_SERVERS: usize = 1024;
/// The most addresses of one server that are shown.
const MOST_ADDRESSES: usize = 16;

/// The servers outside the mesh that all workers of a sidecar have reached.
#[derive(Clone, Debug)]
pub struct EgressUsage {
    since: SystemTime,
    workers: Arc<Mutex<Vec<Arc<EgressShard>>>>,
}

/// A worker's way to its cells.
pub(super) struct EgressRecorder {
    shard: Arc<EgressShard>,
    /// Sorted by key.
    servers: RefCell<Vec<KnownServer>>,
}

/// One worker's cells, shared with the page.
#[derive(Debug, Default)]
struct EgressShard {
    servers: Mutex<Vec<(ServerKey, Arc<ServerCell>)>>,
    /// Connections and requests to servers beyond the bound.
    unlisted: Count,
}

/// What servers are told apart by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ServerKey {
    /// A name in lower case, or the address of a server whose name is not known.
    server: Server,
    port: u16,
    protocol: SpokenProtocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Server {
    Named(Box<str>),
    At(IpAddr),
}

/// A server, as a connection or request names it.
#[derive(Clone, Copy)]
struct SeenServer<'a> {
    name: Option<&'a str>,
    address: IpAddr,
    port: u16,
    protocol: SpokenProtocol,
}

/// A server that the worker has seen before.
struct KnownServer {
    key: ServerKey,
    /// Of those that the cell has, to be compared without a lock.
    addresses: Vec<IpAddr>,
    object: Option<Arc<str>>,
    cell: Arc<ServerCell>,
}

/// Counts of one server.
#[derive(Debug, Default)]
struct ServerCell {
    count: Count,
    refused: Count,
    sent: Count,
    received: Count,
    /// Milliseconds since 1970; 0: never.
    first: AtomicU64,
    last: AtomicU64,
    /// [`EgressOutcome`] of the last one.
    outcome: AtomicU64,
    names: Mutex<ServerNames>,
}

#[derive(Clone, Debug, Default)]
struct ServerNames {
    addresses: Vec<IpAddr>,
    object: Option<Arc<str>>,
}

impl Default for EgressUsage {
    fn default() -> Self {
        Self { since: SystemTime::now(), workers: Arc::default() }
    }
}

impl EgressUsage {
    /// A table for one more worker.
    pub(super) fn worker(&self) -> EgressRecorder {
        let shard = Arc::<EgressShard>::default();
        locked(&self.workers).push(shard.clone());
        EgressRecorder { shard, servers: RefCell::default() }
    }

    /// Everything that was recorded since the sidecar has started, for `<namespace>/<name>`.
    pub(crate) fn report(&self, workload: &str, service_account: Option<&str>) -> EgressReport {
        let mut report = EgressReport::new(workload, service_account, self.since);
        for shard in &*locked(&self.workers) {
            report.unlisted += shard.unlisted.value();
            for (key, cell) in &*locked(&shard.servers) {
                report.add(cell.reached(key));
            }
        }
        report.sort();
        report
    }
}

impl EgressRecorder {
    /// Counts a finished connection or request to an address outside the mesh; nothing else.
    pub(super) fn count(&self, record: &Record<'_>) {
        let Some(outbound) = &record.outbound else { return };
        let of_host = outbound.hosts.and_then(|hosts| hosts.of(record.authority));
        let object = match of_host.as_ref().map_or(outbound.owner, |host| &host.owner) {
            AddressOwner::Cluster => return,
            AddressOwner::Object(_) if outbound.endpoint.is_some_and(|endpoint| endpoint.is_mutual_tls) => {
                return;
            }
            AddressOwner::Object(object) => Some(object),
            AddressOwner::Unregistered => None,
        };
        let mut servers = self.servers.borrow_mut();
        let Some(known) = self.find(&mut servers, SeenServer::of(record, outbound)) else {
            return self.shard.unlisted.add(1);
        };
        known.see(outbound.dialled.ip(), object);
        known.cell.count(record, object.is_some());
    }

    /// The server's place in the table; `None` if there is no room for it.
    fn find<'t>(&self, table: &'t mut Vec<KnownServer>, seen: SeenServer<'_>) -> Option<&'t mut KnownServer> {
        let place = |table: &[KnownServer], seen: &SeenServer<'_>| {
            table.binary_search_by(|known| seen.compare(&known.key).reverse())
        };
        let (place, seen) = match place(table, &seen) {
            Ok(place) => return table.get_mut(place),
            // A text that is not a name does not tell servers apart.
            Err(new) if seen.name.is_none_or(|name| DnsName::parse(name).is_ok()) => (Err(new), seen),
            Err(_) => {
                let unnamed = SeenServer { name: None, ..seen };
                (place(table, &unnamed), unnamed)
            }
        };
        match place {
            Ok(place) => table.get_mut(place),
            Err(_) if table.len() >= MOST_SERVERS => None,
            Err(place) => {
                let (key, cell) = (seen.key(), Arc::<ServerCell>::default());
                locked(&self.shard.servers).push((key.clone(), cell.clone()));
                table.insert(place, KnownServer { key, addresses: Vec::new(), object: None, cell });
                table.get_mut(place)
            }
        }
    }
}

impl<'a> SeenServer<'a> {
    fn of(record: &'a Record<'_>, outbound: &'a OutboundRecord<'_>) -> Self {
        let (protocol, name) = if record.protocol.is_empty() {
            (outbound.spoken, outbound.server_name)
        } else {
            (SpokenProtocol::Http, std::str::from_utf8(record.authority).ok())
        };
        // Which servers a proxy reaches is the proxy's.
        let name = name.filter(|_| protocol != SpokenProtocol::HttpProxy).and_then(server_name);
        Self { name, address: outbound.dialled.ip(), port: outbound.dialled.port(), protocol }
    }

    fn key(&self) -> ServerKey {
        let server = match self.name {
            Some(name) => Server::Named(name.to_ascii_lowercase().into()),
            None => Server::At(self.address),
        };
        ServerKey { server, port: self.port, protocol: self.protocol }
    }

    fn compare(&self, key: &ServerKey) -> Order {
        let server = match (self.name, &key.server) {
            (Some(name), Server::Named(known)) => {
                let lower = name.bytes().map(|byte| byte.to_ascii_lowercase());
                lower.cmp(known.bytes())
            }
            (Some(_), Server::At(_)) => Order::Less,
            (None, Server::Named(_)) => Order::Greater,
            (None, Server::At(address)) => self.address.cmp(address),
        };
        server.then(self.port.cmp(&key.port)).then(self.protocol.cmp(&key.protocol))
    }
}

impl KnownServer {
    /// Notes where the server was dialled, and by which object.
    fn see(&mut self, address: IpAddr, object: Option<&Arc<str>>) {
        if !self.addresses.contains(&address) && self.addresses.len() < MOST_ADDRESSES {
            self.addresses.push(address);
            locked(&self.cell.names).addresses.push(address);
        }
        if self.object.as_ref() != object {
            self.object = object.cloned();
            locked(&self.cell.names).object = object.cloned();
        }
    }
}

impl ServerCell {
    fn count(&self, record: &Record<'_>, has_object: bool) {
        let is_refused = record.details == UNREGISTERED;
        self.count.add(1);
        self.refused.add(u64::from(is_refused));
        self.sent.add(record.received);
        self.received.add(record.sent);
        let outcome = match (is_refused, has_object) {
            (true, _) => EgressOutcome::Refused,
            (false, true) => EgressOutcome::Allowed,
            (false, false) => EgressOutcome::EnableEgress,
        };
        self.outcome.store(outcome.code(), Ordering::Relaxed);
        let start = record.start.unwrap_or(SystemTime::UNIX_EPOCH);
        if self.first.load(Ordering::Relaxed) == 0 {
            self.first.store(milliseconds(start), Ordering::Relaxed);
        }
        self.last.store(milliseconds(start + record.duration), Ordering::Relaxed);
    }

    /// The cell for the page.
    fn reached(&self, key: &ServerKey) -> ReachedHost {
        let ServerNames { addresses, object } = locked(&self.names).clone();
        let time =
            |of: &AtomicU64| SystemTime::UNIX_EPOCH + Duration::from_millis(of.load(Ordering::Relaxed));
        ReachedHost {
            protocol: key.protocol,
            host: match &key.server {
                Server::Named(name) => Some(name.to_string()),
                Server::At(_) => None,
            },
            addresses,
            port: key.port,
            count: self.count.value(),
            refused: self.refused.value(),
            bytes_sent: self.sent.value(),
            bytes_received: self.received.value(),
            first_seen: time(&self.first),
            last_seen: time(&self.last),
            outcome: EgressOutcome::of_code(self.outcome.load(Ordering::Relaxed)),
            allowed_by: object.map(|object| object.to_string()),
        }
    }
}

/// The name in a `Host` or a ClientHello: without its port and a dot at its end; `None` for an address.
fn server_name(authority: &str) -> Option<&str> {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_address = host.starts_with('[') || host.parse::<IpAddr>().is_ok();
    (!host.is_empty() && !is_address).then_some(host)
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
