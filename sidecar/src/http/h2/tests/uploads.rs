//! How much a client may send before the app takes it.

use std::rc::Rc;

use http::{Request, Response};
use http_body_util::BodyExt;
use tidegate_core::policy::AppProtocol;
use tokio::sync::Notify;

use super::abuse::{Fate, fate};
use super::apps::{App, Speaks};
use super::kit::{ACK, DATA, END_STREAM, POST, Raw, SETTINGS, Sidecar, WINDOW_UPDATE, full, run, until};

const FRAME: usize = 16 * 1024;

/// What a client knows of the windows that it has.
struct Uploader {
    client: Raw,
    /// Of new streams.
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

    /// Takes note of one frame.
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

    /// Sends a frame, which there must be room for.
    async fn send(&mut self, stream: u32) {
        self.client.send(DATA, 0, stream, &[b'x'; FRAME]).await.unwrap();
        self.connection -= FRAME as i64;
        self.streams.iter_mut().find(|(known, _)| *known == stream).unwrap().1 -= FRAME as i64;
    }
}

#[test]
fn windows_grow_with_what_the_app_takes_and_fall_back_when_it_takes_nothing() {
    run(async {
        let resume = Rc::new(Notify::new());
        let waits = resume.clone();
        let app = App::with(Speaks::Http1, async move |seen, request: Request<hyper::body::Incoming>| {
            let mut body = request.into_body();
            let mut length = 0;
            // Those after the first are not read before they may be.
            seen.held.set(seen.held.get() + 1);
            if seen.held.get() > 1 && seen.held.get() <= 20 {
                waits.notified().await;
            }
            while let Some(Ok(frame)) = body.frame().await {
                length += frame.into_data().map_or(0, |data| data.len());
            }
            Response::new(full(length.to_string()))
        })
        .await;
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

        // Nineteen that the app does not read.
        for number in 1..20 {
            uploader.open(1 + 2 * number).await;
        }
        until(|| app.seen.held.get() == 20).await;
        let mut turn = 0;
        while uploader.initial > 32 * 1024 {
            let stream = 3 + 2 * (turn % 19);
            turn += 1;
            let has_room = (1..20).any(|number| uploader.window(1 + 2 * number) >= FRAME as i64);
            if !has_room {
                uploader.listen().await;
            } else if uploader.window(stream) >= FRAME as i64 {
                uploader.send(stream).await;
                tokio::task::yield_now().await;
            }
            assert!(uploader.connection > 0, "the connection's window never runs out");
            // What the sidecar says meanwhile is heard.
            tokio::select! {
                biased;
                () = uploader.listen() => {}
                () = std::future::ready(()) => {}
            }
        }
        let held = sidecar.env.streams.held().get();
        assert!((1 << 20..8 << 20).contains(&held), "{held} bytes are held");

        // Another one is served meanwhile.
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
