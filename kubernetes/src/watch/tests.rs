use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tidegate_runtime::metrics::Metrics;
use tokio::task::JoinHandle;

use super::*;
use crate::fake_api::FakeApi;

const RESOURCE: &str = "v1/configmaps";

const FAST: WatchTiming = WatchTiming {
    server: Duration::from_secs(60),
    idle: Duration::from_secs(70),
    answer: Duration::from_secs(5),
    first_pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(20),
};

/// A watch and what it makes one believe that there is.
struct Follower {
    events: mpsc::Receiver<Event<ConfigMap>>,
    known: BTreeMap<String, Option<String>>,
    is_complete: bool,
    unreadable: Option<String>,
    meter: KindMeter,
    metrics: Metrics,
    task: JoinHandle<()>,
}

impl Follower {
    fn start(api: &FakeApi, timing: WatchTiming) -> Self {
        Self::of(api, timing, |watch| watch)
    }

    fn of(
        api: &FakeApi,
        timing: WatchTiming,
        more: impl FnOnce(ObjectWatch<ConfigMap>) -> ObjectWatch<ConfigMap>,
    ) -> Self {
        let metrics = Metrics::new();
        let meter = WatchMetrics::new(&metrics).kind("ConfigMap");
        let maps = Api::namespaced(api.client(), "ns");
        let watch = more(ObjectWatch::new(maps, |map: &mut ConfigMap| map.binary_data = None, meter.clone()));
        let (sender, events) = mpsc::channel(4);
        let task = tokio::spawn(watch.timing(timing).run(sender, |event| event));
        let known = BTreeMap::new();
        Self { events, known, is_complete: false, unreadable: None, meter, metrics, task }
    }

    async fn next(&mut self) -> Event<ConfigMap> {
        let event = timeout(Duration::from_secs(30), self.events.recv()).await;
        let event = event.expect("an event in time").expect("the watch runs");
        match &event {
            Event::Changed { applied, deleted } => {
                self.is_complete = true;
                self.unreadable = None;
                for map in applied {
                    let data = map.data.as_ref().and_then(|data| data.get("k").cloned());
                    self.known.insert(map.metadata.name.clone().unwrap(), data);
                }
                for name in deleted {
                    assert!(self.known.remove(&name.name).is_some(), "{name:?} was not there");
                }
            }
            Event::Unreadable(reason) => self.unreadable = Some(reason.clone()),
        }
        event
    }

    /// Reads events until these and no others are there, as `name=value`.
    async fn until(&mut self, expected: &[&str]) {
        loop {
            let known = self.known.iter();
            let known: Vec<_> =
                known.map(|(name, data)| format!("{name}={}", data.as_deref().unwrap_or(""))).collect();
            if self.is_complete && known == expected {
                return;
            }
            self.next().await;
        }
    }

    async fn until_connected(&self, api: &FakeApi) {
        api.wait_for(|_| self.metrics.encode().contains("connected{kind=\"ConfigMap\"} 1")).await;
    }

    fn restarts(&self) -> u64 {
        self.meter.restarts.get()
    }
}

fn put(api: &FakeApi, name: &str, value: &str) {
    let metadata = json!({"name": name, "namespace": "ns"});
    api.apply(RESOURCE, json!({"metadata": metadata, "data": {"k": value}}));
}

fn lists(api: &FakeApi) -> usize {
    api.requests().iter().filter(|request| request.verb == "list").count()
}

fn watches(api: &FakeApi) -> usize {
    api.requests().iter().filter(|request| request.verb == "watch").count()
}

async fn connected() -> (FakeApi, Follower) {
    let api = FakeApi::start().await;
    put(&api, "a", "1");
    let mut follower = Follower::start(&api, FAST);
    follower.until(&["a=1"]).await;
    follower.until_connected(&api).await;
    (api, follower)
}

#[tokio::test]
async fn a_long_list_comes_in_pages_and_whole_and_unread_fields_are_left_out() {
    let api = FakeApi::start().await;
    for i in 0..1201 {
        let metadata = json!({"name": format!("m{i}"), "namespace": "ns", "managedFields": [{"manager": "kubectl"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "yes"}});
        api.apply(RESOURCE, json!({"metadata": metadata, "data": {"k": "v"}, "binaryData": {"b": "AAAA"}}));
    }
    let mut follower = Follower::start(&api, FAST);
    let Event::Changed { applied, deleted } = follower.next().await else { panic!("not readable") };
    assert_eq!((applied.len(), deleted.len(), lists(&api)), (1201, 0, 3));
    for map in applied {
        assert!(map.metadata.managed_fields.is_none() && map.binary_data.is_none());
        let annotations = map.metadata.annotations.unwrap();
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["kept"]);
    }
}

#[tokio::test]
async fn changes_come_as_they_happen_and_an_empty_list_is_reported_too() {
    let api = FakeApi::start().await;
    let mut follower = Follower::start(&api, FAST);
    assert_eq!(follower.next().await, Event::Changed { applied: vec![], deleted: vec![] });
    put(&api, "a", "1");
    follower.until(&["a=1"]).await;
    put(&api, "a", "2");
    put(&api, "b", "1");
    follower.until(&["a=2", "b=1"]).await;
    api.delete(RESOURCE, "ns", "a");
    follower.until(&["b=1"]).await;
    assert_eq!((lists(&api), follower.restarts()), (1, 0));
    follower.task.abort();
}

#[tokio::test]
async fn only_the_object_that_is_named_is_asked_for() {
    let api = FakeApi::start().await;
    put(&api, "other", "1");
    let mut follower = Follower::of(&api, FAST, |watch| watch.named("mine"));
    follower.until(&[]).await;
    put(&api, "mine", "1");
    follower.until(&["mine=1"]).await;
    assert!(api.requests().iter().all(|request| request.name == "mine" && request.namespace == "ns"));
}

#[tokio::test]
async fn a_watch_that_the_server_ends_goes_on_without_a_list() {
    let api = FakeApi::start().await;
    let second = WatchTiming { server: Duration::from_secs(1), ..FAST };
    let mut follower = Follower::start(&api, second);
    follower.until(&[]).await;
    api.wait_for(|api| watches(api) >= 3).await;
    put(&api, "a", "1");
    follower.until(&["a=1"]).await;
    assert_eq!((lists(&api), follower.restarts()), (1, 0));
}

#[tokio::test]
async fn after_410_gone_what_was_deleted_meanwhile_is_found_out() {
    for by_status in [false, true] {
        let (api, mut follower) = connected().await;
        put(&api, "b", "1");
        follower.until(&["a=1", "b=1"]).await;
        api.gone_by_status(by_status);
        api.stop();
        api.delete(RESOURCE, "ns", "a");
        put(&api, "c", "1");
        api.compact();
        api.restart().await;
        follower.until(&["b=1", "c=1"]).await;
        assert!(lists(&api) >= 2 && follower.restarts() >= 1);
    }
}

#[tokio::test]
async fn a_server_that_ends_every_watch_at_once_is_asked_for_lists_with_pauses_between() {
    let api = FakeApi::start().await;
    put(&api, "a", "1");
    api.break_watches(true);
    let pause = Duration::from_secs(1);
    let mut follower =
        Follower::start(&api, WatchTiming { first_pause: pause, longest_pause: pause, ..FAST });
    follower.until(&["a=1"]).await;
    let begun = Instant::now();
    for _ in 0..6 {
        follower.next().await;
    }
    assert!(lists(&api) >= 7);
    // Six pauses, each drawn from zero to a second: that they are shorter altogether is one case in 10^8.
    assert!(begun.elapsed() >= pause / 10, "{:?}", begun.elapsed());
    api.break_watches(false);
    put(&api, "a", "2");
    follower.until(&["a=2"]).await;
}

#[tokio::test]
async fn an_event_cut_in_the_middle_comes_again() {
    let (api, mut follower) = connected().await;
    api.truncate_next_event(RESOURCE);
    put(&api, "b", "1");
    follower.until(&["a=1", "b=1"]).await;
    assert_eq!(lists(&api), 1, "the watch went on from where it was");
}

#[tokio::test]
async fn bookmarks_move_the_version_that_is_watched_from() {
    let (api, mut follower) = connected().await;
    // Others' changes push the version on; without the bookmark, the compaction would need a list.
    api.apply("v1/secrets", json!({"metadata": {"name": "s", "namespace": "ns"}}));
    api.bookmark();
    put(&api, "b", "1");
    follower.until(&["a=1", "b=1"]).await;
    api.stop();
    api.restart().await;
    put(&api, "c", "1");
    follower.until(&["a=1", "b=1", "c=1"]).await;
    assert_eq!(lists(&api), 1);
}

#[tokio::test]
async fn an_api_server_that_restarts_is_waited_for_and_what_it_says_meanwhile_is_reported_once() {
    let (api, mut follower) = connected().await;
    api.stop();
    follower.next().await;
    assert!(
        follower.unreadable.as_ref().unwrap().to_lowercase().contains("connect"),
        "{:?}",
        follower.unreadable
    );
    assert!(follower.metrics.encode().contains("tidegate_watch_connected{kind=\"ConfigMap\"} 0"));
    put(&api, "b", "1");
    api.restart().await;
    follower.until(&["a=1", "b=1"]).await;
    assert_eq!(follower.unreadable, None);
    assert_eq!(lists(&api), 1);
}

#[tokio::test]
async fn a_connection_that_is_dead_without_a_word_is_given_up() {
    let api = FakeApi::start().await;
    put(&api, "a", "1");
    let short = Duration::from_millis(300);
    let mut follower = Follower::start(&api, WatchTiming { idle: short, answer: short, ..FAST });
    follower.until(&["a=1"]).await;
    follower.until_connected(&api).await;
    api.silence_connections();
    put(&api, "a", "2");
    api.delete(RESOURCE, "ns", "gone");
    put(&api, "b", "1");
    follower.until(&["a=2", "b=1"]).await;
    assert!(follower.restarts() >= 1);
}

#[tokio::test]
async fn a_kind_that_is_not_served_yet_is_waited_for() {
    let api = FakeApi::start().await;
    api.serve_resource(RESOURCE, false);
    let mut follower = Follower::start(&api, FAST);
    follower.next().await;
    let reason = follower.unreadable.clone().unwrap();
    assert!(reason.starts_with("404 "), "{reason}");
    put(&api, "a", "1");
    api.serve_resource(RESOURCE, true);
    follower.until(&["a=1"]).await;
    assert_eq!(follower.unreadable, None);
}

#[tokio::test]
async fn the_page_of_numbers_says_when_the_server_was_last_heard() {
    let (api, mut follower) = connected().await;
    let stamp = |follower: &Follower| follower.meter.last_event.get();
    let before = stamp(&follower);
    assert!(before > 1.7e9);
    put(&api, "a", "2");
    follower.until(&["a=2"]).await;
    assert!(stamp(&follower) >= before);
    let page = follower.metrics.encode();
    assert!(page.contains("tidegate_watch_restarts_total{kind=\"ConfigMap\"} 0"), "{page}");
    assert!(page.contains("tidegate_watch_last_event_timestamp_seconds{kind=\"ConfigMap\"} 1"), "{page}");
}

#[tokio::test]
async fn a_page_that_is_too_large_is_asked_for_in_smaller_ones_until_all_is_there() {
    let api = FakeApi::start().await;
    let filler = "x".repeat(60_000);
    for i in 0..200 {
        let metadata = json!({"name": format!("m{i}"), "namespace": "ns"});
        api.apply(RESOURCE, json!({"metadata": metadata, "data": {"k": "v", "filler": filler}}));
    }
    let metrics = Metrics::new();
    let maps: Api<ConfigMap> = Api::namespaced(api.client(), "ns");
    let name = |text: &str| serde_json::from_str::<Value>(text).map(|map| map["metadata"]["name"].clone());
    let patient = WatchTiming { answer: Duration::from_secs(60), ..FAST };
    let watch = ObjectWatch::lean(maps, name, WatchMetrics::new(&metrics).kind("ConfigMap")).timing(patient);
    let (sender, mut events) = mpsc::channel(4);
    let task = tokio::spawn(watch.run(sender, |event| event));
    let event =
        timeout(Duration::from_secs(120), events.recv()).await.expect("in time").expect("the watch runs");
    let Event::Changed { applied, .. } = event else { panic!("not readable") };
    assert_eq!(applied.len(), 200, "12 MB in all, of which a page has 8 MiB at the most");
    // All of them, and 250, are too many for a page; 125 are not.
    assert_eq!(lists(&api), 4);
    task.abort();
}

#[tokio::test]
async fn only_what_decode_reads_of_an_object_is_held() {
    #[derive(serde::Deserialize, Debug, PartialEq)]
    struct Lean {
        kept: String,
    }
    let api = FakeApi::start().await;
    let volumes: Vec<Value> = (0..50_000).map(|i| json!({"name": format!("v{i}"), "emptyDir": {}})).collect();
    let metadata = json!({"name": "a", "namespace": "ns"});
    api.apply(RESOURCE, json!({"metadata": metadata, "kept": "yes", "volumes": volumes}));
    let metrics = Metrics::new();
    let maps: Api<ConfigMap> = Api::namespaced(api.client(), "ns");
    let decode = |text: &str| {
        let used = allocation_counter::measure(|| drop(serde_json::from_str::<Lean>(text).unwrap()));
        assert!(used.bytes_max < 256, "{} bytes for {} of text", used.bytes_max, text.len());
        serde_json::from_str::<Lean>(text)
    };
    let watch = ObjectWatch::lean(maps, decode, WatchMetrics::new(&metrics).kind("ConfigMap")).timing(FAST);
    let (sender, mut events) = mpsc::channel(4);
    let task = tokio::spawn(watch.run(sender, |event| event));
    let event =
        timeout(Duration::from_secs(30), events.recv()).await.expect("in time").expect("the watch runs");
    assert_eq!(event, Event::Changed { applied: vec![Lean { kept: "yes".into() }], deleted: vec![] });
    task.abort();
}

#[tokio::test]
async fn what_was_handed_over_is_reported_as_gone_also_if_its_list_failed_and_what_is_not_held_is_not_noted()
{
    let api = FakeApi::start().await;
    for name in ["a-first", "b-broken", "c-left-out"] {
        api.apply(RESOURCE, json!({"metadata": {"namespace": "ns", "name": name}}));
    }
    let keep = |text: &str| {
        let map: ConfigMap = serde_json::from_str(text)?;
        match map.metadata.name.as_deref() {
            Some("b-broken") => Err(<serde_json::Error as serde::de::Error>::custom("broken")),
            name => Ok(name != Some("c-left-out")),
        }
    };
    let maps: Api<ConfigMap> = Api::namespaced(api.client(), "ns");
    let relist = Arc::new(Notify::new());
    let meter = WatchMetrics::new(&Metrics::new()).kind("ConfigMap");
    let watch = ObjectWatch::kept(maps, keep, meter).timing(FAST).relist(relist.clone());
    let (sender, mut events) = mpsc::channel(4);
    let task = tokio::spawn(watch.run(sender, |event| event));
    let mut next = async || {
        let event = timeout(Duration::from_secs(30), events.recv()).await;
        event.expect("an event in time").expect("the watch runs")
    };
    let gone = |names: &[&str]| {
        let name = |name: &&str| Name { namespace: "ns".into(), name: (*name).into() };
        names.iter().map(name).collect::<Vec<_>>()
    };
    assert!(matches!(next().await, Event::Unreadable(reason) if reason.contains("broken")));
    api.delete(RESOURCE, "ns", "a-first");
    api.delete(RESOURCE, "ns", "b-broken");
    assert_eq!(next().await, Event::Changed { applied: vec![], deleted: gone(&["a-first"]) });
    // The one that is left out is unknown, so its end is not reported.
    api.delete(RESOURCE, "ns", "c-left-out");
    api.apply(RESOURCE, json!({"metadata": {"namespace": "ns", "name": "d-held"}}));
    assert_eq!(next().await, Event::Changed { applied: vec![()], deleted: vec![] });
    // A requested list is reported, although nothing is new.
    relist.notify_one();
    assert_eq!(next().await, Event::Changed { applied: vec![], deleted: vec![] });
    task.abort();
}
