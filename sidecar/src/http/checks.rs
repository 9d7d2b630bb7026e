//! The servers that users run and that have to allow a request which the policy allows: first the rate limit services, then the
//! server of the external authorization.
//!
//! A check copies its part of the head, so that a codec can wait for the [`CheckVerdict`] and keep its own buffers. Requests that
//! are not subject to any never come here.

use std::time::Duration;

use super::HttpContext;
use super::external_authorization::{AuthorizationCheck, BodyPart};
use super::rate_limit_service::{RateLimitCheck, ServicesTime};
use super::verdict::{Allowance, CheckVerdict, Refusal};
use crate::connection_info::ServedConnection;
use crate::telemetry::Telemetry;

/// The checks of one request, which have not begun.
pub(super) struct RequestChecks {
    limits: Vec<RateLimitCheck>,
    authorization: Option<AuthorizationCheck>,
    /// What the checks so far say.
    allowance: Allowance,
}

impl RequestChecks {
    pub(super) fn new(limits: Vec<RateLimitCheck>, authorization: Option<AuthorizationCheck>) -> Self {
        Self { limits, authorization, allowance: Allowance::default() }
    }

    /// Calls the rate limit services one after the other, all of them within the longest of their timeouts. Dropped before it is
    /// done, the call is cancelled.
    pub(super) async fn within_limits(
        mut self,
        context: &HttpContext,
        client: &ServedConnection,
    ) -> Result<Self, Box<Refusal>> {
        let limits = std::mem::take(&mut self.limits);
        let mut time = ServicesTime::of_request(&limits);
        for check in limits {
            match check.verdict(context, client, &mut time).await {
                CheckVerdict::Allow(next) => self.allowance = self.allowance.then(next),
                CheckVerdict::Refuse(refusal) => return Err(refusal),
            }
        }
        if let (Some(check), Some(edits)) = (&mut self.authorization, &self.allowance.edits) {
            check.edit(&edits.request);
        }
        Ok(self)
    }

    /// How much of the body must be read before the external authorization, and within which time; `None`: nothing.
    pub(super) fn wants_body(&self) -> Option<(usize, Duration)> {
        self.authorization.as_ref()?.wants_body()
    }

    /// Adds the part of the body; the error is the verdict on a request whose body the server cannot get.
    pub(super) fn with_body(self, part: BodyPart, telemetry: &Telemetry) -> Result<Self, CheckVerdict> {
        let Self { limits, authorization, allowance } = self;
        let Some(check) = authorization else { return Ok(Self { limits, authorization, allowance }) };
        match check.with_body(part, telemetry) {
            Ok(check) => Ok(Self { limits, authorization: Some(check), allowance }),
            Err(verdict) => Err(after(allowance, verdict)),
        }
    }

    /// Calls the server of the external authorization, if there is one. Dropped before it is done, the check is cancelled.
    pub(super) async fn verdict(self, context: &HttpContext, client: &ServedConnection) -> CheckVerdict {
        match self.authorization {
            Some(check) => after(self.allowance, check.verdict(context, client).await),
            None => CheckVerdict::Allow(self.allowance),
        }
    }
}

/// A verdict on a request that rate limit services have allowed: its response has their fields.
fn after(allowance: Allowance, verdict: CheckVerdict) -> CheckVerdict {
    match verdict {
        CheckVerdict::Allow(next) => CheckVerdict::Allow(allowance.then(next)),
        CheckVerdict::Refuse(mut refusal) => {
            if let Some(edits) = &allowance.edits {
                refusal.response.add_appended(&edits.response);
            }
            CheckVerdict::Refuse(refusal)
        }
    }
}
