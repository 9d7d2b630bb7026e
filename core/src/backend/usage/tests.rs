use std::thread;

use proptest::prelude::*;

use super::*;

const RESOURCES: [LimitedResource; 4] = [
    LimitedResource::Connection,
    LimitedResource::PendingRequest,
    LimitedResource::Request,
    LimitedResource::Retry,
];

/// Limits of [`RESOURCES`], in their order.
fn limits([connections, pending, requests, retries]: [Option<u32>; 4]) -> BackendLimits {
    BackendLimits {
        max_connections: connections,
        max_pending_requests: pending,
        max_requests: requests,
        max_retries: retries,
        max_requests_per_connection: Some(9),
        ..BackendLimits::default()
    }
}

/// Counts of [`RESOURCES`], in their order.
fn counts(usage: &LimitedUsage) -> [usize; 4] {
    let UsageCounts { connections, pending_requests, requests, retries } = usage.counts();
    [connections, pending_requests, requests, retries].map(|count| count as usize)
}

/// One step: a resource is taken, taken beyond the limit, or one that was taken is given back; or the limits change.
#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    Exceed(usize),
    GiveBack(usize, usize),
    Limit([Option<u32>; 4]),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_usize..4).prop_map(Step::Take),
        1 => (0_usize..4).prop_map(Step::Exceed),
        2 => (0_usize..4, any::<usize>()).prop_map(|(resource, which)| Step::GiveBack(resource, which)),
        1 => prop::array::uniform4(prop::option::of(0_u32..4)).prop_map(Step::Limit),
    ]
}

proptest! {
    #[test]
    fn counts_are_those_of_the_permits_that_live_and_stay_within_the_limits_unless_these_are_exceeded(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut most = [Some(2); 4];
        let mut usage = LimitedUsage::new(&limits(most), None).unwrap();
        let mut held: [Vec<UsagePermit>; 4] = Default::default();
        for step in steps {
            match step {
                Step::Take(which) => {
                    let permit = usage.take(RESOURCES[which]);
                    let has_room = most[which].is_none_or(|most| held[which].len() < most as usize);
                    prop_assert_eq!(permit.is_some(), has_room);
                    held[which].extend(permit);
                }
                Step::Exceed(which) => held[which].push(usage.exceed(RESOURCES[which])),
                Step::GiveBack(which, place) => {
                    if let Some(place) = place.checked_rem(held[which].len()) {
                        held[which].remove(place);
                    }
                }
                Step::Limit(changed) => {
                    most = changed;
                    usage = LimitedUsage::new(&limits(most), Some(&usage)).unwrap();
                }
            }
            prop_assert_eq!(counts(&usage), held.each_ref().map(Vec::len));
            prop_assert_eq!(usage.limits(), limits(most));
        }
    }
}

#[test]
fn threads_together_take_as_many_as_there_may_be() {
    let usage = LimitedUsage::new(&limits([None, None, Some(5), None]), None).unwrap();
    let taken: Vec<_> = thread::scope(|scope| {
        let take = || (0..10).filter_map(|_| usage.take(LimitedResource::Request)).collect::<Vec<_>>();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(taken.len(), 5);
    drop(taken);
    assert_eq!(usage.counts(), UsageCounts::default());
}

#[test]
fn nothing_is_counted_without_a_limit() {
    let usage = LimitedUsage::new(&limits([Some(1); 4]), None);
    assert!(LimitedUsage::new(&BackendLimits::default(), usage.as_ref()).is_none());
}

#[test]
fn limits_read_as_in_their_object() {
    let all = BackendLimits { connect_timeout: Some(Duration::from_millis(1500)), ..limits([Some(1); 4]) };
    assert_eq!(
        all.to_string(),
        "maxConnections: 1, connectTimeout: 1.5s, maxRequests: 1, maxRequestsPerConnection: 9, maxPendingRequests: 1, \
         maxRetries: 1"
    );
    assert_eq!(
        BackendLimits { max_retries: Some(0), ..BackendLimits::default() }.to_string(),
        "maxRetries: 0"
    );
}

#[test]
fn a_connection_is_spent_after_as_many_requests_as_it_may_have() {
    let limits = |most| BackendLimits {
        max_requests_per_connection: most,
        connect_timeout: Some(Duration::from_millis(1500)),
        ..BackendLimits::default()
    };
    let usage = LimitedUsage::new(&limits(Some(2)), None).unwrap();
    assert_eq!([0, 1, 2, 3].map(|requests| usage.is_spent(requests)), [false, false, true, true]);
    assert_eq!(usage.connect_timeout(), Some(Duration::from_millis(1500)));
    let usage = LimitedUsage::new(&limits(None), Some(&usage)).unwrap();
    assert!(!usage.is_spent(u32::MAX - 1));
}
