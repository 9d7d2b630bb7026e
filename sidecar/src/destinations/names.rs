//! The names that destinations in use lead to, between connections and what looks them up (`dns.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_core::DnsName;
use tidegate_proto::ResourceName;
use tokio::sync::watch;

use super::{Destinations, DestinationsState, NameAnswer};

impl Destinations {
    /// The names to look up in DNS, now and later.
    pub(crate) fn names(&self) -> watch::Receiver<Arc<BTreeSet<DnsName>>> {
        self.names.subscribe()
    }

    /// Takes over what DNS says about a name.
    pub(crate) fn answer(&self, name: &DnsName, answer: NameAnswer) {
        let mut state = self.lock();
        for backend in state.references.answer(name, answer) {
            state.has_changed(&ResourceName::Backend(backend));
        }
        state.resolve();
        drop(state);
        self.news.notify_one();
    }

    pub(super) fn publish_names(&self, state: &DestinationsState) {
        self.names.send_if_modified(|names| {
            let is_news = **names != state.names;
            if is_news {
                *names = Arc::new(state.names.clone());
            }
            is_news
        });
    }
}

impl DestinationsState {
    /// Looks up what the destinations lead to, and nothing else.
    pub(super) fn keep_names(&mut self) {
        if self.names.is_empty() && !self.references.has_names() {
            return;
        }
        let uses = self.addresses.iter().filter_map(|(key, entry)| {
            let destination = entry.destination.as_ref()?;
            Some(self.references.dns_uses(key, destination))
        });
        let uses = uses.flatten().collect();
        self.names = self.references.keep_names(uses);
    }
}
