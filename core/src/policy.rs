//! The inbound policy of one workload, and its evaluator.
//!
//! The controller compiles a policy, sends it as one resource, and it takes effect as a whole. It is evaluated in three
//! phases, each of which knows more of the connection:
//!
//! 1. [`InboundPolicy::admit`]: address and port, before a byte is read;
//! 2. [`InboundPolicy::open`]: the first bytes, which decide how the connection is served ([`Terms`]);
//! 3. [`InboundPolicy::authorize`]: the verified client certificate, if there is one.
//!
//! Where rules for mesh peers distinguish HTTP requests, [`InboundPolicy::request_rules`] are those that remain for a
//! connection, and each of its requests is decided by them.
//!
//! What they allow may exceed a rate limit ([`RateLimits`]), for which the caller keeps the buckets, and calls the rate limit
//! service of a global one. A request may then be subject to an [`ExternalAuthorization`], too.
//!
//! Rules are grants. A connection that no rule grants is refused, with the reason of the rule that came closest.

mod decision;
mod evaluate;
mod external_authorization;
mod global_rate_limits;
mod model;
#[cfg(test)]
mod naive;
#[cfg(test)]
mod naive_peers;
mod peers;
mod rate_limits;
mod reason;

pub use decision::{Decision, Denial, Grant};
pub use evaluate::{MeshProtocol, Opening, Session, Terms};
pub use external_authorization::{
    AuthorizationServer, CheckedBody, ExternalAuthorization, ExternalAuthorizationState, MOST_CHECK_TIMEOUT,
    MOST_CHECKED_BODY, ServerAddress,
};
pub use global_rate_limits::{
    DescribedField, DescribedRequest, DescriptorEntry, DescriptorPair, FieldCondition, FieldTest,
    GlobalConnectionLimit, GlobalRateLimits, GlobalRequestLimit, HeaderValueMatch, RateLimitService,
    RequestDescriptor, RouteDescriptors,
};
pub use model::{
    ActiveIngressRule, ActivePeerRule, AppProtocol, ClientCheck, InboundPolicy, IngressRule,
    IngressTransport, MeshRule, PeerRule, PeerRuleState, PeerTraffic, PortPolicy, RuleState, Sources,
};
pub use peers::{Granting, RequestRules};
pub use rate_limits::{RateLimits, RouteRateLimit};
pub use reason::Reason;
