//! Objects by their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::object::ObjectName;

/// The objects that have each address.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses(BTreeMap<IpAddr, BTreeSet<ObjectName>>);

impl Addresses {
    pub(super) fn of(&self, ip: IpAddr) -> impl Iterator<Item = &ObjectName> {
        self.0.get(&ip).into_iter().flatten()
    }

    pub(super) fn add(&mut self, ips: impl Iterator<Item = IpAddr>, name: &ObjectName) {
        for ip in ips {
            self.0.entry(ip).or_default().insert(name.clone());
        }
    }

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
