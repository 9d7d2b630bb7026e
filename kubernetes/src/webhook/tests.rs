use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use http::{Method, StatusCode};
use json_patch::Patch;
use serde_json::{Value, json};
use tidegate_runtime::grpc::ConnectionLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::testing::{AdmissionClient, review, whole};
use super::*;

/// Patches objects called `patch`, refuses those called `no`, and warns about all.
struct ByName;

impl AdmissionReviewer for ByName {
    fn review<'a>(&'a self, request: &'a AdmissionRequest<'a>) -> BoxFuture<'a, Verdict> {
        let verdict = match request.name() {
            "patch" => {
                let patch: Patch =
                    serde_json::from_value(json!([{"op": "add", "path": "/a", "value": 1}])).unwrap();
                Verdict::patched(patch)
            }
            "no" => Verdict::denied("spec.a: no"),
            _ => Verdict::allowed(),
        };
        let object: Value = request.object().unwrap().unwrap();
        let warning =
            format!("{} {:?} {}", request.kind().kind, request.operation(), object["metadata"]["name"]);
        Box::pin(async move { verdict.with_warnings([warning]) })
    }
}

/// Answers with a patch of 100 KB.
struct LongAnswers;

impl AdmissionReviewer for LongAnswers {
    fn review<'a>(&'a self, _: &'a AdmissionRequest<'a>) -> BoxFuture<'a, Verdict> {
        let value = "x".repeat(100_000);
        let patch = serde_json::from_value(json!([{"op": "add", "path": "/a", "value": value}])).unwrap();
        Box::pin(std::future::ready(Verdict::patched(patch)))
    }
}

/// Does not end the review of an object called `large` before one of another name has begun, and keeps its thread meanwhile.
#[derive(Default)]
struct LargeAfterSmall {
    small: Mutex<bool>,
    begun: Condvar,
}

impl AdmissionReviewer for LargeAfterSmall {
    fn review<'a>(&'a self, request: &'a AdmissionRequest<'a>) -> BoxFuture<'a, Verdict> {
        let mut small = self.small.lock().unwrap();
        if request.name() == "large" {
            let waited = self.begun.wait_timeout_while(small, Duration::from_secs(10), |small| !*small);
            assert!(!waited.unwrap().1.timed_out(), "the large object keeps the small one waiting");
        } else {
            *small = true;
            self.begun.notify_all();
        }
        Box::pin(std::future::ready(Verdict::allowed()))
    }
}

fn object(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}})
}

async fn webhook() -> AdmissionClient {
    AdmissionClient::start("/mutate", Arc::new(ByName)).await
}

fn short() -> WebhookLimits {
    WebhookLimits {
        linger: Duration::ZERO,
        request_timeout: Duration::from_secs(2),
        ..WebhookLimits::default()
    }
}

#[tokio::test]
async fn verdicts_come_back_as_the_api_server_reads_them() {
    let webhook = webhook().await;
    let ask = async |name: &str| webhook.ask(&review("pods", "CREATE", "shop", &object(name))).await;
    ask("yes").await;
    assert_eq!(
        ask("patch").await,
        json!({
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "allowed": true,
            "patchType": "JSONPatch",
            "patch": "W3sib3AiOiJhZGQiLCJwYXRoIjoiL2EiLCJ2YWx1ZSI6MX1d",
            "warnings": ["Pod Create \"patch\""],
        })
    );
    assert_eq!(
        ask("no").await,
        json!({
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "allowed": false,
            "status": {"code": 403, "message": "spec.a: no"},
            "warnings": ["Pod Create \"no\""],
        })
    );
    let page = webhook.metrics.encode();
    for result in ["allowed", "patched", "denied"] {
        assert!(page.contains(&format!("tidegate_admissions_total{{result=\"{result}\"}} 1\n")), "{page}");
    }
    assert!(page.contains("tidegate_admission_duration_seconds_count 3\n"), "{page}");
}

#[tokio::test]
async fn a_large_object_does_not_keep_the_thread_that_small_ones_need() {
    let webhook = AdmissionClient::start("/mutate", Arc::new(LargeAfterSmall::default())).await;
    let mut large = object("large");
    large["spec"] = json!({"volumes": vec![json!({}); 100_000]});
    let (large, small) =
        (review("pods", "CREATE", "shop", &large), review("pods", "CREATE", "shop", &object("small")));
    let (large, small) = tokio::join!(webhook.ask(&large), webhook.ask(&small));
    assert_eq!((&large["allowed"], &small["allowed"]), (&json!(true), &json!(true)));
}

#[tokio::test]
async fn what_is_not_an_admission_request_is_refused_by_status_and_counted() {
    let webhook = webhook().await;
    let good = review("pods", "CREATE", "shop", &object("yes")).to_string();
    let deep = format!("{{\"request\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let other_version = good.replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1");
    for (content_type, body, status) in [
        ("text/plain", good.clone(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("application/jsonp", good.clone(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("application/json", String::new(), StatusCode::BAD_REQUEST),
        ("application/json", "{}".to_owned(), StatusCode::BAD_REQUEST),
        ("application/json", deep, StatusCode::BAD_REQUEST),
        ("application/json", other_version, StatusCode::BAD_REQUEST),
        ("application/json", good.replace("CREATE", "STEAL"), StatusCode::BAD_REQUEST),
        ("application/json", "x".repeat((4 << 20) + 1), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let request = webhook.request(content_type, body);
        let (got, reason) = whole(webhook.connect().await.send_request(request).await.unwrap()).await;
        assert_eq!(got, status, "{reason}");
    }
    let mut request = webhook.request("application/json", good.clone());
    *request.method_mut() = Method::PUT;
    let answer = webhook.connect().await.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    let mut request = webhook.request("application/json; charset=utf-8", good);
    *request.uri_mut() = "/../etc/passwd".parse().unwrap();
    let answer = webhook.connect().await.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(webhook.metrics.encode().contains("tidegate_admissions_total{result=\"invalid\"} 10\n"));
}

#[tokio::test]
async fn a_hundred_mebibytes_are_cut_off_and_cost_no_more_than_the_limit() {
    let webhook = webhook().await;
    let request = webhook.request("application/json", vec![b' '; 100 << 20]);
    match webhook.connect().await.send_request(request).await {
        Ok(answer) => assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE),
        // The server is gone before all is sent.
        Err(error) => assert!(!error.is_user(), "{error}"),
    }
    webhook.ask(&review("pods", "CREATE", "shop", &object("yes"))).await;
}

#[tokio::test]
async fn all_bodies_together_take_no_more_memory_than_they_may() {
    let limits = WebhookLimits { all_body_bytes: 1000, ..short() };
    let webhook = AdmissionClient::with_limits("/mutate", Arc::new(ByName), limits).await;
    webhook.credentials.send_replace(Some(webhook.ca.issue(1)));
    let request = webhook.request("application/json", vec![b' '; 1001]);
    let (status, reason) = whole(webhook.connect().await.send_request(request).await.unwrap()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reason, "requests of 127.0.0.1 hold too much memory: 1001 bytes more were not free in time\n");
    assert!(webhook.metrics.encode().contains("tidegate_admissions_total{result=\"busy\"} 1\n"));
    let request = webhook.request("application/json", vec![b' '; 900]);
    let answer = webhook.connect().await.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "what the first one took is free again");
}

#[tokio::test]
async fn unfinished_bodies_hold_up_those_of_their_own_address_alone_and_until_they_end() {
    let limits = WebhookLimits {
        all_body_bytes: 100_000,
        request_timeout: Duration::from_secs(600),
        linger: Duration::ZERO,
        ..WebhookLimits::default()
    };
    let webhook = AdmissionClient::with_limits("/mutate", Arc::new(ByName), limits).await;
    webhook.credentials.send_replace(Some(webhook.ca.issue(1)));
    let attacker = "127.0.0.2".parse().unwrap();
    let mut unfinished = Vec::new();
    for _ in 0..40 {
        let mut connection = webhook.tls_from(attacker).await.unwrap();
        let head = "POST /mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                    content-length: 10000\r\n\r\n{";
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.flush().await.unwrap();
        unfinished.push(connection);
    }
    let create = review("pods", "CREATE", "shop", &object("yes"));
    for _ in 0..26 {
        assert_eq!(webhook.ask(&create).await["allowed"], true);
    }
    let mut own = webhook.connect_from(attacker).await.unwrap();
    let waiting = own.send_request(webhook.request("application/json", create.to_string()));
    let mut waiting = std::pin::pin!(waiting);
    tokio::select! {
        answer = &mut waiting => panic!("{answer:?}"),
        // The server has had its chance to answer it, too.
        _ = webhook.ask(&create) => {}
    }
    drop(unfinished);
    assert_eq!(waiting.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn an_answer_that_is_not_read_holds_its_memory_and_its_place_no_longer_than_it_may() {
    let limits = WebhookLimits { all_body_bytes: 400_000, idle_timeout: Duration::from_secs(2), ..short() };
    let webhook = AdmissionClient::with_limits("/mutate", Arc::new(LongAnswers), limits).await;
    webhook.credentials.send_replace(Some(webhook.ca.issue(1)));
    let create = review("pods", "CREATE", "shop", &object("yes")).to_string();
    let mut silent = webhook.tls_from("127.0.0.2".parse().unwrap()).await.unwrap();
    // More requests than the kernel has room for answers; what is buffered of the last one goes with the connection.
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        create.len()
    );
    let flood = async {
        loop {
            silent.write_all(format!("{head}{create}").as_bytes()).await?;
        }
    };
    let ended: std::io::Result<()> = flood.await;
    ended.unwrap_err();
    webhook.ask(&review("pods", "CREATE", "shop", &object("yes"))).await;
}

#[tokio::test]
async fn what_is_long_in_a_request_comes_back_and_is_logged_by_its_beginning() {
    let webhook = webhook().await;
    let long = "x".repeat(1 << 20);
    let mut request = review("pods", "CREATE", "shop", &object("yes"));
    request["request"]["name"] = json!(long);
    let answer = webhook.ask(&request).await;
    assert_eq!(answer["allowed"], true);
    request["request"]["uid"] = json!(long);
    let request = webhook.request("application/json", request.to_string());
    let (status, reason) = whole(webhook.connect().await.send_request(request).await.unwrap()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(reason.contains("request.uid is longer than 128 bytes"), "{reason}");
    let good = review("pods", "CREATE", "shop", &object("yes")).to_string();
    let request = webhook.request("application/json", good.replace("CREATE", &long));
    let (status, reason) = whole(webhook.connect().await.send_request(request).await.unwrap()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(reason.len() < 10_000, "{} bytes", reason.len());

    let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u", "operation": "CREATE", "name": long, "namespace": long,
        "kind": {"group": "", "version": "v1", "kind": long},
    }})
    .to_string();
    let request = AdmissionRequest::parse(body.as_bytes()).unwrap();
    let beginning = format!("{}…", &long[..253]);
    assert_eq!((request.name(), request.namespace()), (&beginning[..], &beginning[..]));
    assert_eq!(request.kind().kind, beginning);
    let verdict = Verdict::denied(&long).with_warnings(vec![long.clone(); 100]);
    let response = review::ReviewResponse::new("u", &verdict).unwrap();
    let answer = serde_json::to_value(&response).unwrap();
    assert_eq!(answer["response"]["status"]["message"], long[..8192]);
    let warnings = answer["response"]["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 64);
    assert!(warnings.iter().all(|warning| *warning == long[..8192]));
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    let webhook = AdmissionClient::with_limits("/mutate", Arc::new(ByName), short()).await;
    webhook.credentials.send_replace(Some(webhook.ca.issue(1)));
    let mut silent = TcpStream::connect(webhook.address).await.unwrap();
    let mut idle = webhook.connect().await;
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0, "no handshake came");
    // Ready means that the connection is usable; an error that it is closed.
    while idle.ready().await.is_ok() && !idle.is_closed() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn one_address_cannot_take_every_connection() {
    let limits = WebhookLimits {
        connections: ConnectionLimits { all: 100, per_address: 2 },
        ..WebhookLimits::default()
    };
    let webhook = AdmissionClient::with_limits("/mutate", Arc::new(ByName), limits).await;
    webhook.credentials.send_replace(Some(webhook.ca.issue(1)));
    let ask =
        || webhook.request("application/json", review("pods", "CREATE", "shop", &object("yes")).to_string());
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut connection = webhook.connect().await;
        assert_eq!(whole(connection.send_request(ask()).await.unwrap()).await.0, StatusCode::OK);
        kept.push(connection);
    }
    assert!(webhook.try_connect().await.is_err());
    drop(kept.pop());
    let retry = async {
        loop {
            if let Ok(mut connection) = webhook.try_connect().await {
                break connection.send_request(ask()).await.unwrap().status();
            }
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), retry).await, Ok(StatusCode::OK));
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_the_next_connection() {
    let mut webhook = webhook().await;
    let request = review("pods", "CREATE", "shop", &object("yes"));
    webhook.ask(&request).await;
    // Of another root: only who sees the new one can connect.
    let other = testing::WebhookCa::new();
    webhook.credentials.send_replace(Some(other.issue(2)));
    webhook.ca = other;
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(webhook.ca.bundle.root_store())
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = rustls::pki_types::ServerName::try_from(testing::SERVER_NAME).unwrap();
    let swapped = async {
        loop {
            let stream = TcpStream::connect(webhook.address).await.unwrap();
            if connector.connect(name.clone(), stream).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), swapped).await.unwrap();
    webhook.ask(&request).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_over_renewals_on_kept_connections_or_on_new_ones() {
    const RENEWALS: u64 = 50;
    let webhook = Arc::new(webhook().await);
    let renewed = tokio::sync::watch::Sender::new(1);
    let asks = |webhook: Arc<AdmissionClient>, keeps: bool| {
        let renewals = renewed.subscribe();
        tokio::spawn(async move {
            let review = review("pods", "CREATE", "shop", &object("yes")).to_string();
            let (mut connection, mut asked) = (webhook.connect().await, 0);
            // Once more when the last one has come.
            while asked == 0 || *renewals.borrow() < RENEWALS {
                if !keeps {
                    connection = webhook.connect().await;
                }
                let request = webhook.request("application/json", review.clone());
                let answer = connection.send_request(request).await.unwrap();
                assert_eq!(whole(answer).await.0, StatusCode::OK);
                asked += 1;
                connection.ready().await.unwrap();
            }
            asked
        })
    };
    let asking = [true, false, false].map(|keeps| asks(Arc::clone(&webhook), keeps));
    let mut handled = 0;
    for generation in 2..=RENEWALS {
        webhook.credentials.send_replace(Some(webhook.ca.issue(generation)));
        renewed.send_replace(generation);
        // So that requests come between any two.
        let before = handled;
        while generation < RENEWALS && handled <= before {
            tokio::task::yield_now().await;
            handled = allowed(&webhook);
        }
    }
    let mut total = 0;
    for asked in asking {
        total += asked.await.unwrap();
    }
    assert_eq!(allowed(&webhook), total);
    assert!(total >= RENEWALS, "{total}");
}

/// How many requests were allowed.
fn allowed(webhook: &AdmissionClient) -> u64 {
    let page = webhook.metrics.encode();
    let line =
        page.lines().find_map(|line| line.strip_prefix("tidegate_admissions_total{result=\"allowed\"} "));
    line.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn it_is_ready_once_it_has_a_certificate() {
    let webhook = AdmissionClient::with_limits("/mutate", Arc::new(ByName), WebhookLimits::default()).await;
    assert_eq!(webhook.readiness.blocked_by(), ["certificate"]);
    webhook.credentials.send_replace(Some(webhook.ca.issue(1)));
    tokio::time::timeout(Duration::from_secs(30), webhook.readiness.ready()).await.unwrap();
}

#[tokio::test]
async fn a_drain_lingers_then_ends_idle_connections_and_the_listener() {
    let limits = WebhookLimits { linger: Duration::from_secs(3), ..WebhookLimits::default() };
    let webhook = AdmissionClient::with_limits("/mutate", Arc::new(ByName), limits).await;
    webhook.credentials.send_replace(Some(webhook.ca.issue(1)));
    let request = review("pods", "CREATE", "shop", &object("yes"));
    let mut idle = webhook.connect().await;
    let first = webhook.request("application/json", request.to_string());
    whole(idle.send_request(first).await.unwrap()).await;
    webhook.trigger.start();
    webhook.ask(&request).await;
    let AdmissionClient { task, address, .. } = webhook;
    tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert!(idle.is_closed() || idle.ready().await.is_err());
}
