//! Objects by their addresses.
//!
//! Kubernetes assigns an address to one object at a time, but watches of different objects have no common order: the
//! next owner may arrive before the last one is removed. So an address has a set of owners, in the order of their
//! names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::object::ObjectName;

/// The objects that have each address.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses(BTreeMap<IpAddr, BTreeSet<ObjectName>>);

impl Addresses {
    /// The objects that have this address, sorted by name.
    pub(super) fn of(&self, ip: IpAddr) -> impl Iterator<Item = &ObjectName> {
        self.0.get(&ip).into_iter().flatten()
    }

    /// Records addresses of an object; one that is recorded already stays recorded once.
    pub(super) fn add(&mut self, ips: impl Iterator<Item = IpAddr>, name: &ObjectName) {
        for ip in ips {
            self.0.entry(ip).or_default().insert(name.clone());
        }
    }

    /// Forgets addresses of an object, and an address without an owner.
    pub(super) fn remove(&mut self, ips: impl Iterator<Item = IpAddr>, name: &ObjectName) {
        for ip in ips {
            if let Some(names) = self.0.get_mut(&ip) {
                names.remove(name);
                if names.is_empty() {
                    self.0.remove(&ip);
                }
            }
        }
    }
}
