//! Looks up the names that destinations lead to, and again before their answers expire, for as long as they are used.
//!
//! A sidecar is a stub (RFC 1034 §5.3.1): it sends one question to a server that resolves it, and needs neither a cache nor
//! aliases of its own, so that it does without a library for those.
//!
//! If a look-up fails, the last addresses stay in use, and the log says so. What a server may cause is bounded: the number of names
//! and of addresses, the time of a look-up, and how often one is made, whatever an answer says.

mod client;
mod message;
mod schedule;
#[cfg(test)]
mod test_server;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tidegate_core::DnsName;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use self::client::{DnsClient, FoundAddresses, LookupError};
use self::schedule::NameState;
use crate::destinations::{Destinations, NameAnswer};

/// The most look-ups at a time.
const MOST_AT_ONCE: usize = 16;
/// How long the look-up of a name may take. A connection waits for the first one.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(1500);
/// The most names that are looked up. Those beyond have no addresses.
const MOST_NAMES: usize = 1024;

/// Looks names up until the process ends. `servers`: in place of those in `/etc/resolv.conf`.
pub(crate) async fn run(destinations: Arc<Destinations>, servers: Vec<SocketAddr>) {
    let mut wanted = destinations.names();
    let mut lookups = FuturesUnordered::new();
    let mut names =
        NameTable { destinations: destinations.clone(), servers, client: None, states: HashMap::new() };
    loop {
        let newest = wanted.borrow_and_update().clone();
        names.keep(&newest);
        while lookups.len() < MOST_AT_ONCE
            && let Some(name) = names.next_due(Instant::now())
        {
            let client = names.client();
            lookups.push(async move {
                let found = match client {
                    Ok(client) => timeout(LOOKUP_TIMEOUT, client.look_up(&name)).await,
                    Err(error) => Ok(Err(error)),
                };
                let found = found.unwrap_or_else(|_| Err(LookupError::Failed("no answer in time".into())));
                (name, found)
            });
        }
        let due = if lookups.len() < MOST_AT_ONCE { names.due() } else { None };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some((name, found)) = lookups.next(), if !lookups.is_empty() => names.take(&name, found),
            () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
        }
    }
}

/// The names that are used.
struct NameTable {
    destinations: Arc<Destinations>,
    servers: Vec<SocketAddr>,
    /// Made when the first name is looked up.
    client: Option<DnsClient>,
    states: HashMap<DnsName, NameState>,
}

impl NameTable {
    /// Follows these names, and no others.
    fn keep(&mut self, wanted: &BTreeSet<DnsName>) {
        self.states.retain(|name, _| wanted.contains(name));
        for name in wanted {
            if self.states.contains_key(name) {
                continue;
            }
            if self.states.len() >= MOST_NAMES {
                let failure = format!("this sidecar looks up {MOST_NAMES} names already");
                self.destinations
                    .answer(name, NameAnswer { addresses: Vec::new(), failure: Some(failure.into()) });
                continue;
            }
            self.states.insert(name.clone(), NameState::new(Instant::now()));
        }
    }

    /// A name that is due, which counts as being looked up from now on.
    fn next_due(&mut self, now: Instant) -> Option<DnsName> {
        let mut due = self.states.iter_mut().filter(|(_, state)| state.due().is_some_and(|due| due <= now));
        let (name, state) = due.next()?;
        state.begin();
        Some(name.clone())
    }

    /// When the next name is due.
    fn due(&self) -> Option<Instant> {
        self.states.values().filter_map(NameState::due).min()
    }

    fn client(&mut self) -> Result<DnsClient, LookupError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = DnsClient::new(&self.servers)?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// Takes over the result of a look-up.
    fn take(&mut self, name: &DnsName, found: Result<FoundAddresses, LookupError>) {
        // It may not be used any more.
        let Some(state) = self.states.get_mut(name) else { return };
        let before = state.answer().cloned();
        let answer = state.take(found, Instant::now());
        if before.as_ref() == Some(answer) {
            return;
        }
        let failed = before.as_ref().is_some_and(|before| before.failure.is_some());
        match &answer.failure {
            Some(reason) if !failed => {
                let kept = answer.addresses.len();
                warn!(%name, %reason, kept, "a name cannot be looked up; the addresses that are known stay in use");
            }
            None if failed => {
                info!(%name, addresses = answer.addresses.len(), "a name can be looked up again");
            }
            _ => {}
        }
        self.destinations.answer(name, answer.clone());
    }
}
