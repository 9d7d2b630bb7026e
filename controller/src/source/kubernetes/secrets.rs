//! The Secrets with credentials that EgressProxies refer to, each read by its name.
//!
//! Not watched: a watch needs the right to list, and `get` of single names is the least that there is. A Secret is read when
//! an EgressProxy refers to it, and again every ten seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::WatchMessage;
use super::holdings::Holdings;
use crate::index::secret_of;
use crate::object::secret::BasicAuthSecret;
use crate::object::{Change, Kind, Object, ObjectKey, ObjectName, OfKind};

/// How often Secrets are read again.
const INTERVAL: Duration = Duration::from_secs(10);
/// The most Secrets that are read, each with a request: the first by namespace and name.
const MOST: usize = 256;
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The Secrets that are referred to.
#[derive(Debug, Default)]
pub(super) struct ReferencedSecrets {
    by_proxy: BTreeMap<ObjectName, ObjectName>,
    wanted: watch::Sender<BTreeSet<ObjectName>>,
    /// Those that were read, or do not exist.
    known: KnownSecrets,
}

/// Names of Secrets. Clones share them.
#[derive(Clone, Debug, Default)]
struct KnownSecrets(Arc<Mutex<BTreeSet<ObjectName>>>);

impl ReferencedSecrets {
    /// Reads what is referred to, until the sender's receiver is gone.
    pub(super) fn read(
        &self,
        client: Client,
        holdings: Holdings,
        sender: mpsc::Sender<WatchMessage>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let reader = SecretReader { client, holdings, known: self.known.clone(), refused: BTreeSet::new() };
        reader.run(self.wanted.subscribe(), sender)
    }

    /// Takes over what changes of EgressProxies refer to.
    pub(super) fn follow(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Apply { object: Object::EgressProxy(proxy), .. } => {
                    let name = ObjectName::of(&proxy.metadata);
                    match secret_of(proxy) {
                        Some(secret) => self.by_proxy.insert(name, secret),
                        None => self.by_proxy.remove(&name),
                    };
                }
                Change::Apply { object, .. } if object.kind() == Kind::EgressProxy => {
                    self.by_proxy.remove(&object.key().name);
                }
                Change::Delete(key) if key.kind == Kind::EgressProxy => drop(self.by_proxy.remove(&key.name)),
                Change::Apply { .. } | Change::Delete(_) => {}
            }
        }
        let all: BTreeSet<_> = self.by_proxy.values().collect();
        let names: BTreeSet<_> = all.into_iter().take(MOST).cloned().collect();
        self.wanted.send_if_modified(|wanted| {
            let is_news = *wanted != names;
            *wanted = names;
            is_news
        });
    }

    /// Whether all of them are known.
    pub(super) fn are_known(&self) -> bool {
        let known = self.known.lock();
        self.wanted.borrow().iter().all(|name| known.contains(name))
    }
}

impl KnownSecrets {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<ObjectName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct SecretReader {
    client: Client,
    holdings: Holdings,
    known: KnownSecrets,
    /// Those that we may not read, which is said once.
    refused: BTreeSet<ObjectName>,
}

impl SecretReader {
    async fn run(
        mut self,
        mut wanted: watch::Receiver<BTreeSet<ObjectName>>,
        sender: mpsc::Sender<WatchMessage>,
    ) {
        loop {
            let names = wanted.borrow_and_update().clone();
            let gone: Vec<_> = self.known.lock().difference(&names).cloned().collect();
            for name in gone {
                self.forget(&name);
                self.known.lock().remove(&name);
            }
            for name in &names {
                self.read(name).await;
            }
            if sender.send(WatchMessage { kind: Kind::Secret, unreadable: None }).await.is_err() {
                return;
            }
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(INTERVAL), if !names.is_empty() => {}
            }
        }
    }

    /// One that cannot be read for another reason than that it is missing or refused stays as it was.
    async fn read(&mut self, name: &ObjectName) {
        let api: Api<BasicAuthSecret> = Api::namespaced(self.client.clone(), &name.namespace);
        let Ok(read) = tokio::time::timeout(PATIENCE, api.get_opt(&name.name)).await else { return };
        match read {
            Ok(Some(secret)) => {
                self.refused.remove(name);
                self.holdings.put(BasicAuthSecret::wrap(secret.into()));
            }
            Ok(None) => self.forget(name),
            Err(kube::Error::Api(error)) if error.code == 403 => {
                if self.refused.insert(name.clone()) {
                    warn!(secret = %name, "may not be read: docs/egress.md has the Role that an EgressProxy's credentials need");
                }
                self.forget(name);
            }
            Err(_) => return,
        }
        self.known.lock().insert(name.clone());
    }

    fn forget(&self, name: &ObjectName) {
        self.holdings.forget(ObjectKey { kind: Kind::Secret, name: name.clone() });
    }
}
