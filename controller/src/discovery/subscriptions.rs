//! The resources that one sidecar follows, and what it has of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tidegate_proto::ResourceName;
use tidegate_proto::discovery::{DiscoveryResponse, Resource};
use tonic::Status;

use super::shares::StreamShare;
use crate::publish::on_demand::Subscriber;

/// The most resources of one stream besides the listener. A sidecar of ours wants half of it at the most.
const MOST: usize = 16 * 1024;

/// A response that is longer than this is sent before more is added; what is left goes with the next one.
const RESPONSE_BYTES: usize = 256 * 1024;

/// The most characters of a version; ours have fewer.
const VERSION_CHARACTERS: usize = 64;

pub(super) struct Subscriptions {
    subscriber: Subscriber,
    share: StreamShare,
    /// The version that the sidecar was last sent, or reported to hold; `None`: the last response removed it.
    held: BTreeMap<Arc<ResourceName>, Option<Arc<str>>>,
    /// The last response promised more.
    owes_more: bool,
}

impl Subscriptions {
    /// Only to the workload's listener, which need not exist; `known` is what the sidecar reports to hold.
    pub(super) fn new(
        mut subscriber: Subscriber,
        share: StreamShare,
        listener: &ResourceName,
        known: &HashMap<String, String>,
    ) -> Self {
        let known = known.iter().filter(|(_, version)| version.len() <= VERSION_CHARACTERS);
        let held = known.filter_map(|(name, version)| {
            let name = ResourceName::parse(name)?;
            Some((Arc::new(name), Some(version.as_str().into())))
        });
        let mut held: BTreeMap<_, _> = held.take(MOST).collect();
        let listener = Arc::new(listener.clone());
        held.entry(listener.clone()).or_insert(None);
        subscriber.subscribe(listener);
        Self { subscriber, share, held, owes_more: false }
    }

    /// What the stream takes of what its identity may have.
    pub(super) fn share(&self) -> &StreamShare {
        &self.share
    }

    /// The version of a resource that the sidecar was last sent, or reported to hold.
    pub(super) fn version(&self, name: &ResourceName) -> Option<&Arc<str>> {
        self.held.get(name)?.as_ref()
    }

    pub(super) fn subscribe(&mut self, names: &[String]) -> Result<(), Status> {
        for name in names {
            let parsed = ResourceName::parse(name).filter(|name| !is_listener(name));
            let name = parsed.ok_or_else(|| {
                Status::invalid_argument(format!(
                    "Subscribe.names: {name:?} is not destination/<ip>:<port>, routes/<name> or \
                     backend/<kind>/<namespace>/<name>:<port>"
                ))
            })?;
            if self.subscriber.wants(&name) {
                // A sidecar that subscribes again has dropped what it held.
                self.held.remove(&name);
            }
            self.add(Arc::new(name))?;
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, names: &[String]) {
        let names = names.iter().filter_map(|name| ResourceName::parse(name));
        for name in names.filter(|name| !is_listener(name)) {
            if self.subscriber.unsubscribe(&name) {
                self.share.give_back();
            }
            self.held.remove(&name);
        }
    }

    /// Waits until there may be news, or the stream has to give way to another one.
    pub(super) async fn changed(&mut self) -> Result<(), Status> {
        tokio::select! {
            () = self.subscriber.changed() => Ok(()),
            limit = self.share.ended() => Err(limit.into()),
        }
    }

    /// Adds what the sidecar does not hold, as much as fits, each resource followed by what it refers to. Returns whether
    /// the response is to be sent.
    pub(super) fn add_news(&mut self, response: &mut DiscoveryResponse) -> Result<bool, Status> {
        let mut size = 0;
        while size < RESPONSE_BYTES
            && let Some((name, value)) = self.subscriber.next_change()
        {
            let version = value.as_ref().map(|value| value.version.clone());
            for reference in value.iter().flat_map(|value| &value.references) {
                if !self.subscriber.wants(reference) {
                    self.add(Arc::new(reference.clone()))?;
                }
            }
            if self.held.get(&name) == Some(&version) {
                continue;
            }
            self.held.insert(name.clone(), version);
            match value {
                Some(value) => {
                    let (name, version) = (name.to_string(), value.version.to_string());
                    let resource = Resource { name, version, body: Some(value.body()) };
                    size += resource.size();
                    response.resources.push(resource);
                }
                None => response.removed.push(name.to_string()),
            }
        }
        response.more = self.subscriber.has_changes();
        let is_news = !response.resources.is_empty() || !response.removed.is_empty();
        // What was promised may turn out to be nothing; the sidecar waits for the end of it.
        let is_sent = is_news || (self.owes_more && !response.more);
        if is_sent {
            self.owes_more = response.more;
        }
        Ok(is_sent)
    }

    fn add(&mut self, name: Arc<ResourceName>) -> Result<(), Status> {
        if !self.subscriber.wants(&name) {
            if self.subscriber.len() > MOST {
                return Err(Status::resource_exhausted(format!("more than {MOST} resources")));
            }
            self.share.take()?;
        }
        self.subscriber.subscribe(name);
        Ok(())
    }
}

fn is_listener(name: &ResourceName) -> bool {
    matches!(name, ResourceName::Listener { .. })
}
