//! The resources that one sidecar follows, and what it has of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tidegate_proto::ResourceName;
use tidegate_proto::discovery::{DiscoveryResponse, Resource};
use tokio::task::yield_now;
use tonic::Status;

use super::shares::StreamShare;
use crate::publish::on_demand::Subscriber;

/// The most resources of one stream besides the listener. A sidecar of ours wants half of it at the most.
const MOST: usize = 16 * 1024;

/// A response that is longer than this is sent before more is added; what is left goes with the next one.
const RESPONSE_BYTES: usize = 32 * 1024;

/// Changes in one piece of news, also of those that a sidecar already holds or whose resource is gone.
const NEWS: usize = 512;

/// Names in a piece of work, after which other streams of the thread have their turn: about 0.2 ms.
const PIECE: usize = 64;

/// The most characters of a version; ours have fewer.
const VERSION_CHARACTERS: usize = 64;

/// The names that a stream follows.
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

    /// Subscribes to resources by name. A name that cannot be parsed, or a share that is used up, ends the stream.
    pub(super) async fn subscribe(&mut self, names: &[String]) -> Result<(), Status> {
        for names in names.chunks(PIECE) {
            let _turn = self.share.turn().await;
            self.subscribe_piece(names)?;
            // Before the turn ends, so that the thread serves the streams of others and its sockets first.
            yield_now().await;
        }
        Ok(())
    }

    /// Adds some names, so that others are served in between.
    fn subscribe_piece(&mut self, names: &[String]) -> Result<(), Status> {
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

    /// Ends subscriptions by name; the listener's, and those that are not there, are left out.
    pub(super) async fn unsubscribe(&mut self, names: &[String]) {
        for names in names.chunks(PIECE) {
            let _turn = self.share.turn().await;
            let names = names.iter().filter_map(|name| ResourceName::parse(name));
            for name in names.filter(|name| !is_listener(name)) {
                if self.subscriber.unsubscribe(&name) {
                    self.share.give_back();
                }
                self.held.remove(&name);
            }
            yield_now().await;
        }
    }

    /// Ends all subscriptions. To drop them does the same at once, which takes a thread tens of milliseconds.
    pub(super) async fn end(mut self) {
        loop {
            let _turn = self.share.turn().await;
            if !self.subscriber.leave_some(PIECE) {
                break;
            }
            yield_now().await;
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
    pub(super) async fn add_news(&mut self, response: &mut DiscoveryResponse) -> Result<bool, Status> {
        loop {
            let _turn = self.share.turn().await;
            let is_sent = self.add_piece_of_news(response)?;
            if !is_sent && !response.more {
                return Ok(false);
            }
            yield_now().await;
            if is_sent {
                return Ok(true);
            }
        }
    }

    /// Adds some of what has changed to a response; whether there is more.
    fn add_piece_of_news(&mut self, response: &mut DiscoveryResponse) -> Result<bool, Status> {
        let (mut size, mut seen) = (0, 0);
        while size < RESPONSE_BYTES
            && seen < NEWS
            && let Some((name, value)) = self.subscriber.next_change()
        {
            seen += 1;
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

    /// Follows one more name.
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

/// Whether it is the policy of a workload.
fn is_listener(name: &ResourceName) -> bool {
    matches!(name, ResourceName::Listener { .. })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::rc::Rc;

    use tidegate_core::{Identity, TrustDomain};
    use tokio::task::LocalSet;

    use super::super::shares::{ShareLimits, Shares};
    use super::*;
    use crate::metrics::{ControllerMetrics, NamespaceGauge};
    use crate::object::ObjectName;
    use crate::publish::on_demand::OnDemand;
    use crate::source::folder::is_workload;

    const STREAMS: u8 = 64;
    const NAMES: u16 = 512;

    struct Streams {
        resources: Arc<OnDemand>,
        shares: Shares,
    }

    impl Streams {
        fn new() -> Self {
            let (store, index, left_out) = (Arc::default(), Arc::default(), NamespaceGauge::default());
            let resources = OnDemand::new(store, index, TrustDomain::default(), is_workload, left_out);
            Self {
                resources: Arc::new(resources),
                shares: Shares::new(ShareLimits::default(), ControllerMetrics::default()),
            }
        }

        fn open(&self, account: &str, stream: u8) -> Subscriptions {
            self.open_with(account, stream, &HashMap::new())
        }

        /// `known`: the versions that the sidecar holds.
        fn open_with(&self, account: &str, stream: u8, known: &HashMap<String, String>) -> Subscriptions {
            let identity = Identity::new(TrustDomain::default(), "ns", account).unwrap();
            let workload = ObjectName::new("ns", format!("pod-{stream}"));
            let share = self.shares.enter(&identity, stream.into(), &workload, false).unwrap();
            let listener = crate::publish::policies::listener(&workload);
            Subscriptions::new(self.resources.subscriber("ns"), share, &listener, known)
        }

        /// Destinations and backends that are followed.
        fn followed(&self) -> usize {
            self.resources.len()
        }

        /// How much the resources followed change while a stream of another identity gets an answer.
        async fn change_meanwhile(&self) -> usize {
            let before = self.followed();
            let mut modest = self.open("modest", u8::MAX);
            modest.subscribe(&names(u8::MAX, 1)).await.unwrap();
            let mut response = DiscoveryResponse::default();
            assert!(modest.add_news(&mut response).await.unwrap());
            assert_eq!(response.resources.len(), 1);
            self.followed().abs_diff(before)
        }
    }

    fn names(stream: u8, count: u16) -> Vec<String> {
        let address = |host: u16| {
            let [c, d] = host.to_be_bytes();
            SocketAddr::from((Ipv4Addr::new(11, stream, c, d), 80))
        };
        (0..count).map(|host| ResourceName::Destination(address(host).into()).to_string()).collect()
    }

    #[tokio::test]
    async fn many_streams_of_one_identity_delay_those_of_others_by_a_piece_of_work() {
        let streams = Rc::new(Streams::new());
        let tasks = LocalSet::new();
        let started = Rc::new(tokio::sync::Barrier::new(usize::from(STREAMS) + 1));
        for stream in 0..STREAMS {
            let (streams, started) = (streams.clone(), started.clone());
            tasks.spawn_local(async move {
                let mut greedy = streams.open("greedy", stream);
                started.wait().await;
                greedy.subscribe(&names(stream, NAMES)).await.unwrap();
                let mut response = DiscoveryResponse::default();
                greedy.add_news(&mut response).await.unwrap();
                started.wait().await;
                greedy.end().await;
            });
        }
        tasks
            .run_until(async {
                started.wait().await;
                let subscribed = streams.change_meanwhile().await;
                assert!((1..=8 * PIECE).contains(&subscribed), "{subscribed}");
                started.wait().await;
                let ended = streams.change_meanwhile().await;
                assert!((1..=8 * PIECE).contains(&ended), "{ended}");
            })
            .await;
        tasks.await;
        assert_eq!(streams.followed(), 0);
    }
    #[tokio::test]
    async fn what_a_sidecar_holds_already_is_not_sent_again_however_much_it_is() {
        let streams = Streams::new();
        let names = names(1, u16::try_from(3 * NEWS).unwrap());
        let mut first = streams.open("a", 1);
        first.subscribe(&names[..1]).await.unwrap();
        let mut response = DiscoveryResponse::default();
        assert!(first.add_news(&mut response).await.unwrap());
        // Made-up addresses all have the same value.
        let version = &response.resources[0].version;
        let known = names[1..].iter().map(|name| (name.clone(), version.clone())).collect();

        let mut second = streams.open_with("a", 2, &known);
        second.subscribe(&names).await.unwrap();
        let mut response = DiscoveryResponse::default();
        assert!(second.add_news(&mut response).await.unwrap());
        assert_eq!((response.resources.len(), &response.resources[0].name), (1, &names[0]));
        let mut response = DiscoveryResponse::default();
        while second.add_news(&mut response).await.unwrap() {
            assert!(response.resources.is_empty() && response.removed.is_empty());
        }
        assert!(!second.subscriber.has_changes());
    }
}
