//! The destinations that one sidecar wants, and what it has of them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_proto::discovery as wire;
use tidegate_proto::discovery::{DiscoveryResponse, Resource};
use tonic::Status;

use super::shares::StreamShare;
use crate::publish::destinations::Subscriber;

/// The most destinations of one stream. A sidecar of ours wants half of it at the most.
const MOST: usize = 8192;

/// A response that is longer than this is sent before more is added; what is left goes with the next one.
const RESPONSE_BYTES: usize = 256 * 1024;

/// The most characters of a version; ours have fewer.
const VERSION_CHARACTERS: usize = 64;

pub(super) struct Subscriptions {
    subscriber: Subscriber,
    share: StreamShare,
    /// The version that the sidecar was last sent, or said to hold.
    held: BTreeMap<SocketAddr, Arc<str>>,
}

impl Subscriptions {
    /// None yet; `known` is what the sidecar says to hold.
    pub(super) fn new(subscriber: Subscriber, share: StreamShare, known: &HashMap<String, String>) -> Self {
        let known = known.iter().filter(|(_, version)| version.len() <= VERSION_CHARACTERS);
        let address = |name: &String| wire::parse_destination_name(name);
        let held = known.filter_map(|(name, version)| Some((address(name)?, version.as_str().into())));
        Self { subscriber, share, held: held.take(MOST).collect() }
    }

    /// What the stream takes of what its identity may have.
    pub(super) fn share(&self) -> &StreamShare {
        &self.share
    }

    pub(super) fn subscribe(&mut self, names: &[String]) -> Result<(), Status> {
        for name in names {
            let address = wire::parse_destination_name(name).ok_or_else(|| {
                Status::invalid_argument(format!("Subscribe.names: {name:?} is no destination/<ip>:<port>"))
            })?;
            if self.subscriber.wants(address) {
                // A sidecar that asks again has dropped what it held.
                self.held.remove(&address);
            } else if self.subscriber.len() >= MOST {
                return Err(Status::resource_exhausted(format!("more than {MOST} destinations")));
            } else {
                self.share.take()?;
            }
            self.subscriber.subscribe(address);
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, names: &[String]) {
        for address in names.iter().filter_map(|name| wire::parse_destination_name(name)) {
            if self.subscriber.unsubscribe(address) {
                self.share.give_back();
            }
            self.held.remove(&address);
        }
    }

    /// Waits until there may be news, or the stream has to give way to another one.
    pub(super) async fn changed(&mut self) -> Result<(), Status> {
        tokio::select! {
            () = self.subscriber.changed() => Ok(()),
            limit = self.share.ended() => Err(limit.into()),
        }
    }

    /// Adds what the sidecar does not hold, as much as fits.
    pub(super) fn add_news(&mut self, response: &mut DiscoveryResponse) {
        let mut size = 0;
        while size < RESPONSE_BYTES
            && let Some((address, published)) = self.subscriber.next_change()
        {
            if self.held.get(&address) == Some(&published.version) {
                continue;
            }
            self.held.insert(address, published.version.clone());
            size += published.size();
            response.resources.push(Resource {
                name: wire::destination_name(address),
                version: published.version.to_string(),
                body: Some(wire::resource::Body::Destination(published.message.clone())),
            });
        }
    }
}
