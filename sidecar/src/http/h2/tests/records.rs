//! Access log records.

use std::path::Path;

use http::{Request, Response};
use serde_json::Value;
use tidegate_core::policy::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::apps::{App, Speaks};
use super::kit::{GET, Sidecar, full, get, run, text, until};
use crate::limits::Limits;
use crate::telemetry::Telemetry;
use crate::upstream::DynBody;

/// One request that the app answered, one that was refused, one that was malformed, and one that its client gave up.
async fn four_requests(log: &Path) -> (Sidecar, App) {
    let app = App::with(Speaks::Http1, async |seen, request: Request<hyper::body::Incoming>| {
        if request.uri().path() == "/never" {
            seen.connections.set(100);
            return std::future::pending::<Response<DynBody>>().await;
        }
        Response::new(full("answer"))
    })
    .await;
    let telemetry = Telemetry::in_file(log);
    let sidecar = Sidecar::telling(app.address, AppProtocol::Http, Limits::default(), telemetry);
    let mut client = sidecar.connect().await;

    let request = Request::post("http://app.example/up?load=1")
        .header("user-agent", "test/1")
        .header("x-request-id", "id-1")
        .body(full("question"))
        .unwrap();
    assert_eq!(text(client.send(request).await.unwrap()).await.0, 200);
    sidecar.allow(false);
    let request = Request::get("http://app.example/secret")
        .header("x-request-id", "id-2")
        .header("x-forwarded-for", "203.0.113.9")
        .body(full(""))
        .unwrap();
    assert_eq!(text(client.send(request).await.unwrap()).await.0, 403);
    sidecar.allow(true);
    let mut raw = sidecar.connect_raw().await;
    let mut bad = GET;
    bad[3].1 = "*";
    raw.request(1, &bad).await.unwrap();
    raw.find(|frame| frame.stream == 1).await.unwrap();
    let given_up = tokio::task::spawn_local(client.sender.send_request(get("/never")));
    until(|| app.seen.connections.get() == 100).await;
    given_up.abort();
    (sidecar, app)
}

#[test]
fn every_request_is_logged_whether_app_or_sidecar_answered_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    run(async {
        let (sidecar, _app) = four_requests(&path).await;
        let lines = || {
            sidecar.env.telemetry.flush();
            Telemetry::records_in(&path)
        };
        until(|| lines().len() == 4).await;
        let lines = lines();
        let of = |path: &str| lines.iter().find(|line| line["path"] == path).unwrap();

        let served = of("/up?load=1");
        assert_eq!(served["response_code"], 200);
        assert_eq!(served["response_flags"], "-");
        assert_eq!(served["response_code_details"], "via_upstream");
        assert_eq!((&served["bytes_received"], &served["bytes_sent"]), (&Value::from(8), &Value::from(6)));
        assert_eq!(served["method"], "POST");
        assert_eq!(served["protocol"], "HTTP/2");
        assert_eq!(served["authority"], "app.example");
        assert_eq!(served["user_agent"], "test/1");
        assert_eq!(served["request_id"], "id-1");
        assert_eq!(served["x_forwarded_for"], "192.0.2.7");

        let refused = of("/secret");
        assert_eq!(refused["response_code"], 403);
        assert_eq!(refused["bytes_sent"], 19);
        assert_eq!(refused["response_code_details"], "rbac_access_denied_matched_policy[none]");
        assert_eq!(refused["response_flags"], "RBAC");
        assert_eq!(refused["request_id"], "id-2");
        assert_eq!(refused["x_forwarded_for"], "203.0.113.9");

        let malformed = of("*");
        assert_eq!(malformed["response_code"], 400);
        assert_eq!(malformed["response_flags"], "DPE");

        let given_up = of("/never");
        assert_eq!(given_up["response_code"], 0);
        assert_eq!(given_up["response_flags"], "DC");
    });
}

#[test]
fn a_refused_answer_is_logged_with_its_cause_and_one_that_can_be_normalised_is_forwarded() {
    let answers: &[(&'static [u8], u16, &str)] = &[
        (b"SSH-2.0-x\r\n", 502, "protocol_error:http1.unsupported_version"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", 502, "protocol_error:http1.codec_error"),
        (b"HTTP/1.1 200 OK\r\nX A: b\r\n\r\n", 502, "protocol_error:http1.invalid_header"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            502,
            "protocol_error:http1.invalid_content_length:content-length",
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            502,
            "protocol_error:http1.unexpected_101",
        ),
        (b"HTTP/1.1 200 OK\nA: b\r\n c\nContent-Length: 2\n\nok", 200, "via_upstream"),
    ];
    for (answer, status, details) in answers {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        run(async {
            let app = App::raw(async |_, mut socket: tokio::net::TcpStream| {
                let _ = socket.read(&mut [0; 1024]).await;
                let _ = socket.write_all(answer).await;
                // The side that dialled closes the connection.
                let _ = socket.read(&mut [0; 1024]).await;
            })
            .await;
            let telemetry = Telemetry::in_file(&path);
            let sidecar = Sidecar::telling(app.address, AppProtocol::Http, Limits::default(), telemetry);
            let mut client = sidecar.connect().await;
            assert_eq!(client.get("/").await.0, *status, "{}", answer.escape_ascii());
            let read = || {
                sidecar.env.telemetry.flush();
                std::fs::read_to_string(&path).unwrap()
            };
            until(|| !read().is_empty()).await;
            let line: Value = serde_json::from_str(&read()).unwrap();
            let told = line["response_code_details"].as_str().unwrap();
            assert!(told.contains(details), "{told} for {}", answer.escape_ascii());
        });
    }
}
