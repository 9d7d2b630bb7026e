//! Waiting for the controller's answer about what is dialled for the first time.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::destination::DestinationKey;

use super::{Destinations, Lookup, ResolvedDestination};

/// How long the controller has to say what stands behind an address, or a host at it, that is dialled for the first time.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    /// None came in time.
    #[error("the controller does not say who is there")]
    TimedOut,
    /// There has been no connection to the controller for a while.
    #[error("the controller is out of reach")]
    OutOfReach,
}

impl Destinations {
    /// The destination that a key leads to.
    pub(crate) async fn find(&self, key: &DestinationKey) -> Result<Arc<ResolvedDestination>, Unanswered> {
        let mut answer = match self.look_up(key) {
            Lookup::Known(target) => return Ok(target),
            Lookup::Asked(answer) => answer,
            Lookup::OutOfReach => return Err(Unanswered::OutOfReach),
        };
        let answered = answer.wait_for(Option::is_some);
        if let Ok(Ok(target)) = tokio::time::timeout(ANSWER_TIMEOUT, answered).await
            && let Some(target) = target.clone()
        {
            return Ok(target);
        }
        self.give_up(key);
        Err(Unanswered::TimedOut)
    }
}
