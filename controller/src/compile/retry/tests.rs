use std::time::Duration;

use tidegate_core::TrustDomain;
use tidegate_core::policy::InboundPolicy;

use crate::compile::status::{self, CurrentStatus, StatusScope};
use crate::compile::workload;
use crate::index::{Affected, Index};
use crate::object::{Change, Kind, ObjectKey, ObjectName};
use crate::source::folder::FolderSource;
use crate::testing::{HTTPBIN, PERMISSIVE, cluster_index, index};

mod naive;

fn policy(index: &Index) -> InboundPolicy {
    let pod = index.pod(&ObjectName::new("httpbin", "httpbin-1")).unwrap();
    workload(index, pod, &TrustDomain::default()).unwrap()
}

/// A Retry of namespace `httpbin`; `policy` is a YAML map without its brackets.
fn retry(name: &str, more: &str, account: &str, services: &[&str], policy: &str) -> String {
    let destination = |service: &&str| {
        let (namespace, name) = service.split_once('/').unwrap();
        format!("{{kind: Service, name: {name}, namespace: {namespace}}}")
    };
    let destinations: Vec<_> = services.iter().map(destination).collect();
    format!(
        "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: Retry\n\
         metadata: {{{more}name: {name}, namespace: httpbin}}\nspec:\n  \
         source: {{kind: ServiceAccount, name: {account}, namespace: httpbin}}\n  \
         destinations: [{}]\n  retryPolicy: {{{policy}}}\n",
        destinations.join(", ")
    )
}

/// The Services whose requests are retried, each with the object and the number of attempts after the first.
fn retried(index: &Index) -> Vec<String> {
    let one = |retry: &_| {
        let tidegate_core::ServiceRetry { origin, service, policy, .. } = retry;
        format!("{service} {} {}", origin.name, policy.attempts())
    };
    policy(index).retries.iter().map(|retry| one(retry)).collect()
}

/// The reason of the condition, and the reason in full.
fn told(index: &Index, name: &str) -> [String; 2] {
    let all = status::statuses(&StatusScope::everything(index));
    let found = all.into_iter().find(|(kind, judged)| *kind == Kind::Retry && &*judged.name.name == name);
    let status = found.unwrap_or_else(|| panic!("no {name}")).1.status;
    assert_eq!(status.current == CurrentStatus::Committed, status.condition == Some("Accepted"));
    [status.condition.unwrap().to_owned(), status.reason]
}

#[test]
fn a_service_account_s_requests_to_a_service_are_retried_as_the_oldest_object_says() {
    let older = "creationTimestamp: '2020-01-01T00:00:00Z', ";
    let newer = "creationTimestamp: '2021-01-01T00:00:00Z', ";
    let index = index(&[
        PERMISSIVE,
        HTTPBIN,
        &retry("a", newer, "httpbin", &["httpbin/httpbin", "far/away"], "retryOn: 5xx, numRetries: 2"),
        &retry("b", older, "httpbin", &["httpbin/httpbin"], "retryOn: '503', perTryTimeout: 2s"),
        &retry("c", older, "another", &["httpbin/httpbin"], "retryOn: 5xx"),
    ]);
    assert_eq!(retried(&index), ["far/away a 2", "httpbin/httpbin b 1"]);
    let timeouts = policy(&index).retries[1].timeouts;
    assert_eq!((timeouts.request(), timeouts.backend_request()), (None, Some(Duration::from_secs(2))));
    assert_eq!(
        told(&index, "a"),
        ["ReferenceNotFound", "spec.destinations: Service far/away does not exist"]
    );
    assert_eq!(told(&index, "b")[0], "Accepted");
    assert_eq!(told(&index, "c")[0], "Accepted", "of another service account");
}

#[test]
fn an_object_that_means_nothing_changes_nothing_and_says_so() {
    let service = &["httpbin/httpbin"];
    let index = index(&[
        PERMISSIVE,
        HTTPBIN,
        &retry("a", "", "httpbin", service, "retryOn: 5xx"),
        &retry("b", "", "httpbin", service, "retryOn: 5xx"),
        &retry("wrong", "", "httpbin", service, "retryOn: often"),
        &retry("foreign", "", "httpbin, namespace: other", service, "retryOn: 5xx").replacen(
            "namespace: httpbin}\n  destinations",
            "x: y}\n  destinations",
            1,
        ),
    ]);
    assert_eq!(retried(&index), ["httpbin/httpbin a 1"]);
    assert_eq!(
        told(&index, "b"),
        ["Conflicted", "spec.destinations: Retry httpbin/a is older and has Service httpbin/httpbin, too"]
    );
    assert_eq!(told(&index, "wrong")[0], "Invalid");
}

#[test]
fn a_namespace_outside_the_mesh_has_none() {
    let index = cluster_index(&[
        PERMISSIVE,
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: httpbin}",
        HTTPBIN,
        &retry("a", "", "httpbin", &["httpbin/httpbin"], "retryOn: 5xx"),
    ]);
    assert_eq!(retried(&index), Vec::<String>::new());
    assert_eq!(told(&index, "a")[0], "Invalid");
}

#[test]
fn a_change_affects_the_workloads_of_the_service_account_and_a_service_the_status() {
    let folder = tempfile::tempdir().unwrap();
    let text = retry("a", "", "httpbin", &["far/away"], "retryOn: 5xx");
    std::fs::write(folder.path().join("all.yaml"), text).unwrap();
    let mut index = index(&[PERMISSIVE, HTTPBIN]);
    let mut affected = Affected::default();
    for change in FolderSource::new(folder.path()).load().changes {
        index.apply(change, &mut affected);
    }
    assert!(
        affected.pods.contains(&ObjectName::new("httpbin", "httpbin-1"))
            && affected.policies.contains("httpbin")
    );
    let mut affected = Affected::default();
    let key = ObjectKey { kind: Kind::Service, name: ObjectName::new("far", "away") };
    index.apply(Change::Delete(key), &mut affected);
    assert!(affected.policies.contains("httpbin"));
}

#[test]
fn more_services_than_there_is_room_for_are_left_out() {
    let services: Vec<_> = (0..300).map(|number| format!("far/s{number:03}")).collect();
    let objects: Vec<_> = services
        .chunks(60)
        .enumerate()
        .map(|(i, services)| {
            let services: Vec<_> = services.iter().map(String::as_str).collect();
            retry(&format!("r{i}"), "", "httpbin", &services, "retryOn: 5xx")
        })
        .collect();
    let documents: Vec<_> =
        [PERMISSIVE, HTTPBIN].into_iter().chain(objects.iter().map(String::as_str)).collect();
    let index = index(&documents);
    assert_eq!(policy(&index).retries.len(), super::MOST_SERVICES);
}
