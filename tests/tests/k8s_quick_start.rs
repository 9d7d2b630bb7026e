//! The quick start as its readers run it: the commands of README.md and of docs/kubernetes.md, verbatim, on a cluster
//! without a previous installation.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use tidegate_tests::helm;
use tidegate_tests::wait;
use tidegate_tests::walkthrough::{Shell, commands, section};

const IMAGES: [&str; 6] = ["sidecar", "controller", "cert-manager", "injector", "httpbin", "curl"];

/// Results that the page promises: the page's words, the command, a part of its output.
const PROMISES: [(&str, &str, &str); 3] = [
    ("The Pod shows `2/2`", "kubectl get pods -n httpbin", " 2/2 "),
    ("the connection is reset and curl fails", "! kubectl exec", "Connection reset by peer"),
    ("It prints `200`", "kubectl exec", "200\n"),
];

/// Lists the names of all objects of an installation, the example and its user's namespaces.
const EVERYTHING: &str = "kubectl get -A -o name crds,clusterroles,clusterrolebindings,namespaces,pods,secrets,\
    mutatingwebhookconfigurations,validatingwebhookconfigurations";

/// Commands within sentences.
fn mentioned(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|words| words.starts_with("tidegate ") || words.starts_with("kubectl "))
}

#[test]
fn the_quick_start_runs_as_written_and_shows_what_it_promises() {
    let (readme, page) = (helm::read("README.md"), helm::read("docs/kubernetes.md"));
    let (short, whole) = (commands(section(&readme, "## On Kubernetes")), commands(&page));
    assert!(short.len() > 5 && whole.starts_with(&short), "README.md begins as the page does: {short:#?}");
    let cleanup = commands(section(&page, "## Clean up"));
    let rest = whole[short.len()..].strip_suffix(&cleanup[..]).unwrap();

    let shell = Shell::start("quick", &IMAGES);
    let mut kept = PROMISES.map(|_| false);
    for line in short.iter().chain(rest) {
        let shown = shell.run(line);
        for ((words, command, text), kept) in PROMISES.iter().zip(&mut kept) {
            if line.starts_with(command) {
                assert!(page.contains(words), "the page no longer says {words:?}");
                assert!(shown.contains(text), "{line}: {shown}");
                *kept = true;
            }
        }
    }
    assert_eq!(kept, PROMISES.map(|_| true), "{PROMISES:?}");
    assert!(section(&readme, "## On Kubernetes").contains(PROMISES[0].0));

    let further: Vec<_> = mentioned(section(&page, "## Next")).collect();
    assert!(further.len() >= 3, "{further:?}");
    for line in further {
        let shown = shell.run(line);
        assert!(shown.contains("httpbin"), "{line}: {shown}");
    }

    assert!(page.contains("A change or deletion of the policy applies to the next connection."));
    shell.run("kubectl delete -f examples/kubernetes/policy.yaml");
    let refused = rest.iter().find(|line| line.starts_with("! kubectl exec")).unwrap();
    wait::until_true("without the policy nothing comes in", Duration::from_secs(30), || {
        shell.try_run(refused).is_ok()
    });

    for line in cleanup {
        shell.run(line);
    }
    wait::until_true("nothing is left", Duration::from_secs(60), || {
        let names = shell.run(EVERYTHING);
        !["tidegate", "openservicemesh", "httpbin"].iter().any(|word| names.contains(word))
    });
}
