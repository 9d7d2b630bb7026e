//! The destinations that one sidecar wants, and what it has of them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_proto::discovery as wire;
use tidegate_proto::discovery::{DiscoveryResponse, Resource};
use tonic::Status;

use crate::destinations::Subscriber;

/// The most destinations of one stream. A sidecar of ours wants half of it at the most.
const MOST: usize = 8192;

/// A response that is longer than this is sent before more is added; what is left goes with the next one.
const RESPONSE_BYTES: usize = 256 * 1024;

pub(super) struct Subscriptions {
    subscriber: Subscriber,
    /// The version that the sidecar was last sent, or said to hold.
    held: BTreeMap<SocketAddr, Arc<str>>,
}

impl Subscriptions {
    /// None yet; `known` is what the sidecar says to hold.
    pub(super) fn new(subscriber: Subscriber, known: &HashMap<String, String>) -> Self {
        let address = |name: &String| wire::parse_destination_name(name);
        let held = known.iter().filter_map(|(name, version)| Some((address(name)?, version.as_str().into())));
        Self { subscriber, held: held.take(MOST).collect() }
    }

    pub(super) fn subscribe(&mut self, names: &[String]) -> Result<(), Status> {
        for name in names {
            let address = wire::parse_destination_name(name).ok_or_else(|| {
                Status::invalid_argument(format!("Subscribe.names: {name:?} is no destination/<ip>:<port>"))
            })?;
            if self.subscriber.len() >= MOST {
                return Err(Status::resource_exhausted(format!("more than {MOST} destinations")));
            }
            if !self.subscriber.subscribe(address) {
                // Who asks again has it no longer.
                self.held.remove(&address);
            }
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, names: &[String]) {
        for address in names.iter().filter_map(|name| wire::parse_destination_name(name)) {
            self.subscriber.unsubscribe(address);
            self.held.remove(&address);
        }
    }

    /// Waits until there may be news.
    pub(super) async fn changed(&self) {
        self.subscriber.changed().await;
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
