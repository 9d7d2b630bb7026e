use std::rc::Rc;

use bytes::BytesMut;
use futures_util::poll;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::lifeline::Lifeline;
use crate::tunnel::{Tunnel, TunnelPatience};

#[tokio::test]
async fn a_connection_whose_both_ends_are_ready_moves_one_turn_at_a_time() {
    const ALL: usize = 1 << 20;
    let (mut client, mut client_end) = tokio::io::duplex(ALL);
    let (mut upstream, mut upstream_end) = tokio::io::duplex(ALL);
    upstream_end.write_all(&vec![b'x'; ALL]).await.unwrap();
    let line = Lifeline::new();
    let mut tunnel = Tunnel::default();
    let patience = TunnelPatience { stalled: std::time::Duration::MAX, idle: None, half_closed: None };
    let mut running = Box::pin(tunnel.run(&mut client, &mut upstream, &line, patience));
    let (mut received, mut turns) = (BytesMut::with_capacity(ALL), 0);
    while received.len() < ALL {
        assert!(poll!(&mut running).is_pending());
        turns += 1;
        let before = received.len();
        while poll!(Box::pin(client_end.read_buf(&mut received))).is_ready() {}
        assert!(received.len() - before <= TURN_BYTES, "{}", received.len() - before);
        tokio::task::yield_now().await;
    }
    assert!(turns >= ALL / TURN_BYTES, "{turns}");
}

/// Moves bytes without end, a turn each time that it is polled.
async fn move_forever(turns: Rc<Cell<usize>>) {
    poll_fn(|context| {
        let mut turn = Turn::new();
        turn.spend(TURN_BYTES);
        turns.set(turns.get() + 1);
        turn.poll(context)
    })
    .await;
}

#[test]
fn a_ready_connection_waits_for_few_turns_however_many_others_move_bytes() {
    const MOVING: usize = 500;
    let runtime = tokio::runtime::Builder::new_current_thread().build_local(Default::default()).unwrap();
    runtime.block_on(async {
        tokio::task::spawn_local(serve());
        tokio::task::yield_now().await;
        let turns = Rc::new(Cell::new(0));
        for _ in 0..MOVING {
            tokio::task::spawn_local(move_forever(turns.clone()));
        }
        // Each has had its first turn, and waits in the queue.
        while turns.get() < 2 * MOVING {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 * MOVING / AT_ONCE {
            let before = turns.get();
            tokio::task::yield_now().await;
            let between = turns.get() - before;
            assert!((1..=AT_ONCE).contains(&between), "{between}");
        }
    });
}
