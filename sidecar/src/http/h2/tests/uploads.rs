//! How much a client may send before the app reads it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};
use http_body_util::BodyExt;
use tidegate_core::policy::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::abuse::{Fate, fate};
use super::apps::{App, Speaks};
use super::kit::{
    ACK, DATA, END_STREAM, GET, POST, RST_STREAM, Raw, SETTINGS, Sidecar, WINDOW_UPDATE, full, run, until,
};
use crate::limits::Limits;

const FRAME: usize = 16 * 1024;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// The flow-control windows of a client.
struct Uploader {
    client: Raw,
    /// Window of new streams.
    initial: i64,
    connection: i64,
    streams: Vec<(u32, i64)>,
}

impl Uploader {
    async fn new(sidecar: &Sidecar) -> Self {
        let mut uploader = Self {
            client: sidecar.connect_raw().await,
            initial: 65_535,
            connection: 65_535,
            streams: vec![],
        };
        while uploader.initial != 32 * 1024 || uploader.connection == 65_535 {
            uploader.listen().await;
        }
        uploader
    }

    async fn open(&mut self, stream: u32) {
        self.client.open(stream, &POST).await.unwrap();
        self.streams.push((stream, self.initial));
    }

    /// Processes one frame of the sidecar.
    async fn listen(&mut self) {
        let frame = self.client.frame().await.unwrap();
        let number = |bytes: &[u8]| i64::from(u32::from_be_bytes(bytes.try_into().unwrap()));
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => {
                for setting in frame.payload.chunks(6).filter(|setting| setting[..2] == [0, 4]) {
                    let initial = number(&setting[2..]);
                    self.streams.iter_mut().for_each(|(_, window)| *window += initial - self.initial);
                    self.initial = initial;
                }
                self.client.send(SETTINGS, ACK, 0, &[]).await.unwrap();
            }
            WINDOW_UPDATE if frame.stream == 0 => self.connection += number(&frame.payload),
            WINDOW_UPDATE => {
                let stream = self.streams.iter_mut().find(|(stream, _)| *stream == frame.stream);
                stream.unwrap().1 += number(&frame.payload);
            }
            _ => {}
        }
    }

    fn window(&self, stream: u32) -> i64 {
        let (_, window) = self.streams.iter().find(|(known, _)| *known == stream).unwrap();
        (*window).min(self.connection)
    }

    /// Sends a frame; the windows must have room for it.
    async fn send(&mut self, stream: u32) {
        self.client.send(DATA, 0, stream, &[b'x'; FRAME]).await.unwrap();
        self.connection -= FRAME as i64;
        self.streams.iter_mut().find(|(known, _)| *known == stream).unwrap().1 -= FRAME as i64;
    }

    /// Sends on `count` streams from number 3 on, a frame at a time, until new streams get the smallest window.
    async fn fill_until_windows_fall(&mut self, count: u32) {
        let mut turn = 0;
        while self.initial > 32 * 1024 {
            let stream = 3 + 2 * (turn % count);
            turn += 1;
            let has_room = (1..=count).any(|number| self.window(1 + 2 * number) >= FRAME as i64);
            if !has_room {
                self.listen().await;
            } else if self.window(stream) >= FRAME as i64 {
                self.send(stream).await;
                tokio::task::yield_now().await;
            }
            assert!(self.connection > 0, "the connection's window never runs out");
            // Frames of the sidecar are processed meanwhile.
            tokio::select! {
                biased;
                () = self.listen() => {}
                () = std::future::ready(()) => {}
            }
        }
    }
}

/// Reads the first request's body and answers its length; does not read those of the next nineteen until `resume`.
async fn app_that_stops(resume: Rc<Notify>) -> App {
    App::with(Speaks::Http1, async move |seen, request: Request<hyper::body::Incoming>| {
        let mut body = request.into_body();
        let mut length = 0;
        // Connections after the first are not read until the test allows it.
        seen.held.set(seen.held.get() + 1);
        if seen.held.get() > 1 && seen.held.get() <= 20 {
            resume.notified().await;
        }
        while let Some(Ok(frame)) = body.frame().await {
            length += frame.into_data().map_or(0, |data| data.len());
        }
        Response::new(full(length.to_string()))
    })
    .await
}

#[test]
fn windows_grow_while_the_app_reads_and_fall_back_when_it_stops() {
    run(async {
        let resume = Rc::new(Notify::new());
        let app = app_that_stops(resume.clone()).await;
        let sidecar = Sidecar::new(app.address, AppProtocol::Http);
        let mut uploader = Uploader::new(&sidecar).await;
        uploader.open(1).await;
        while uploader.initial < 256 * 1024 {
            match uploader.window(1) {
                room if room >= FRAME as i64 => uploader.send(1).await,
                _ => uploader.listen().await,
            }
        }
        uploader.client.send(DATA, END_STREAM, 1, &[]).await.unwrap();

        // Nineteen streams that the app does not read.
        for number in 1..20 {
            uploader.open(1 + 2 * number).await;
        }
        until(|| app.seen.held.get() == 20).await;
        uploader.fill_until_windows_fall(19).await;
        let held = sidecar.env.streams.held().get();
        assert!((1 << 20..8 << 20).contains(&held), "{held} bytes are held");

        // Another stream is served meanwhile.
        uploader.open(101).await;
        for _ in 0..20 {
            while uploader.window(101) < FRAME as i64 {
                uploader.listen().await;
            }
            uploader.send(101).await;
        }
        uploader.client.send(DATA, END_STREAM, 101, &[]).await.unwrap();
        assert_eq!(fate(&mut uploader.client, 101).await, Fate::Status(200));

        drop(uploader);
        resume.notify_waiters();
        until(|| sidecar.env.streams.held().get() == 0).await;
    });
}

/// An app of HTTP/2 that answers each request at its head, and then takes 1 KiB of the body; with what its streams were
/// reset.
async fn early_app() -> (App, Rc<Cell<Option<Reason>>>) {
    let reset = Rc::<Cell<Option<Reason>>>::default();
    let seen = reset.clone();
    let app = App::raw(async move |_, socket| {
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(1024);
        let mut connection = builder.handshake::<_, Bytes>(socket).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            respond.send_response(Response::new(()), true).unwrap();
            let (mut body, seen) = (request.into_body(), seen.clone());
            tokio::task::spawn_local(async move {
                while let Some(data) = body.data().await {
                    if let Err(error) = data {
                        return seen.set(error.reason());
                    }
                }
            });
        }
    });
    (app.await, reset)
}

/// Room for one request at a time.
fn one_at_a_time() -> Limits {
    Limits { upstream_requests: 1, ..Limits::default() }
}

/// Makes requests until one finds room.
async fn find_room(client: &mut Raw) {
    for stream in (3..).step_by(2) {
        client.request(stream, &GET).await.unwrap();
        if fate(client, stream).await == Fate::Status(200) {
            return;
        }
    }
}

#[test]
fn a_request_that_the_app_has_answered_and_not_taken_ends_with_its_clients_stream() {
    run(async {
        let (app, reset) = early_app().await;
        let sidecar = Sidecar::with_limits(app.address, AppProtocol::H2c, one_at_a_time());
        let mut client = sidecar.connect_raw().await;
        client.open(1, &POST).await.unwrap();
        client.send(DATA, 0, 1, &[b'x'; FRAME]).await.unwrap();
        assert_eq!(fate(&mut client, 1).await, Fate::Status(200));
        client.send(RST_STREAM, 0, 1, &CANCEL).await.unwrap();
        until(|| reset.get() == Some(Reason::CANCEL)).await;
        find_room(&mut client).await;
    });
}

#[test]
fn a_request_that_the_app_has_answered_and_not_taken_has_a_deadline() {
    run(async {
        let (app, reset) = early_app().await;
        let sidecar = Sidecar::with_limits(app.address, AppProtocol::H2c, one_at_a_time());
        let mut client = sidecar.connect_raw().await;
        client.open(1, &POST).await.unwrap();
        client.send(DATA, END_STREAM, 1, &[b'x'; FRAME]).await.unwrap();
        assert_eq!(fate(&mut client, 1).await, Fate::Status(200));
        until(|| {
            sidecar.expire_after(Limits::default().body);
            reset.get() == Some(Reason::CANCEL)
        })
        .await;
        find_room(&mut client).await;
    });
}

#[test]
fn a_request_that_an_app_of_http1_has_answered_and_not_taken_ends_with_its_clients_stream() {
    run(async {
        let app = App::raw(async |_, mut socket| {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let sidecar = Sidecar::with_limits(app.address, AppProtocol::Http, one_at_a_time());
        let mut uploader = Uploader::new(&sidecar).await;
        uploader.open(1).await;
        // Until neither socket takes any more.
        loop {
            if uploader.window(1) >= FRAME as i64 {
                uploader.send(1).await;
            } else if timeout(Duration::from_millis(500), uploader.listen()).await.is_err() {
                break;
            }
        }
        uploader.client.send(RST_STREAM, 0, 1, &CANCEL).await.unwrap();
        find_room(&mut uploader.client).await;
    });
}
