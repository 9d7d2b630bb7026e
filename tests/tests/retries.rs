//! Retries, from a file to what an app gets of a Service that fails, through two sidecars.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::caller::CallerMesh;
use tidegate_tests::mesh::{Mesh, Options};
use tidegate_tests::wait::{self, SOON};

/// An app of which every request fails but each `good`th.
fn unsteady(mesh: &Mesh, good: usize) -> App {
    let count = Arc::new(AtomicUsize::new(0));
    App::start(mesh.app_address(), move |conversation| {
        while conversation.request()?.is_some() {
            let is_good = count.fetch_add(1, Ordering::Relaxed) % good == good - 1;
            let status = if is_good { "200 OK" } else { "503 Service Unavailable" };
            conversation.write(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())?;
        }
        Ok(())
    })
}

/// A Retry of the caller's service account for the Service that it calls.
fn retry(name: &str, policy: Value) -> Value {
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1",
        "kind": "Retry",
        "metadata": {"name": name, "namespace": "httpbin"},
        "spec": {
            "source": {"kind": "ServiceAccount", "name": "caller", "namespace": "httpbin"},
            "destinations": [{"kind": "Service", "name": "called", "namespace": "httpbin"}],
            "retryPolicy": policy,
        },
    })
}

fn policy(on: &str, retries: u32) -> Value {
    json!({"retryOn": on, "numRetries": retries, "retryBackoffBaseInterval": "1ms"})
}

/// Applies a Retry, and waits until the caller's sidecar has it.
fn apply(story: &mut CallerMesh, retries: &[Value]) {
    story.mesh.apply("retries", retries);
    let expected = retries.first().map(|retry| retry["spec"]["retryPolicy"]["numRetries"].clone());
    wait::until_true("the caller's sidecar has the Retry", SOON, || {
        let config = story.caller.admin_json("/config");
        config["policy"]["retries"][0]["policy"]["attempts"] == expected.clone().unwrap_or_default()
    });
}

fn post(story: &CallerMesh, body: &str) -> u16 {
    let request = format!("POST / HTTP/1.1\r\nhost: called\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    story.app().connect().unwrap().request(request.as_bytes()).unwrap().status()
}

#[test]
fn a_failed_request_is_sent_again_as_the_object_of_its_client_says() {
    let mut story = CallerMesh::start(Options::default());
    let app = unsteady(&story.mesh, 3);
    assert_eq!(post(&story, "body"), 503, "without a Retry");
    apply(&mut story, &[retry("a", policy("503", 2))]);
    app.forget();
    assert_eq!(post(&story, "body"), 200, "the third, of which one was before");
    apply(&mut story, &[retry("a", policy("5xx", 3))]);
    app.forget();
    assert_eq!(post(&story, "hello"), 200);
    let requests = app.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| request.body == b"hello"));
    // What is not listed is passed on.
    apply(&mut story, &[retry("a", policy("500", 4))]);
    assert_eq!(post(&story, "body"), 503);
    apply(&mut story, &[]);
    app.forget();
    assert_eq!(post(&story, "body"), 503);
    assert_eq!(app.requests().len(), 1);
}

#[test]
fn an_attempt_that_takes_too_long_is_followed_by_another_one() {
    let mut story = CallerMesh::start(Options::default());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let _app = App::start(story.mesh.app_address(), move |conversation| {
        while conversation.request()?.is_some() {
            if counted.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
                conversation.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
            }
        }
        Ok(())
    });
    let mut slow = policy("reset", 1);
    slow["perTryTimeout"] = "200ms".into();
    apply(&mut story, &[retry("a", slow)]);
    assert_eq!(post(&story, "body"), 200);
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[test]
fn a_service_of_which_half_of_the_requests_fail_gets_a_fifth_more_of_them() {
    const REQUESTS: usize = 600;
    let mut story = CallerMesh::start(Options::default());
    let app = unsteady(&story.mesh, 2);
    apply(&mut story, &[retry("a", policy("5xx", 5))]);
    let mut connection = story.app().connect().unwrap();
    let since = std::time::Instant::now();
    for _ in 0..REQUESTS {
        connection.get("/").unwrap();
    }
    let attempts = app.requests().len();
    // Ten a second are allowed whatever the share.
    let most = REQUESTS + REQUESTS / 5 + 10 * (since.elapsed().as_secs() as usize + 2);
    assert!((REQUESTS + 1..=most).contains(&attempts), "{attempts} of at most {most}");
}

#[test]
fn the_status_says_what_is_wrong_and_the_example_is_in_force() {
    let mut story = CallerMesh::start(Options::default());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let example = std::fs::read_to_string(root.join("examples/retries/bookbuyer.yaml")).unwrap();
    story.mesh.apply_text("example", &example);
    let mut foreign = retry("foreign", policy("5xx", 1));
    foreign["spec"]["source"]["namespace"] = "other".into();
    story.mesh.apply("retries", &[retry("a", policy("5xx", 1)), foreign]);
    let policies = story.mesh.controller.admin_json("/policies");
    let status = |name: &str| {
        let (namespace, name) = name.split_once('/').unwrap();
        let is_it = |policy: &&Value| {
            policy["kind"] == "Retry" && policy["namespace"] == namespace && policy["name"] == name
        };
        let found = policies.as_array().unwrap().iter().find(is_it);
        found.unwrap_or_else(|| panic!("no {name} in {policies}"))["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(status("httpbin/a"), "successfully committed by the system");
    let foreign = status("httpbin/foreign");
    assert!(foreign.contains("is not the namespace of this object, httpbin"), "{foreign}");
    assert_eq!(
        status("bookbuyer/bookstore"),
        "spec.destinations: Service bookstore/bookstore does not exist"
    );
}
