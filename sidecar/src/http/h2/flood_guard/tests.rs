use super::*;

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
    frame.extend_from_slice(payload);
    frame
}

fn greeted(now: Instant) -> FloodGuard {
    let mut flood_guard = FloodGuard::new(now);
    flood_guard.observe(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", now).unwrap();
    flood_guard
}

#[test]
fn frames_are_found_however_the_bytes_are_cut() {
    let now = Instant::now();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(0x4, 0, &[0; 6]));
    bytes.extend(frame(0x6, 0, &[0; 8]));
    bytes.extend(frame(0x0, 0, &[7; 300]));
    bytes.extend(frame(0x3, 0, &[0; 4]));
    for size in 1..40 {
        let mut flood_guard = FloodGuard::new(now);
        for piece in bytes.chunks(size) {
            flood_guard.observe(piece, now).unwrap();
        }
        assert_eq!(
            (flood_guard.balance.spent, flood_guard.filled, flood_guard.skip),
            (3, 0, 0),
            "pieces of {size}"
        );
    }
}

#[test]
fn pings_alone_are_a_flood_and_pings_among_data_are_not() {
    let now = Instant::now();
    let ping = frame(0x6, 0, &[0; 8]);
    let mut alone = greeted(now);
    let taken = (0..100_000).take_while(|_| alone.observe(&ping, now).is_ok()).count();
    assert_eq!(taken, ALLOWANCE as usize);
    let mut among = greeted(now);
    let data = frame(0x0, 0, b"twenty bytes of data");
    for _ in 0..100_000 {
        among.observe(&data, now).unwrap();
        among.observe(&ping, now).unwrap();
    }
}

#[test]
fn window_updates_are_paid_for_by_the_data_that_they_are_for() {
    let now = Instant::now();
    let update = frame(0x8, 0, &1_u32.to_be_bytes());
    let mut alone = greeted(now);
    let taken = (0..100_000).take_while(|_| alone.observe(&update, now).is_ok()).count();
    assert_eq!(taken, ALLOWANCE as usize);
    // One for the stream and one for the connection, for each 4 KiB of a download.
    let mut reader = greeted(now);
    for _ in 0..100_000 {
        reader.earn_by_data(16 * 1024);
        for _ in 0..8 {
            reader.observe(&update, now).unwrap();
        }
    }
}

#[test]
fn a_slow_trickle_is_not_a_flood() {
    let mut now = Instant::now();
    let mut flood_guard = greeted(now);
    for _ in 0..10_000 {
        flood_guard.observe(&frame(0x6, 0, &[0; 8]), now).unwrap();
        now += Duration::from_millis(20);
    }
}

#[test]
fn resets_are_paid_for_by_requests_that_were_answered() {
    let now = Instant::now();
    let reset = frame(0x3, 0, &[0; 4]);
    let mut flood_guard = greeted(now);
    for _ in 0..10_000 {
        flood_guard.earn(RESET_COST);
        flood_guard.observe(&reset, now).unwrap();
    }
    let taken = (0..10_000).take_while(|_| flood_guard.observe(&reset, now).is_ok()).count();
    assert_eq!(taken, (ALLOWANCE / RESET_COST) as usize);
}
