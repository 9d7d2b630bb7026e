//! A gigabyte each way between slow readers, which costs the sidecars no memory.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::app::{App, Conversation};
use tidegate_tests::caller::CallerMesh;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::daemon::Daemon;
use tidegate_tests::wait::SOON;

use super::{MIB, content, mesh, read_head};

const GIGABYTE: usize = 1_000_000_000;
/// Over HTTP/2, which is slow without optimisation: far more than all buffers.
const OVER_HTTP_2: usize = 100_000_000;
/// The most by which both sidecars together may grow.
const MOST_GROWTH: u64 = 3 << 20;

/// Reads with pauses, and counts.
struct SlowReader {
    count: usize,
    next_pause: usize,
}

impl SlowReader {
    const BETWEEN_PAUSES: usize = 32 * MIB;
    const PAUSE: Duration = Duration::from_millis(100);

    fn new() -> Self {
        Self { count: 0, next_pause: MIB }
    }

    /// Counts these bytes; returns whether the reader has paused.
    // The pause makes the reader slow; it waits for nothing.
    #[expect(clippy::disallowed_methods)]
    fn took(&mut self, bytes: usize) -> bool {
        self.count += bytes;
        let pauses = self.count >= self.next_pause;
        if pauses {
            self.next_pause += Self::BETWEEN_PAUSES;
            thread::sleep(Self::PAUSE);
        }
        pauses
    }
}

/// Sends back what it gets as it comes; behind a head, with one. Its reader is slow.
fn slow_echo(conversation: &mut Conversation, has_head: bool) -> io::Result<()> {
    if has_head {
        let length = conversation.head()?.unwrap().value("content-length").unwrap().to_owned();
        conversation.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes())?;
    }
    let mut reader = SlowReader::new();
    loop {
        let bytes = conversation.bytes()?;
        if bytes.is_empty() {
            return conversation.finish();
        }
        reader.took(bytes.len());
        conversation.write(&bytes)?;
    }
}

/// Resident bytes of both sidecars.
fn resident(mesh: &CallerMesh) -> u64 {
    [&mesh.caller, &mesh.mesh.sidecar].map(Daemon::resident_bytes).iter().sum()
}

/// A gigabyte to the app, which sends it back, while the client reads slowly; fails if the sidecars come to hold more.
fn gigabyte(mesh: &CallerMesh, head: &str) {
    let mut stream = TcpStream::connect(mesh.mesh.way_out()).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let block = content(MIB);
    let expected = [&block[..], &block[..]].concat();
    let mut writer = stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        let mut left = GIGABYTE;
        while left > 0 {
            let now = left.min(block.len());
            writer.write_all(&block[..now]).unwrap();
            left -= now;
        }
        writer
    });
    stream.set_read_timeout(Some(3 * SOON)).unwrap();
    let mut stream = io::BufReader::new(stream);
    if !head.is_empty() {
        let answer = read_head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let before = resident(mesh);
    let (mut reader, mut buffer, mut most) = (SlowReader::new(), vec![0; 256 * 1024], before);
    while reader.count < GIGABYTE {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "it ends after {} bytes", reader.count);
        let from = reader.count % MIB;
        assert!(buffer[..count] == expected[from..from + count], "other bytes at {}", reader.count);
        if reader.took(count) {
            most = most.max(resident(mesh));
        }
    }
    drop(sending.join().unwrap());
    assert_eq!(reader.count, GIGABYTE);
    let grown = most - before;
    assert!(grown < MOST_GROWTH, "the sidecars have grown by {grown} bytes");
}

#[test]
fn a_gigabyte_passes_both_ways_in_one_request_and_the_sidecars_do_not_grow() {
    let mesh = mesh("http");
    let _app = App::unrecorded(mesh.mesh.app_address(), |conversation| slow_echo(conversation, true));
    gigabyte(&mesh, &format!("POST / HTTP/1.1\r\nhost: called\r\ncontent-length: {GIGABYTE}\r\n\r\n"));
}

#[test]
fn a_gigabyte_of_opaque_bytes_passes_both_ways_and_the_sidecars_do_not_grow() {
    let mesh = mesh("tcp");
    let _app = App::unrecorded(mesh.mesh.app_address(), |conversation| slow_echo(conversation, false));
    gigabyte(&mesh, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_pass_each_way_over_http_2_and_the_sidecars_do_not_grow() {
    let mesh = mesh("grpc");
    let _app = H2cApp::unrecorded(mesh.mesh.app_address());
    let connection = H2Connection::open(&mesh.app()).await.unwrap();
    let warm = Request::get("http://called/bytes/1000000").body(()).unwrap();
    connection.exchange(warm, &[]).await.unwrap();
    let before = resident(&mesh);

    let mut requests = connection.requests.clone().ready().await.unwrap();
    let upload = Request::post("http://called/sink").body(()).unwrap();
    let (answer, mut body) = requests.send_request(upload, false).unwrap();
    let block = Bytes::from(content(MIB));
    let (mut left, mut most) = (OVER_HTTP_2, before);
    while left > 0 {
        body.reserve_capacity(left.min(block.len()));
        let granted = poll_fn(|context| body.poll_capacity(context)).await.unwrap().unwrap();
        let now = granted.min(left);
        let is_next_part = left / (16 * MIB) > (left - now) / (16 * MIB);
        left -= now;
        body.send_data(block.slice(..now), left == 0).unwrap();
        if is_next_part {
            most = most.max(resident(&mesh));
        }
    }
    let mut answer = answer.await.unwrap().into_body();
    assert_eq!(answer.data().await.unwrap().unwrap(), OVER_HTTP_2.to_string());

    let download = Request::get(format!("http://called/bytes/{OVER_HTTP_2}")).body(()).unwrap();
    let mut requests = requests.ready().await.unwrap();
    let mut answer = requests.send_request(download, true).unwrap().0.await.unwrap().into_body();
    let mut reader = SlowReader::new();
    while let Some(data) = answer.data().await {
        let data = data.unwrap();
        answer.flow_control().release_capacity(data.len()).unwrap();
        if reader.took(data.len()) {
            most = most.max(resident(&mesh));
        }
    }
    assert_eq!(reader.count, OVER_HTTP_2);
    assert!(most - before < MOST_GROWTH, "the sidecars have grown by {} bytes", most - before);
}
