use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::fake_api::FakeApi;

const LEASES: &str = "coordination.k8s.io/v1/leases";

/// A second is the least that a Lease can say.
const FAST: LeaseTiming = LeaseTiming {
    duration: Duration::from_secs(1),
    deadline: Duration::from_millis(700),
    interval: Duration::from_millis(50),
};

struct Replica {
    is_leader: watch::Receiver<bool>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(api: &FakeApi, holder: &str) -> Self {
        let config = LeaseConfig {
            namespace: "tidegate-system".into(),
            name: "tidegate-controller".into(),
            holder: holder.into(),
            timing: FAST,
        };
        let elector = Elector::new(api.client(), config);
        let is_leader = elector.is_leader();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(elector.run(async {
            let _ = stopped.await;
        }));
        Self { is_leader, stop: Some(stop), task }
    }

    async fn until(&mut self, leads: bool) {
        let changed = self.is_leader.wait_for(|current| *current == leads);
        timeout(Duration::from_secs(20), changed).await.expect("in time").unwrap();
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap();
    }
}

fn holder(api: &FakeApi) -> String {
    let lease = api.get(LEASES, "tidegate-system", "tidegate-controller").unwrap();
    lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn one_of_two_leads_and_the_other_follows_at_once_when_the_lease_is_given_back() {
    let api = FakeApi::start().await;
    let mut first = Replica::start(&api, "a");
    first.until(true).await;
    let mut second = Replica::start(&api, "b");
    // It has looked at least once.
    api.wait_for(|api| api.requests().iter().filter(|request| request.verb == "get").count() >= 6).await;
    assert!(!*second.is_leader.borrow());
    assert_eq!(holder(&api), "a");
    first.stop().await;
    second.until(true).await;
    assert_eq!(holder(&api), "b");
    second.stop().await;
    assert_eq!(holder(&api), "");
}

#[tokio::test]
async fn a_leader_that_cannot_renew_stops_before_another_may_start() {
    let api = FakeApi::start().await;
    let mut first = Replica::start(&api, "a");
    first.until(true).await;
    api.stop();
    let cut = Instant::now();
    first.until(false).await;
    assert!(cut.elapsed() < FAST.duration, "{:?}", cut.elapsed());
    api.restart().await;
    first.until(true).await;
}

#[tokio::test]
async fn a_dead_leader_s_lease_is_taken_over_whatever_the_times_in_it_say() {
    let api = FakeApi::start().await;
    // A clock far ahead of ours: by the times alone, this would never run out.
    api.apply(
        LEASES,
        json!({
            "metadata": {"name": "tidegate-controller", "namespace": "tidegate-system"},
            "spec": {"holderIdentity": "dead", "leaseDurationSeconds": 1, "leaseTransitions": 4,
                "acquireTime": "2100-01-01T00:00:00.000000Z", "renewTime": "2100-01-01T00:00:00.000000Z"},
        }),
    );
    let begun = Instant::now();
    let mut replica = Replica::start(&api, "b");
    replica.until(true).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "taken after {:?}", begun.elapsed());
    let lease = api.get(LEASES, "tidegate-system", "tidegate-controller").unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 5);
}

#[tokio::test]
async fn a_lease_that_is_renewed_is_never_taken_although_its_times_are_long_past() {
    let api = FakeApi::start().await;
    let renew = |turn: u32| {
        api.apply(
            LEASES,
            json!({
                "metadata": {"name": "tidegate-controller", "namespace": "tidegate-system"},
                "spec": {"holderIdentity": "slow-clock", "leaseDurationSeconds": 1,
                    "renewTime": format!("2001-01-01T00:00:00.{turn:06}Z")},
            }),
        );
    };
    renew(0);
    let replica = Replica::start(&api, "b");
    let begun = Instant::now();
    for turn in 1.. {
        renew(turn);
        let looks = api.requests().len();
        api.wait_for(|api| api.requests().len() > looks + 2).await;
        assert!(!*replica.is_leader.borrow());
        if begun.elapsed() > 2 * FAST.duration {
            break;
        }
    }
    assert_eq!(holder(&api), "slow-clock");
}

#[tokio::test]
async fn of_many_that_start_at_once_exactly_one_leads() {
    let api = FakeApi::start().await;
    let replicas: Vec<_> = (0..5).map(|i| Replica::start(&api, &format!("replica-{i}"))).collect();
    let leaders = || replicas.iter().filter(|replica| *replica.is_leader.borrow()).count();
    api.wait_for(|_| leaders() == 1).await;
    api.wait_for(|api| {
        assert!(leaders() <= 1);
        api.requests().len() > 60
    })
    .await;
    drop(replicas);
}
