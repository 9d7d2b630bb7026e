//! Access log records.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::world::{World, local, read_head, read_until};
use crate::limits::Limits;
use crate::telemetry::Telemetry;

/// An access log in a file.
pub(super) struct Log {
    folder: tempfile::TempDir,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A world that writes to this log.
    pub(super) async fn world(&self) -> World {
        let telemetry = Telemetry::in_file(&self.path());
        World::telling(Limits::default(), telemetry).await
    }

    /// The lines of the log, once there are this many.
    pub(super) async fn lines(&self, world: &World, count: usize) -> Vec<Value> {
        let due = Instant::now() + Duration::from_secs(20);
        loop {
            world.env.telemetry.flush();
            let lines = Telemetry::records_in(&self.path());
            if lines.len() == count {
                return lines;
            }
            assert!(Instant::now() < due, "{lines:?}");
            tokio::task::yield_now().await;
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("access.log")
    }
}

/// Requests that the app answered, that it did not answer, that was refused, and that was malformed, in a world.
async fn four_requests(log: &Log) -> World {
    let world = log.world().await;

    let mut client = world.connect();
    let head = "POST /up?load=1 HTTP/1.1\r\nHost: app.example\r\nUser-Agent: test/1\r\nX-Request-Id: id-1\r\nX-Forwarded-For: 1.2.3.4\r\nContent-Length: 8\r\n\r\n";
    client.write_all(format!("{head}question").as_bytes()).await.unwrap();
    let mut app = world.app.accept().await;
    read_until(&mut app, "question").await;
    app.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 6\r\n\r\nanswer").await.unwrap();
    read_until(&mut client, "answer").await;
    client.write_all(b"POST /gone HTTP/1.1\r\nHost: app.example\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    read_head(&mut app).await;
    drop(app);
    read_until(&mut client, "termination").await;
    world.deny();
    client.write_all(b"GET /secret HTTP/1.1\r\nHost: app.example\r\n\r\n").await.unwrap();
    read_until(&mut client, "denied").await;
    let bad = b"GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\nUser-Agent: test/2\r\n\r\n";
    client.write_all(bad).await.unwrap();
    read_until(&mut client, "Bad Request").await;
    world
}

fn expect(line: &Value, expected: &[(&str, Value)]) {
    for (key, value) in expected {
        assert_eq!(&line[key], value, "{key} of {line}");
    }
}

#[tokio::test]
async fn every_request_is_logged_whether_app_or_sidecar_answered_it() {
    let log = Log::new();
    local(async {
        let world = four_requests(&log).await;
        let lines = log.lines(&world, 4).await;
        expect(
            &lines[0],
            &[
                ("method", "POST".into()),
                ("path", "/up?load=1".into()),
                ("protocol", "HTTP/1.1".into()),
                ("authority", "app.example".into()),
                ("user_agent", "test/1".into()),
                ("request_id", "id-1".into()),
                ("x_forwarded_for", "1.2.3.4, 10.0.0.7".into()),
                ("response_code", 201.into()),
                ("response_flags", "-".into()),
                ("response_code_details", "via_upstream".into()),
                ("bytes_received", 8.into()),
                ("bytes_sent", 6.into()),
            ],
        );
        expect(
            &lines[1],
            &[("path", "/gone".into()), ("response_code", 503.into()), ("response_flags", "UC".into())],
        );
        expect(
            &lines[2],
            &[
                ("path", "/secret".into()),
                ("response_code", 403.into()),
                ("response_flags", "RBAC".into()),
                ("response_code_details", "rbac_access_denied_matched_policy[none]".into()),
                ("bytes_sent", 19.into()),
            ],
        );
        expect(
            &lines[3],
            &[
                ("method", "GET".into()),
                ("path", "/bad".into()),
                ("authority", "a".into()),
                ("user_agent", "test/2".into()),
                ("response_code", 400.into()),
                ("response_flags", "DPE".into()),
                ("response_code_details", "http1.invalid_host".into()),
            ],
        );
    })
    .await;
}
