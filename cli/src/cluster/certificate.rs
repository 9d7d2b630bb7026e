//! `tidegate certificate`: shows the mesh's root and replaces it under load.
//!
//! The cert-manager performs the steps. Before each step this command verifies that every sidecar can take part, and
//! before the last one ([`holders`]) that no certificate under the old root is in use any more. At the end it names
//! clients outside the mesh that verify workloads by copies of the roots ([`copies`]).

mod copies;
mod holders;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use http::Method;
use serde::{Deserialize, Serialize};

use super::client::{Cluster, ClusterOptions, ShowOptions};
use super::control_plane::Part;
use super::transient::is_transient;
use crate::output::{print, print_as, table};
use crate::patience::Patience;

/// How often to check the mesh while waiting for a step.
const INTERVAL: Duration = Duration::from_secs(2);
/// The cert-manager's page about the rotation.
const ROTATION: &str = "/rotation";
/// Number of Pods that a message names.
const NAMED: usize = 10;

/// The mesh's root certificate.
#[derive(Subcommand, Debug)]
pub(crate) enum CertificateCommand {
    /// Show the roots, the step of a rotation, and the sidecars that it waits for.
    Status(ShowOptions),
    /// Replace the root in three steps: trust both, issue from the new one, drop the old one. Run again to resume.
    Rotate(RotateOptions),
}

/// Flags of `tidegate certificate rotate`.
#[derive(Args, Debug)]
pub(crate) struct RotateOptions {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Take only one step
    #[arg(long)]
    step: bool,
    /// How long to wait until a step is allowed. The last step waits until every sidecar, the control plane and the
    /// ingress controller's Secret have a certificate of the new root, which takes minutes
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Before the last step, wait until every certificate of the old root has expired, by default 24 h: for workloads
    /// that no controller knows, such as those outside the cluster
    #[arg(long)]
    wait_for_expiry: bool,
    /// Stop trusting the old root and those before it: connections that they admitted are closed, HTTP ones gracefully.
    /// By default, such connections stay open
    #[arg(long)]
    revoke: bool,
    /// Proceed without a namespace that cannot receive the new root; its sidecars are refused until it does. Repeat for
    /// more
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',')]
    without_namespace: Vec<String>,
    /// Revoke even if Secrets of type nginx.org/ca still hold only the old root
    #[arg(long, requires = "revoke")]
    ignore_copies: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// How many steps to take, how long to wait, and whether to revoke the old root.
#[derive(Clone, Debug)]
struct RotationPace {
    one_step: bool,
    timeout: Duration,
    /// `--wait-for-expiry`: the last step waits for the end of the old certificates instead of their renewal.
    waits_for_expiry: bool,
    revokes: bool,
    ignores_copies: bool,
    without: BTreeSet<String>,
}

/// The state of a rotation: `GET /rotation` of the cert-manager.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Rotation {
    /// `steady`, `trust-both` or `issue-new`.
    step: String,
    /// When the step was taken, RFC 3339.
    since: String,
    /// SHA-256 of the root that issues, over its DER, in lower-case hexadecimal.
    issuing_root: String,
    /// Roots that sidecars verify certificates by, the issuing one among them.
    trusted_roots: Vec<Root>,
    /// Roots that every sidecar must trust before the next step.
    #[serde(default)]
    required_roots: Vec<String>,
    /// Roots that were dropped and whose connections stay open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired_roots: Vec<String>,
    /// Until when certificates chain to the root that was dropped last, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bridge_ends: Option<String>,
    /// Namespaces where the roots cannot be published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unreached: Vec<UnreachedNamespace>,
    /// When certificates under a root that the next step drops have expired, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    old_certificates_end: Option<String>,
    /// Whether the cert-manager would take the next step now.
    next_allowed: bool,
    /// Whether it is allowed once all certificates are known to be under the issuing root.
    #[serde(default)]
    next_allowed_once_renewed: bool,
    /// Why the next step is not allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Why the stored root is unusable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// A namespace where the roots cannot be published, and why.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct UnreachedNamespace {
    namespace: String,
    reason: String,
}

/// A trusted root.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Root {
    /// SHA-256 of its DER, in lower-case hexadecimal.
    fingerprint: String,
    /// When it expires, RFC 3339.
    not_after: String,
}

/// What `status` prints.
#[derive(Debug, Serialize)]
struct CertificateStatus {
    #[serde(flatten)]
    rotation: Rotation,
    /// Pods whose sidecar is running.
    sidecars: usize,
    /// Pods whose sidecar is not ready for the next step, and why.
    left_behind: Vec<String>,
    /// Holders without a certificate under the issuing root. Filled only before the last step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_renewed: Vec<String>,
}

/// What a look at the mesh has shown.
#[derive(Debug)]
enum StepReadiness {
    Ready(NextStep),
    /// The next step has to wait for something.
    NotYet {
        rotation: Rotation,
        obstacle: String,
    },
}

/// A step that may be taken.
#[derive(Debug)]
struct NextStep {
    /// The cert-manager's Pod that takes it.
    pod: String,
    rotation: Rotation,
    /// Whether all certificates are known to be under the issuing root.
    is_renewed: bool,
    /// Namespaces that it skips.
    without: BTreeSet<String>,
}

/// Runs the command.
pub(crate) async fn run(command: CertificateCommand) -> anyhow::Result<ExitCode> {
    match command {
        CertificateCommand::Status(options) => {
            let cluster = options.cluster.connect().await?;
            print_as(options.output, &status(&cluster).await?, text)
        }
        CertificateCommand::Rotate(options) => {
            let cluster = options.cluster.connect().await?;
            let rotation: Rotation = cluster.ask(Part::CertManager, ROTATION).await?;
            if !options.yes {
                confirm(&cluster, &rotation, options.step)?;
            }
            let pace = RotationPace {
                one_step: options.step,
                timeout: options.timeout,
                waits_for_expiry: options.wait_for_expiry,
                revokes: options.revoke,
                ignores_copies: options.ignore_copies,
                without: options.without_namespace.into_iter().collect(),
            };
            let last = rotate(&cluster, pace).await?;
            print(format!("{last}\n").as_bytes())
        }
    }
}

/// Reads the state of the rotation and who is not ready for its next step.
async fn status(cluster: &Cluster) -> anyhow::Result<CertificateStatus> {
    let rotation: Rotation = cluster.ask(Part::CertManager, ROTATION).await?;
    let sidecars = cluster.meshed_pods(None).await?.into_iter().filter(|pod| pod.is_started).count();
    let none = BTreeSet::new();
    let left_behind = left_behind(cluster, &rotation, &none).await?;
    let not_renewed = if rotation.is_before_last() {
        holders::not_renewed(cluster, &rotation.issuing_root, &none).await?
    } else {
        Vec::new()
    };
    Ok(CertificateStatus { rotation, sidecars, left_behind, not_renewed })
}

/// Takes the remaining steps, or one. Returns a message about the result.
async fn rotate(cluster: &Cluster, pace: RotationPace) -> anyhow::Result<String> {
    loop {
        let taken = step(cluster, &pace).await?;
        eprintln!("{}", progress(&taken, pace.revokes));
        if taken.step == "steady" {
            match copies::notes(cluster, &taken, pace.revokes).await {
                Ok(notes) => notes.iter().for_each(|note| eprintln!("{note}")),
                // The root has been replaced anyway.
                Err(error) => eprintln!("cannot look for clients with copies of the roots: {error:#}"),
            }
            return Ok(format!("The root of mesh {} is {}", cluster.mesh_name, taken.issuing_root));
        }
        if pace.one_step {
            return Ok(format!("Step taken: {}. Run `tidegate certificate rotate` to continue", taken.step));
        }
    }
}

/// Waits until all sidecars are ready for the next step, and takes it. A look that fails for a reason that may pass is
/// repeated, because the CA may restart meanwhile.
async fn step(cluster: &Cluster, pace: &RotationPace) -> anyhow::Result<Rotation> {
    let mut patience = Patience::new(pace.timeout, INTERVAL);
    loop {
        match look(cluster, pace).await {
            Ok(StepReadiness::Ready(next)) => return next.take(cluster, pace).await,
            Ok(StepReadiness::NotYet { rotation, obstacle }) => {
                give_up(&rotation, &obstacle, pace, patience.is_over())?;
                patience.say(rotation.step, obstacle);
            }
            Err(error) if is_transient(&error) && !patience.is_over() => {
                patience.say("a failed look", format_args!("an answer: {error:#}"));
            }
            Err(error) if is_transient(&error) => {
                return Err(error.context(format!(
                    "no answer within {:?}; run `tidegate certificate rotate` again to continue",
                    pace.timeout
                )));
            }
            Err(error) => return Err(error),
        }
        patience.pause().await;
    }
}

/// Finds out whether the next step may be taken. Only reads.
async fn look(cluster: &Cluster, pace: &RotationPace) -> anyhow::Result<StepReadiness> {
    let (pod, rotation) = cluster.first_answer::<Rotation>(Part::CertManager, ROTATION).await?;
    if let Some(problem) = &rotation.problem {
        bail!("the stored root is unusable: {problem}");
    }
    let without = without(cluster, &rotation, pace).await?;
    let is_out = |one: &&UnreachedNamespace| !without.contains(&one.namespace);
    let obstacle = match left_behind(cluster, &rotation, &without).await? {
        pods if !pods.is_empty() => format!("sidecars are not ready: {}", enumerate(&pods)),
        _ if let Some(UnreachedNamespace { namespace, reason }) = rotation.unreached.iter().find(is_out) => {
            format!(
                "namespace {namespace} cannot receive the roots: {reason} (--without-namespace={namespace} \
                 proceeds without it)"
            )
        }
        _ if let Some(copies) = stale_copies(cluster, &rotation, pace).await? => copies,
        _ if rotation.next_allowed => {
            return Ok(StepReadiness::Ready(NextStep { pod, rotation, is_renewed: false, without }));
        }
        _ if rotation.next_allowed_once_renewed && !pace.waits_for_expiry => {
            match holders::not_renewed(cluster, &rotation.issuing_root, &without).await? {
                holders if holders.is_empty() => {
                    return Ok(StepReadiness::Ready(NextStep { pod, rotation, is_renewed: true, without }));
                }
                holders => {
                    format!("certificates of the old root are still in use: {}", enumerate(&holders))
                }
            }
        }
        _ => {
            let reason = rotation.reason.as_deref().unwrap_or("the next step is not yet allowed");
            let is_shorter = rotation.is_before_last() && !pace.waits_for_expiry;
            let or =
                if is_shorter { ", or until every holder has a certificate of the new root" } else { "" };
            format!("{reason}{or}")
        }
    };
    Ok(StepReadiness::NotYet { rotation, obstacle })
}

/// An error once it is too late to wait, or if the time left cannot be enough.
fn give_up(rotation: &Rotation, obstacle: &str, pace: &RotationPace, is_over: bool) -> anyhow::Result<()> {
    let end = rotation.old_certificates_end.as_deref();
    let is_hopeless = pace.waits_for_expiry && end.is_some_and(|end| is_after(end, pace.timeout));
    if !is_hopeless && !is_over {
        return Ok(());
    }
    let waited = if is_hopeless { String::new() } else { format!(" after {:?}", pace.timeout) };
    let end = end.map(|end| format!(", at the latest after {end}")).unwrap_or_default();
    bail!(
        "the rotation stays at step {}{waited}: {obstacle}. Nothing is broken meanwhile; run `tidegate \
         certificate rotate` again to continue{end}",
        rotation.step
    );
}

/// Namespaces that the next step skips: those that were named, and those that cannot receive the roots and have no
/// running sidecar.
async fn without(
    cluster: &Cluster,
    rotation: &Rotation,
    pace: &RotationPace,
) -> anyhow::Result<BTreeSet<String>> {
    let mut without = pace.without.clone();
    if rotation.unreached.is_empty() {
        return Ok(without);
    }
    let pods = cluster.meshed_pods(None).await?;
    for UnreachedNamespace { namespace, .. } in &rotation.unreached {
        if !pods.iter().any(|pod| pod.is_started && pod.namespace == *namespace) {
            without.insert(namespace.clone());
        }
    }
    Ok(without)
}

/// Copies of the roots that block the last step: if it revokes, their clients would be cut off.
async fn stale_copies(
    cluster: &Cluster,
    rotation: &Rotation,
    pace: &RotationPace,
) -> anyhow::Result<Option<String>> {
    if !rotation.is_before_last() || !pace.revokes || pace.ignores_copies {
        return Ok(None);
    }
    let stale = copies::stale(cluster, rotation).await?;
    Ok((!stale.is_empty()).then(|| format!("{} (--ignore-copies revokes anyway)", enumerate(&stale))))
}

impl NextStep {
    /// Takes it. A step that was sent and not answered may have been taken, so it is not sent again.
    async fn take(self, cluster: &Cluster, pace: &RotationPace) -> anyhow::Result<Rotation> {
        let Self { pod, rotation, is_renewed, without } = self;
        for UnreachedNamespace { namespace, reason } in
            rotation.unreached.iter().filter(|one| without.contains(&one.namespace))
        {
            eprintln!("proceeding without namespace {namespace}, which cannot receive the roots: {reason}");
        }
        let mut query: Vec<String> = Vec::new();
        query.extend(is_renewed.then(|| "renewed=true".to_owned()));
        query.extend(pace.revokes.then(|| "revoke=true".to_owned()));
        let names: Vec<&str> = without.iter().map(String::as_str).collect();
        query.extend((!names.is_empty()).then(|| format!("without={}", names.join(","))));
        let mark = if query.is_empty() { "" } else { "?" };
        let path = format!("/rotation/next{mark}{}", query.join("&"));
        let body = cluster.admin(Method::POST, &cluster.control_plane, &pod, &path).await?;
        serde_json::from_slice(&body).with_context(|| format!("the answer of {path}"))
    }
}

/// Pods with a running sidecar that is not known to trust the roots that the next step builds on, with the reason.
async fn left_behind(
    cluster: &Cluster,
    rotation: &Rotation,
    without: &BTreeSet<String>,
) -> anyhow::Result<Vec<String>> {
    let pods = cluster.meshed_pods(None).await?;
    if pods.is_empty() {
        return Ok(Vec::new());
    }
    let known = cluster.known_sidecars().await?;
    let needed = rotation.needed_roots();
    let mut found = Vec::new();
    for pod in pods.iter().filter(|pod| pod.is_started && !without.contains(&pod.namespace)) {
        let reason = match known.connected(pod).map(|stream| &stream.trusted_roots) {
            None => "not connected to a controller",
            Some(None) => "has not reported the roots it trusts",
            Some(Some(roots)) if needed.iter().all(|root| roots.contains(root)) => continue,
            Some(Some(_)) => "does not trust every root yet",
        };
        found.push(format!("{} ({reason})", pod.key()));
    }
    if !found.is_empty() && !known.silent.is_empty() {
        found.extend(known.silent.iter().cloned());
    }
    Ok(found)
}

impl Rotation {
    /// Whether the next step drops a root.
    fn is_before_last(&self) -> bool {
        self.step == "issue-new"
    }

    /// The roots that sidecars must trust before the next step; all that are trusted, for a cert-manager that does
    /// not list them.
    fn needed_roots(&self) -> Vec<String> {
        if self.required_roots.is_empty() {
            return self.trusted_roots.iter().map(|root| root.fingerprint.clone()).collect();
        }
        self.required_roots.clone()
    }
}

/// Asks on the terminal; an error without a terminal, so that a script has to say `--yes`.
fn confirm(cluster: &Cluster, rotation: &Rotation, one_step: bool) -> anyhow::Result<()> {
    ensure!(io::stdin().is_terminal(), "standard input is not a terminal: confirm with --yes");
    let what = match (one_step, rotation.step.as_str()) {
        (true, _) => "Take the next step of the rotation of".to_owned(),
        (false, "steady") => "Replace".to_owned(),
        (false, step) => format!("Continue, from step {step}, to replace"),
    };
    eprint!("{what} the root certificate of mesh {} at {}? [y/N] ", cluster.mesh_name, cluster.server);
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "not confirmed; nothing was changed");
    Ok(())
}

/// One line about the step that was taken.
fn progress(rotation: &Rotation, revokes: bool) -> String {
    let (number, what) = match rotation.step.as_str() {
        "trust-both" => (1, "both roots are trusted"),
        "issue-new" => (2, "the new root issues; the old one is still trusted"),
        _ if revokes => (3, "the old root is revoked"),
        _ => (3, "the old root is dropped; connections that it admitted stay open"),
    };
    format!("step {number} of 3: {what}")
}

/// The first names, and the number of the others, separated by commas.
fn enumerate(holders: &[String]) -> String {
    let named: Vec<&str> = holders.iter().take(NAMED).map(String::as_str).collect();
    let more = match holders.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", named.join(", "))
}

/// Whether an RFC 3339 time is more than `wait` away.
fn is_after(time: &str, wait: Duration) -> bool {
    humantime::parse_rfc3339_weak(time)
        .is_ok_and(|time| time.duration_since(SystemTime::now()).is_ok_and(|left| left > wait))
}

/// The answer as text: the step, the roots, and who is left behind.
fn text(status: &CertificateStatus) -> String {
    let rotation = &status.rotation;
    let mut text = format!("step       {} since {}\n", rotation.step, rotation.since);
    text += &match (&rotation.reason, rotation.next_allowed) {
        (_, true) => "next step  allowed\n".to_owned(),
        (Some(reason), false) => format!("next step  not yet: {reason}\n"),
        (None, false) => "next step  not yet\n".to_owned(),
    };
    if let Some(problem) = &rotation.problem {
        text += &format!("problem    {problem}\n");
    }
    text += &format!(
        "sidecars   {}, {} not ready for the next step\n\n",
        status.sidecars,
        status.left_behind.len()
    );
    for UnreachedNamespace { namespace, reason } in &rotation.unreached {
        text += &format!("unreached  namespace {namespace}: {reason}\n");
    }
    let rows: Vec<Vec<String>> = rotation
        .trusted_roots
        .iter()
        .map(|root| {
            let issues = if root.fingerprint == rotation.issuing_root { "yes" } else { "no" };
            vec![root.fingerprint.clone(), root.not_after.clone(), issues.to_owned()]
        })
        .collect();
    text += &table(&["TRUSTED ROOT", "ENDS", "ISSUES"], &rows);
    if !status.left_behind.is_empty() {
        text.push('\n');
        text.extend(status.left_behind.iter().map(|pod| format!("{pod}\n")));
    }
    if !status.not_renewed.is_empty() {
        text.push_str("\nstill holding a certificate of the old root:\n");
        text.extend(status.not_renewed.iter().map(|holder| format!("{holder}\n")));
    }
    text
}

#[cfg(test)]
mod tests;
