//! What a sidecar keeps for clients that send requests and then stall, in bytes per request; and that everything is
//! freed once they are gone.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread;

use allocation_counter::measure;
use tidegate_core::policy::AppProtocol;

use crate::world::{App, Sidecar, Speaks};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, type and flags of a SETTINGS frame with one setting; then the stream and SETTINGS_INITIAL_WINDOW_SIZE.
const WINDOW: [u8; 11] = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4];
/// Streams per connection.
const STREAMS: usize = 100;
/// What may remain after a peak, once its clients are gone: spare buffers, and tables that do not shrink.
const REST: i64 = 2 * 1024 * 1024;

/// A connection with this many requests; if `ends` is false, the last one is not complete.
fn http2(target: SocketAddr, window: u32, method: &str, ends: bool) -> TcpStream {
    let mut bytes = [PREFACE, &WINDOW, &window.to_be_bytes()].concat();
    let mut block = Vec::new();
    for (name, value) in [
        (":method", method),
        (":scheme", "http"),
        (":authority", "httpbin.test"),
        (":path", "/a.Service/Call"),
    ] {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    for number in 0..STREAMS {
        let stream = (2 * number + 1) as u32;
        bytes.extend([0, 0, block.len() as u8, 1, if ends { 5 } else { 4 }]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(&block);
    }
    send(target, &bytes)
}

fn send(target: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(target).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Bytes kept per request, for `count` requests that a thread of its own sends, once the condition is met.
fn kept(
    count: usize,
    sidecar: &Sidecar,
    open: impl FnOnce(SocketAddr) -> Vec<TcpStream> + Send + 'static,
    wait: impl FnOnce(),
) -> i64 {
    /// All of them together would exceed the limit of open files.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let target = sidecar.address;
    let mut kept = 0;
    let rest = measure(|| {
        let opening = thread::spawn(move || open(target));
        kept = measure(wait).bytes_current;
        drop(opening.join().unwrap());
        sidecar.run_until_idle();
        sidecar.forget_idle();
    });
    println!("{} bytes for each request, {} left", kept / count as i64, rest.bytes_current);
    assert!(rest.bytes_current < REST, "{} bytes are left", rest.bytes_current);
    kept / count as i64
}

fn repeat(count: usize, open: impl Fn() -> TcpStream) -> Vec<TcpStream> {
    (0..count).map(|_| open()).collect()
}

#[test]
fn a_stalled_body_to_an_http2_app() {
    let app = App::http2(None);
    let sidecar = Sidecar::new(Speaks::Http2, app.address, AppProtocol::H2c, false);
    let count = 10 * STREAMS;
    let open = |target| repeat(10, || http2(target, 65_535, "POST", false));
    let kept = kept(count, &sidecar, open, || sidecar.run_until(|| app.requests() == count));
    assert!((2000..8 * 1024 + 256).contains(&kept), "{kept} bytes");
}

#[test]
fn a_stalled_body_to_an_http1_app() {
    let app = App::http1(None);
    let sidecar = Sidecar::new(Speaks::Http2, app.address, AppProtocol::Http, true);
    let count = 2 * STREAMS;
    let open = |target| repeat(2, || http2(target, 65_535, "POST", false));
    let kept = kept(count, &sidecar, open, || sidecar.run_until(|| app.requests() == count));
    assert!((2000..40 * 1024).contains(&kept), "{kept} bytes");
}

#[test]
fn a_local_answer_that_is_not_read() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sidecar = Sidecar::new(Speaks::Http2, nobody, AppProtocol::H2c, false);
    let count = 10 * STREAMS;
    let open = |target| repeat(10, || http2(target, 0, "GET", true));
    let kept = kept(count, &sidecar, open, || {
        sidecar.run_until(|| sidecar.streams() == count);
        sidecar.run_until_still(|| sidecar.streams());
    });
    assert!((500..4352).contains(&kept), "{kept} bytes");
}

#[test]
fn an_http2_app_s_answer_that_is_not_read() {
    let app = App::http2(Some(1_000_000));
    let sidecar = Sidecar::new(Speaks::Http2, app.address, AppProtocol::H2c, false);
    let count = 20 * STREAMS;
    let open = |target| repeat(20, || http2(target, 0, "GET", true));
    let kept = kept(count, &sidecar, open, || {
        sidecar.run_until(|| app.requests() == count);
        sidecar.run_until_still(|| app.sent());
    });
    assert!((500..22 * 1024).contains(&kept), "{kept} bytes");
}

#[test]
fn an_http1_app_s_answer_that_is_not_read() {
    let app = App::http1(Some(10_000_000));
    let sidecar = Sidecar::new(Speaks::Http1, app.address, AppProtocol::Http, false);
    let open = |target| repeat(200, || send(target, GET));
    let kept = kept(200, &sidecar, open, || {
        sidecar.run_until(|| app.requests() == 200);
        sidecar.run_until_still(|| app.sent());
    });
    assert!((2000..28 * 1024).contains(&kept), "{kept} bytes");
}

#[test]
fn an_http1_client_that_disconnects() {
    let app = App::http1(None);
    let sidecar = Sidecar::new(Speaks::Http1, app.address, AppProtocol::Http, false);
    let ask = |target| {
        let stream = send(target, GET);
        stream.shutdown(Shutdown::Write).unwrap();
        stream
    };
    let open = move |target| repeat(200, || ask(target));
    let kept = kept(200, &sidecar, open, || sidecar.run_until(|| app.requests() == 200));
    assert!((1000..6912).contains(&kept), "{kept} bytes");
}
