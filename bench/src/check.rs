//! Verifies that a proxy enforces its policy before it is measured: a proxy that admits every client would win
//! unfairly.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::app::{SMALL_BYTES, SMALL_FILL, SPANS_CAME};
use crate::certificates::OUTSIDE;
use crate::load::{LoadEndpoint, LoadExchange};
use crate::targets::{MtlsListener, Running};
use crate::tls::ClientIdentity;
use crate::topology::ProxyTopology;

/// Timeout from a target's start until it serves.
const START: Duration = Duration::from_secs(20);
/// Pause between two attempts.
const POLL: Duration = Duration::from_millis(20);
/// How every target of topology "ingress" refuses a client by its name.
const FORBIDDEN: &str = "status 403";

/// Waits until the admitted client gets the app's response; of an app outside the mesh, by each of its names.
pub(crate) async fn wait_until_serving(running: &mut Running, topology: ProxyTopology) -> Result<()> {
    let mut last_error = anyhow::anyhow!("no answer");
    let wait = async {
        loop {
            running.ensure_running()?;
            match served(running, topology).await {
                Ok(()) => return anyhow::Ok(()),
                Err(error) => last_error = error,
            }
            tokio::time::sleep(POLL).await;
        }
    };
    if let Ok(result) = tokio::time::timeout(START, wait).await {
        return result;
    }
    Err(last_error.context(format!("does not serve after {START:?}; its log: {}", running.log_tails())))
}

/// How clients that must not reach the app were refused.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ObservedRefusals {
    /// A client of the same CA with another name.
    pub(crate) foreign: Option<String>,
    /// A client without a certificate.
    pub(crate) nameless: Option<String>,
}

/// Checks at the listener that enforces the policy that the admitted client gets the app's response, and a client of the
/// same CA with another name and a client without a certificate get nothing of it: of an ingress, the former gets 403.
pub(crate) async fn refuses_others(running: &Running, topology: ProxyTopology) -> Result<ObservedRefusals> {
    let Some(listener) = running.guarded().filter(|_| topology != ProxyTopology::Egress) else {
        return Ok(ObservedRefusals::default());
    };
    let files = &listener.files;
    // Otherwise a listener that refuses everyone would pass.
    let admitted = endpoint(&listener, Some(&files.allowed))?;
    answered_by_app(&admitted).await.context("admitted client")?;
    let foreign =
        refusal(&endpoint(&listener, Some(&files.foreign))?).await.context("a client with another name")?;
    ensure!(
        topology == ProxyTopology::Pair || foreign == FORBIDDEN,
        "a client with another name: {foreign}, not {FORBIDDEN}"
    );
    let nameless = refusal(&endpoint(&listener, None)?).await.context("a client without a certificate")?;
    Ok(ObservedRefusals { foreign: Some(foreign), nameless: Some(nameless) })
}

/// Fails if requests are traced and the collector has got no spans: the figures would be those of a proxy without traces.
pub(crate) fn spans_have_come(running: &Running) -> Result<()> {
    let Some(collector) = &running.collector else { return Ok(()) };
    ensure!(collector.log_tail().contains(SPANS_CAME), "the collector of spans has got none");
    Ok(())
}

/// How a client is refused: by a status, or by an error of its connection. Fails if it is admitted.
async fn refusal(endpoint: &LoadEndpoint) -> Result<String> {
    let attempt = async {
        let mut client = endpoint.connect().await?;
        LoadExchange::keep_alive("/1k", SMALL_BYTES).any_answer_on(&mut client).await
    };
    match attempt.await {
        Ok(answer) if (400..500).contains(&answer.status) => Ok(format!("status {}", answer.status)),
        Ok(answer) => bail!("admitted with status {}", answer.status),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// Whether the admitted client gets the app's response.
async fn served(running: &Running, topology: ProxyTopology) -> Result<()> {
    if let (ProxyTopology::Egress, Some(files)) = (topology, &running.tls) {
        for name in OUTSIDE {
            answered_by_app(&LoadEndpoint::tls(running.address, &files.ca, name, None, &[])?).await?;
        }
        return Ok(());
    }
    let endpoint = match (&running.tls, running.guarded()) {
        (Some(files), Some(listener)) => endpoint(&listener, Some(&files.allowed))?,
        _ => LoadEndpoint::plain(running.address),
    };
    answered_by_app(&endpoint).await
}

/// Fails unless the app's response comes.
async fn answered_by_app(endpoint: &LoadEndpoint) -> Result<()> {
    let mut client = endpoint.connect().await?;
    LoadExchange::keep_alive("/1k", SMALL_BYTES).on(&mut client).await?;
    ensure!(client.body_start().iter().all(|byte| *byte == SMALL_FILL), "the answer is not the app's");
    Ok(())
}

/// A client's way to a listener, with this identity or without a certificate.
fn endpoint(listener: &MtlsListener, identity: Option<&ClientIdentity>) -> Result<LoadEndpoint> {
    let MtlsListener { address, files, protocols } = listener;
    LoadEndpoint::tls(*address, &files.ca, &files.server_name, identity, protocols)
}

#[cfg(test)]
mod tests;
