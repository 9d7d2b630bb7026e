//! Attacks on the controller by a meshed Pod.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate_proto::ResourceName;
use tidegate_proto::discovery::Subscribe;
use tidegate_proto::discovery::discovery_request::Message;
use tidegate_tests::client::h2::H2Connection;
use tokio::task::JoinSet;

use crate::grpc::DiscoveryStream;
use crate::sent::AttackSent;
use crate::site::{HOG, HostileSite};

/// Connections of the attacker, each with [`STREAMS`] streams.
const CONNECTIONS: u16 = 12;
/// On each connection.
const STREAMS: u16 = 8;
/// Subscriptions on each stream.
const ADDRESSES: usize = 8192;
/// Subscriptions in one message.
const TOGETHER: usize = 512;
/// Pause before a connection is reopened.
const REST: Duration = Duration::from_millis(5);

/// Streams that subscribe to made-up addresses, all of them different, and are reopened when they end.
pub(crate) fn many_destinations(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker_of_controller();
    let (sent, end) = (Arc::new(AtomicU64::new(0)), Instant::now() + time);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connections = JoinSet::new();
        for number in 0..CONNECTIONS {
            let (client, sent) = (client.clone(), sent.clone());
            connections.spawn(async move {
                while Instant::now() < end {
                    if let Ok(connection) = H2Connection::open(&client).await {
                        let streams = streams(Arc::new(connection), client.target, number, &sent);
                        let _ = tokio::time::timeout_at(end.into(), streams).await;
                    }
                    tokio::time::sleep(REST).await;
                }
            });
        }
        connections.join_all().await;
    });
    AttackSent::new(sent.load(Ordering::Relaxed), usize::from(CONNECTIONS)).with_streams(usize::from(STREAMS))
}

/// All streams of a connection, until the last of them ends.
async fn streams(connection: Arc<H2Connection>, controller: SocketAddr, number: u16, sent: &Arc<AtomicU64>) {
    let mut streams = JoinSet::new();
    for stream in 0..STREAMS {
        let (connection, sent) = (connection.clone(), sent.clone());
        streams.spawn(async move {
            // However it ends.
            let _ = ask(&connection, controller, number * STREAMS + stream, &sent).await;
        });
    }
    streams.join_all().await;
}

/// One stream, which subscribes to [`ADDRESSES`] addresses of its own and then reads until the controller ends it.
async fn ask(
    connection: &H2Connection,
    controller: SocketAddr,
    number: u16,
    sent: &AtomicU64,
) -> Result<(), h2::Error> {
    let workload = format!("httpbin/{HOG}");
    let (mut stream, bytes) = DiscoveryStream::open(connection, controller, &workload).await?;
    sent.fetch_add(bytes, Ordering::Relaxed);
    let names: Vec<_> = (0..ADDRESSES).map(|address| invented(number, address)).collect();
    for names in names.chunks(TOGETHER) {
        let bytes = stream.say(Message::Subscribe(Subscribe { names: names.to_vec() })).await?;
        sent.fetch_add(bytes, Ordering::Relaxed);
    }
    // Responses are read, and not acknowledged.
    while stream.next().await?.is_some() {}
    Ok(())
}

/// The name of an address that nothing has.
fn invented(stream: u16, address: usize) -> String {
    let [_, _, c, d] = u32::try_from(address).unwrap().to_be_bytes();
    let address = SocketAddr::from((Ipv4Addr::new(11, stream as u8 + 1, c, d), 80));
    ResourceName::Destination(address.into()).to_string()
}
