//! Verifies that a proxy enforces its policy before it is measured: a proxy that admits every client would win
//! unfairly.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::app::{SMALL_BYTES, SMALL_FILL};
use crate::load::{LoadEndpoint, LoadExchange};
use crate::targets::{ClientFiles, Running};
use crate::tls::ClientIdentity;

/// Timeout from a target's start until it serves.
const START: Duration = Duration::from_secs(20);
/// Pause between two attempts.
const POLL: Duration = Duration::from_millis(20);
/// Status with which every target refuses a client by its name.
const FORBIDDEN: u16 = 403;

/// Waits until the admitted client gets the app's response.
pub(crate) async fn wait_until_serving(running: &mut Running) -> Result<()> {
    let mut last_error = anyhow::anyhow!("no answer");
    let wait = async {
        loop {
            running.ensure_running()?;
            match served(running).await {
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

/// Checks that a client of the same CA with another name gets 403 and a client without a certificate gets nothing.
///
/// Returns how the latter was refused; `None` for a target without TLS.
pub(crate) async fn refuses_others(running: &Running) -> Result<Option<String>> {
    let Some(files) = &running.tls else { return Ok(None) };
    let exchange = LoadExchange::keep_alive("/1k", SMALL_BYTES);

    let mut foreign =
        endpoint(running, files, Some(&files.foreign))?.connect().await.context("foreign client")?;
    let answer = exchange.any_answer_on(&mut foreign).await.context("foreign client")?;
    ensure!(answer.status == FORBIDDEN, "a client with another name got {}, not {FORBIDDEN}", answer.status);

    let nameless = endpoint(running, files, None)?;
    let attempt = async {
        let mut client = nameless.connect().await?;
        exchange.any_answer_on(&mut client).await
    };
    match attempt.await {
        Ok(answer) if (400..500).contains(&answer.status) => Ok(Some(format!("status {}", answer.status))),
        Ok(answer) => bail!("a client without a certificate got {}", answer.status),
        Err(error) => Ok(Some(format!("{error:#}"))),
    }
}

/// Whether the admitted client gets the app's response.
async fn served(running: &Running) -> Result<()> {
    let endpoint = match &running.tls {
        None => LoadEndpoint::plain(running.address),
        Some(files) => endpoint(running, files, Some(&files.allowed))?,
    };
    let mut client = endpoint.connect().await?;
    LoadExchange::keep_alive("/1k", SMALL_BYTES).on(&mut client).await?;
    ensure!(client.body_start().iter().all(|byte| *byte == SMALL_FILL), "the answer is not the app's");
    Ok(())
}

/// A client's way to the target, with this identity or without a certificate.
fn endpoint(
    running: &Running,
    files: &ClientFiles,
    identity: Option<&ClientIdentity>,
) -> Result<LoadEndpoint> {
    LoadEndpoint::tls(running.address, &files.ca, &files.server_name, identity, &[])
}
