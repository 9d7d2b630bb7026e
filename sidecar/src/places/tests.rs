use super::*;

fn address(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn places(clients: usize) -> Arc<ConnectionPlaces> {
    Arc::new(ConnectionPlaces::new(1, PlaceLimits::of(clients, None)))
}

fn fill(places: &Arc<ConnectionPlaces>, source: IpAddr) -> Vec<ConnectionPlace> {
    std::iter::from_fn(|| {
        places.client(source, 0, false).ok().map(|(place, eviction)| {
            assert!(eviction.is_none());
            place
        })
    })
    .collect()
}

#[test]
fn a_source_may_hold_everything_and_makes_room_for_others_until_they_hold_as_much() {
    let places = places(100);
    let mut crowd = fill(&places, address(1));
    assert_eq!(crowd.len(), 100);
    let full = places.client(address(1), 0, false).err();
    assert_eq!(full, Some(NoPlace::Clients { held: 100, by_source: 100 }));
    let mut others = Vec::new();
    for _ in 0..50 {
        let (place, eviction) = places.client(address(2), 0, false).unwrap();
        others.push(place);
        let eviction = eviction.unwrap();
        assert!(crowd[0].is_of(&eviction) && !others[0].is_of(&eviction));
        assert_eq!((eviction.count, eviction.also_busy), (1, (others.len() - 1) * 2 < crowd.len()));
        crowd.pop();
    }
    let full = places.client(address(2), 0, false).err();
    assert_eq!(full, Some(NoPlace::Clients { held: 100, by_source: 50 }));
    assert!(places.client(address(1), 0, false).is_err());
    assert!(places.client(address(3), 0, false).is_ok());
}

#[test]
fn places_that_are_about_to_be_freed_are_taken_beforehand_within_bounds() {
    let places = places(1024);
    let mut crowd = fill(&places, address(1));
    let (first, eviction) = places.client(address(2), 0, false).unwrap();
    let eviction = eviction.unwrap();
    assert_eq!(eviction.count, 4);
    let rest: Vec<_> = (3..6).map(|last| places.client(address(last), 0, false).unwrap()).collect();
    assert!(rest.iter().all(|(_, eviction)| eviction.is_none()));
    assert!(places.client(address(7), 0, false).is_err());
    crowd.truncate(1020);
    drop(eviction);
    assert!(places.client(address(7), 0, false).unwrap().1.is_some());
    drop((first, rest));
}

#[test]
fn the_apps_own_connections_have_places_of_their_own_also_where_files_are_few() {
    let places = Arc::new(ConnectionPlaces::new(1, PlaceLimits::of(1000, Some(64 + 2 * 80))));
    assert_eq!(places.limits, PlaceLimits { clients: 70, outbound: 70, all: 80 });
    let crowd = fill(&places, address(1));
    assert_eq!(crowd.len(), 70);
    let own: Vec<_> = (0..10).map(|_| places.outbound(0, false).unwrap()).collect();
    drop(crowd);
    let more: Vec<_> = (0..60).map(|_| places.outbound(0, false).unwrap()).collect();
    assert_eq!(places.outbound(0, false).err(), Some(NoPlace::Outbound { held: 70 }));
    assert_eq!(fill(&places, address(1)).len(), 10);
    drop((own, more));
    assert_eq!(places.connections(), 0);
}

#[test]
fn unfinished_data_takes_places_by_its_bytes() {
    let places = places(100);
    let mut crowd: Vec<_> = (0..10).map(|_| places.client(address(1), 0, false).unwrap().0).collect();
    assert!(crowd.iter().all(|place| place.hold(UnfinishedPart::Message, 4096)));
    assert_eq!(places.clients.load(Ordering::Relaxed), 10);
    // 9 for each of ten, and no more.
    assert!(crowd.iter().all(|place| place.hold(UnfinishedPart::Message, 40_000)));
    assert!(!crowd[0].hold(UnfinishedPart::Message, 65_536));
    let (other, eviction) = places.client(address(2), 0, false).unwrap();
    assert!(crowd[0].is_of(&eviction.unwrap()));
    // A source that holds little may still complete what it sends.
    assert!(other.hold(UnfinishedPart::Message, 65_536));
    assert!(other.hold(UnfinishedPart::Message, 0));
    // A head that comes in records holds the bytes of both.
    let before = places.taken();
    assert!(other.hold(UnfinishedPart::Record, 16 * 1024) && other.hold(UnfinishedPart::Message, 8 * 1024));
    assert_eq!(places.taken() - before, 5);
    assert!(other.hold(UnfinishedPart::Record, 0) && other.hold(UnfinishedPart::Message, 0));
    assert_eq!(places.taken(), before);
    crowd.pop();
    assert_eq!(places.clients.load(Ordering::Relaxed), 91);
    crowd.clear();
    drop(other);
    assert_eq!(places.clients.load(Ordering::Relaxed), 0);
}

#[test]
fn an_identity_is_a_source_whatever_its_addresses_and_sources_without_places_are_forgotten() {
    let places = places(10);
    let crowd: Vec<_> = (0..9).map(|last| places.client(address(last), 0, false).unwrap().0).collect();
    for place in &crowd {
        assert!(
            place.hold(UnfinishedPart::Message, 2 * PLACE_BYTES)
                || places.clients.load(Ordering::Relaxed) >= 10
        );
        place.identify("DNS:a.b.cluster.local");
        assert!(place.hold(UnfinishedPart::Message, 0));
    }
    assert_eq!(places.sources().addresses.len(), 0);
    let (other, none) = places.client(address(1), 0, false).unwrap();
    assert!(none.is_none());
    let (another, eviction) = places.client(address(2), 0, false).unwrap();
    let eviction = eviction.unwrap();
    assert!(crowd[0].is_of(&eviction) && eviction.also_busy);
    drop((crowd, other, another, eviction));
    let mut sources = places.sources();
    sources.heaviest = None;
    assert!(sources.addresses.is_empty() && sources.identities.is_empty());
}

#[test]
fn places_are_spread_over_the_workers() {
    let places = Arc::new(ConnectionPlaces::new(3, PlaceLimits::of(100, None)));
    let spread: Vec<_> = (0..9).map(|_| places.client(address(1), 1, false).unwrap().0).collect();
    assert_eq!(spread[0].worker(), 1);
    assert!(places.loads.iter().all(|load| load.load(Ordering::Relaxed) == 3));
    assert_eq!(places.client(address(1), 2, true).unwrap().0.worker(), 2);
}
