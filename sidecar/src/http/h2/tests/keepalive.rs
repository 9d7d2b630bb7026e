//! Clients that send nothing for long. The clock of these tests moves on as soon as all tasks wait for it.

use std::time::Duration;

use tidegate_core::policy::AppProtocol;
use tokio::time::Instant;

use super::kit::{ACK, Frame, GOAWAY, PING, Sidecar};
use crate::lifeline::Phase;

/// How long the tests' client is silent.
const LONG: Duration = Duration::from_secs(2 * 3600);

#[test]
fn a_silent_client_stays_as_long_as_it_answers_pings_and_is_ended_soon_after_it_stops() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let sidecar = Sidecar::new("192.0.2.1:14001".parse().unwrap(), AppProtocol::H2c);
        let mut client = sidecar.connect_raw().await;
        let is_ping = |frame: &Frame| frame.kind == PING && frame.flags & ACK == 0;
        let begun = Instant::now();
        while begun.elapsed() < LONG {
            let ping = client.find(is_ping).await.expect("the connection stays open");
            client.send(PING, ACK, 0, &ping.payload).await.unwrap();
        }
        assert_eq!(client.line.phase(), Phase::Open);

        client.find(is_ping).await.unwrap();
        let asked = Instant::now();
        assert!(client.find(|frame| frame.kind == GOAWAY).await.is_some());
        assert!(client.find(|_| false).await.is_none(), "the end");
        assert!(asked.elapsed() < Duration::from_secs(60), "{:?}", asked.elapsed());
    });
}
