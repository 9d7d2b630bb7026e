use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn one_address_leaves_room_for_the_others_however_it_is_written() {
    let places = ConnectionSlots::new(ConnectionLimits { all: 4, per_address: 2 });
    let (one, mapped, other) = (address("10.0.0.1"), address("::ffff:10.0.0.1"), address("fd00::1"));
    let first = places.take(one).unwrap();
    let _second = places.take(mapped).unwrap();
    assert_eq!(places.take(one).unwrap_err(), NoSlot::Address);
    let _others = [places.take(other).unwrap(), places.take(other).unwrap()];
    assert_eq!(places.take(address("10.0.0.2")).unwrap_err(), NoSlot::All);
    drop(first);
    let _third = places.take(one).unwrap();
}

#[test]
fn a_few_addresses_that_take_what_they_get_leave_places_to_newcomers() {
    let places = ConnectionSlots::new(ConnectionLimits::of(1000));
    let mut taken = Vec::new();
    for number in 1..=6 {
        let greedy = address(&format!("10.0.0.{number}"));
        taken.extend((0..1000).map_while(|_| places.take(greedy).ok()));
    }
    for number in 1..=20 {
        taken.push(places.take(address(&format!("10.0.1.{number}"))).unwrap());
    }
}

#[test]
fn nothing_is_remembered_of_who_is_gone() {
    let places = ConnectionSlots::new(ConnectionLimits { all: 2, per_address: 0 });
    places.take(address("10.0.0.1")).unwrap_err();
    let places = ConnectionSlots { limits: ConnectionLimits { all: 2, per_address: 1 }, ..places };
    drop(places.take(address("10.0.0.2")).unwrap());
    let taken = places.taken.lock().unwrap();
    assert_eq!(taken.all, 0);
    assert!(taken.per_address.is_empty(), "{:?}", taken.per_address);
}

#[test]
fn an_address_may_have_a_quarter() {
    let of = |all| ConnectionLimits::of(all).per_address;
    assert_eq!((of(10_000), of(100), of(10), of(1)), (2500, 25, 10, 1));
}
