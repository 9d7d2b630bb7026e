//! Identities.
//!
//! The three parts travel separately, not as a SPIFFE URI or a DNS name: these are spellings for certificates, and a
//! name in DNS spelling cannot be taken apart without the trust domain: a service account's name may contain dots.

use std::sync::Arc;

use tidegate_core::identity::{Identity, TrustDomain};

use super::{ConversionError, bad, missing};
use crate::discovery as wire;

pub(super) fn identity_to_wire(identity: &Identity) -> wire::Identity {
    wire::Identity {
        trust_domain: identity.trust_domain().to_string(),
        namespace: identity.namespace().to_owned(),
        service_account: identity.service_account().to_owned(),
    }
}

/// Each part must be what Kubernetes or SPIFFE accepts as a name; an absent one is empty and therefore refused.
pub(super) fn identity_from_wire(path: &str, identity: &wire::Identity) -> Result<Identity, ConversionError> {
    let trust_domain =
        TrustDomain::parse(&identity.trust_domain).map_err(|e| bad(&format!("{path}.trust_domain"), e))?;
    Identity::new(trust_domain, &identity.namespace, &identity.service_account).map_err(|e| bad(path, e))
}

pub(super) fn identities_to_wire(identities: &[Identity]) -> wire::Identities {
    wire::Identities { identities: identities.iter().map(identity_to_wire).collect() }
}

/// An empty list would admit no server: it is refused, as what is not meant.
pub(super) fn identities_from_wire(
    path: &str,
    identities: &wire::Identities,
) -> Result<Arc<[Identity]>, ConversionError> {
    if identities.identities.is_empty() {
        return Err(missing(path));
    }
    let identity = |(i, identity)| identity_from_wire(&format!("{path}[{i}]"), identity);
    identities.identities.iter().enumerate().map(identity).collect()
}
