//! `docs/troubleshooting.md` has every code of the source, and no other.
//!
//! Codes are read from the source itself: string literals, found by their context. So no second list can go out of
//! date, and the programs need not be built.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use self::source::{SourceTokens, is_code, is_message};

#[path = "troubleshooting/source.rs"]
mod source;
#[path = "troubleshooting/tokens.rs"]
mod tokens;

/// The page, by section: the backticked texts in the first column of each table.
struct TroubleshootingPage {
    sections: BTreeMap<String, Vec<BTreeSet<String>>>,
}

impl TroubleshootingPage {
    fn read() -> Self {
        let text = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
        let mut sections: BTreeMap<String, Vec<BTreeSet<String>>> = BTreeMap::new();
        let (mut heading, mut in_table) = (String::new(), false);
        for line in text.lines() {
            if let Some(title) = line.strip_prefix('#') {
                heading = title.trim_start_matches('#').trim().to_owned();
            }
            let Some(row) = line.strip_prefix("| ") else {
                // The line below the headings of a table.
                if line.starts_with("|---") {
                    in_table = true;
                    sections.entry(heading.clone()).or_default().push(BTreeSet::new());
                } else {
                    in_table = false;
                }
                continue;
            };
            if let Some(table) =
                sections.get_mut(&heading).filter(|_| in_table).and_then(|all| all.last_mut())
            {
                let cell = row.split(" |").next().unwrap();
                table.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
            }
        }
        Self { sections }
    }

    /// The first column of the section's `index`th table.
    fn table(&self, section: &str, index: usize) -> &BTreeSet<String> {
        let tables = self.sections.get(section).unwrap_or_else(|| panic!("there is no section {section:?}"));
        tables.get(index).unwrap_or_else(|| panic!("section {section:?} has {} tables", tables.len()))
    }

    /// Fails unless the table has exactly these codes.
    #[track_caller]
    fn has_exactly(&self, section: &str, index: usize, codes: &BTreeSet<String>) {
        assert!(!codes.is_empty(), "{section}: the source has no codes; has what they stand in changed?");
        let documented = self.table(section, index);
        let missing: Vec<_> = codes.difference(documented).collect();
        let unknown: Vec<_> = documented.difference(codes).collect();
        assert!(missing.is_empty(), "docs/troubleshooting.md, {section}: add {missing:#?}");
        assert!(unknown.is_empty(), "docs/troubleshooting.md, {section}: the source has no {unknown:#?}");
    }

    /// Fails unless each message contains a text of the table, and each text is part of a message.
    #[track_caller]
    fn has_part_of_each(&self, section: &str, index: usize, messages: &BTreeSet<String>) {
        assert!(!messages.is_empty(), "{section}: the source has no messages");
        let documented = self.table(section, index);
        let missing: Vec<_> = messages
            .iter()
            .filter(|message| !documented.iter().any(|part| message.contains(part.as_str())))
            .collect();
        let unknown: Vec<_> = documented
            .iter()
            .filter(|part| !messages.iter().any(|message| message.contains(part.as_str())))
            .collect();
        assert!(missing.is_empty(), "docs/troubleshooting.md, {section}: no row has a part of {missing:#?}");
        assert!(unknown.is_empty(), "docs/troubleshooting.md, {section}: no message contains {unknown:#?}");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Messages in these files.
fn messages(files: &[&str]) -> BTreeSet<String> {
    let all = files.iter().flat_map(|file| SourceTokens::read(&root().join(file)).literals());
    all.filter(|text| is_message(text)).collect()
}

#[test]
fn every_response_flag_is_explained() {
    let mut flags = SourceTokens::of_crate(&root(), "sidecar").of_method("ResponseFlag", "code");
    // The app's own answer, explained in the text.
    assert!(flags.remove("-"), "{flags:?}");
    TroubleshootingPage::read().has_exactly("Response flags", 0, &flags);
}

#[test]
fn every_reason_of_a_refusal_is_explained() {
    let reasons = SourceTokens::of_crate(&root(), "core").of_method("Reason", "code");
    TroubleshootingPage::read().has_exactly("Reasons of refusals", 0, &reasons);
}

#[test]
fn every_word_in_response_code_details_is_explained() {
    let sidecar = SourceTokens::of_crate(&root(), "sidecar");
    let limits = limits_of_requests(&sidecar);
    // Interception writes rules of iptables; keys of log lines and labels, which look like codes, are in telemetry.
    let traffic = sidecar.except(&["intercept", "telemetry", "span_export", "options", "admin", "probes"]);
    let mut details: BTreeSet<String> = traffic
        .literals()
        .filter(|text| is_code(text))
        // Single words are codes only in these places.
        .chain(traffic.arms_of_functions("details"))
        .chain(traffic.arms_of_functions("cause"))
        // The field's name follows the cause.
        .map(|text| text.split_once(':').map_or(text.clone(), |(cause, _)| cause.to_owned()))
        .collect();
    details.retain(|text| !limits.contains(text));
    let page = TroubleshootingPage::read();
    let section = "HTTP that cannot be passed on";
    let causes = page.table(section, 0);
    let (causes, others) = details.into_iter().partition(|text| causes.contains(text));
    page.has_exactly(section, 0, &causes);
    page.has_exactly("Response code details", 0, &others);
}

/// `limit` of `tidegate_requests_limited_total`.
fn limits_of_requests(sidecar: &SourceTokens) -> BTreeSet<String> {
    sidecar.arguments_of("limited").chain(sidecar.of_functions("limit")).collect()
}

#[test]
fn every_limit_in_metrics_is_explained() {
    let sidecar = SourceTokens::of_crate(&root(), "sidecar");
    let mut limits = limits_of_requests(&sidecar);
    limits.extend(sidecar.array_before("limit").into_iter().filter(|text| !text.contains(' ')));
    limits.extend(SourceTokens::of_crate(&root(), "runtime").of_functions("limit"));
    limits.extend(SourceTokens::of_crate(&root(), "controller").of_method("ShareLimit", "code"));
    TroubleshootingPage::read().has_exactly("Limits", 0, &limits);
}

#[test]
fn every_status_of_a_policy_is_explained() {
    let mut statuses = SourceTokens::of_crate(&root(), "controller").of_method("CurrentStatus", "as_str");
    statuses.extend(SourceTokens::of_crate(&root(), "cli").assigned_to("current_status"));
    let page = TroubleshootingPage::read();
    page.has_exactly("Statuses", 0, &statuses);
    page.has_part_of_each(
        "Statuses",
        1,
        &messages(&[
            "controller/src/compile.rs",
            "controller/src/compile/audit.rs",
            "controller/src/compile/ingress_backend.rs",
            "controller/src/compile/ingress_backend/rules.rs",
            "controller/src/compile/mesh_config.rs",
            "controller/src/compile/peers.rs",
            "controller/src/compile/retry.rs",
            "controller/src/compile/service_entry.rs",
            "controller/src/compile/service_entry/conflicts.rs",
            "controller/src/compile/service_entry/support.rs",
            "controller/src/compile/status.rs",
            "controller/src/compile/traffic_split.rs",
            "controller/src/compile/fault.rs",
            "controller/src/compile/traffic_split/shares.rs",
            "controller/src/compile/traffic_target.rs",
            "controller/src/compile/traffic_target/rules.rs",
            "controller/src/compile/upstream_traffic_setting.rs",
            "controller/src/index/namespaces.rs",
            "controller/src/object/unreadable.rs",
            "controller/src/admission.rs",
        ]),
    );
    let is_reason = |text: &String| {
        text.chars().all(|c| c.is_ascii_alphabetic())
            && text.starts_with(char::is_uppercase)
            && !["True", "False", "Unknown"].contains(&text.as_str())
    };
    let reasons = SourceTokens::of_crate(&root(), "cert-manager").of_functions("condition").filter(is_reason);
    page.has_exactly("Statuses", 2, &reasons.collect());
}

#[test]
fn every_finding_in_a_manifest_is_explained() {
    let mut found = messages(&[
        "crds/src/validate/egress.rs",
        "crds/src/validate/egress_proxy.rs",
        "crds/src/validate/ingress_backend.rs",
        "crds/src/validate/http_route_group.rs",
        "crds/src/validate/mesh_config.rs",
        "crds/src/validate/retry.rs",
        "crds/src/validate/traffic_split.rs",
        "crds/src/validate/service_entry.rs",
        "crds/src/validate/service_entry/endpoints.rs",
        "crds/src/validate/traffic_target.rs",
        "crds/src/validate/upstream_traffic_setting.rs",
        "crds/src/upstream_traffic_setting/read.rs",
        "crds/src/call_timeout.rs",
        "controller/src/source/folder/document.rs",
    ]);
    // Each setting without effect has a row in docs/differences.md; this page has one row for all.
    let not_acted_on = messages(&["crds/src/validate/mesh_config/not_acted_on.rs"]);
    found.extend(not_acted_on.into_iter().filter(|text| text.contains("has no effect")));
    TroubleshootingPage::read().has_part_of_each("Findings in manifests", 0, &found);
}

#[test]
fn every_error_of_explain_is_explained() {
    let source = SourceTokens::read(&root().join("controller/src/explain.rs"));
    let errors = source.except_functions(&["describe"]).literals().filter(|text| is_message(text)).collect();
    TroubleshootingPage::read().has_part_of_each("Explain", 0, &errors);
}

#[test]
fn every_refusal_of_a_pod_is_explained() {
    let files = [
        "annotations.rs",
        "decision.rs",
        "limits.rs",
        "probes.rs",
        "probes/request_target.rs",
        "refusal.rs",
        "review.rs",
        "settings.rs",
    ];
    let files: Vec<_> = files.iter().map(|file| format!("injector/src/{file}")).collect();
    let said = messages(&files.iter().map(String::as_str).collect::<Vec<_>>());
    // The notes of `tidegate inject` about Pods that are left alone have a separate table.
    let page = TroubleshootingPage::read();
    let notes = page.table("Pods that are refused", 1);
    let (left, refused) =
        said.into_iter().partition(|text| notes.iter().any(|part| text.contains(part.as_str())));
    page.has_part_of_each("Pods that are refused", 0, &refused);
    page.has_part_of_each("Pods that are refused", 1, &left);
}

#[test]
fn every_check_is_explained_and_is_in_the_list_of_the_command_line() {
    let checks = SourceTokens::of_crate(&root(), "cli").fields_of("Check", "id");
    TroubleshootingPage::read().has_exactly("Checks", 0, &checks);
    let list = fs::read_to_string(root().join("docs/cli.md")).unwrap();
    let missing: Vec<_> = checks.iter().filter(|id| !list.contains(&format!("`{id}`"))).collect();
    assert!(missing.is_empty(), "docs/cli.md: add {missing:?}");
}

#[test]
fn every_refusal_of_a_certificate_is_explained() {
    let source = SourceTokens::of_crate(&root(), "cert-manager");
    let mut reasons: BTreeSet<_> = source.of_functions("kind").collect();
    reasons.extend(source.arguments_of("refused"));
    TroubleshootingPage::read().has_exactly("Certificates", 0, &reasons);
}

#[test]
fn every_exit_status_is_explained() {
    let mut statuses = BTreeSet::from(["0", "1", "2"].map(str::to_owned));
    for name in ["cli", "sidecar", "controller", "cert-manager", "injector", "runtime", "kubernetes"] {
        // Success, failure, and clap's own code for an invalid command line; programs use no others.
        statuses.extend(SourceTokens::of_crate(&root(), name).exit_statuses());
    }
    TroubleshootingPage::read().has_exactly("Exit status", 0, &statuses);
}
