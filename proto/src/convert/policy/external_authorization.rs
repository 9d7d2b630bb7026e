//! The external authorization of a policy. One whose state is absent is an error, never a policy without it.
//!
//! Active, it is the server's host and port, the time that a check may take, and what happens to requests when the server
//! does not answer, and how much of a body it gets; invalid, the reason with which every request is refused. Refused: a port of zero, a host that is
//! neither a DNS name nor an IP address, and a part of the body of no byte or of too many.

use tidegate_core::policy::{
    AuthorizationServer, CheckedBody, ExternalAuthorization, ExternalAuthorizationState, MOST_CHECKED_BODY,
    ServerAddress,
};

use super::{ConversionError, bad, missing, object_from_wire, object_to_wire, port_number};
use crate::convert::duration::{duration_from_wire, duration_to_wire};
use crate::discovery as wire;

const PATH: &str = "external_authorization";

/// With the MeshConfig that it comes from.
pub(super) fn external_to_wire(external: &ExternalAuthorization) -> wire::ExternalAuthorization {
    let state = match &external.state {
        ExternalAuthorizationState::Invalid(why) => {
            wire::external_authorization::State::InvalidReason(why.to_string())
        }
        ExternalAuthorizationState::Active(server) => {
            wire::external_authorization::State::Active(wire::AuthorizationServer {
                host: server.address.host(),
                port: server.address.port().into(),
                timeout: Some(duration_to_wire(server.timeout)),
                failure_mode_allow: server.failure_mode_allow,
                body: server.body.map(|CheckedBody { most_bytes, allow_partial, as_bytes }| {
                    wire::CheckedBody { most_bytes, allow_partial, as_bytes }
                }),
            })
        }
    };
    wire::ExternalAuthorization {
        origin: Some(object_to_wire(&external.origin)),
        state: Some(state),
        is_audit: external.is_audit,
    }
}

/// Errors name the field below `external_authorization`.
pub(super) fn external_from_wire(
    external: wire::ExternalAuthorization,
) -> Result<ExternalAuthorization, ConversionError> {
    let origin = object_from_wire(&format!("{PATH}.origin"), external.origin)?;
    let state = match external.state.ok_or_else(|| missing(PATH))? {
        wire::external_authorization::State::InvalidReason(why) => {
            ExternalAuthorizationState::Invalid(why.into())
        }
        wire::external_authorization::State::Active(server) => {
            ExternalAuthorizationState::Active(server_from_wire(server)?)
        }
    };
    Ok(ExternalAuthorization { origin, state, is_audit: external.is_audit })
}

fn server_from_wire(server: wire::AuthorizationServer) -> Result<AuthorizationServer, ConversionError> {
    let port = port_number(&format!("{PATH}.port"), server.port)?;
    let address =
        ServerAddress::parse(&server.host, port).map_err(|error| bad(&format!("{PATH}.host"), error))?;
    let timeout = duration_from_wire(&format!("{PATH}.timeout"), server.timeout)?;
    let body = server.body.map(body_from_wire).transpose()?;
    Ok(AuthorizationServer { address, timeout, failure_mode_allow: server.failure_mode_allow, body })
}

fn body_from_wire(body: wire::CheckedBody) -> Result<CheckedBody, ConversionError> {
    let wire::CheckedBody { most_bytes, allow_partial, as_bytes } = body;
    if !(1..=MOST_CHECKED_BODY).contains(&most_bytes) {
        return Err(bad(&format!("{PATH}.body.most_bytes"), format!("{most_bytes} is out of range")));
    }
    Ok(CheckedBody { most_bytes, allow_partial, as_bytes })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_core::ObjectRef;

    use super::*;

    fn external(state: ExternalAuthorizationState) -> ExternalAuthorization {
        let is_audit = matches!(state, ExternalAuthorizationState::Invalid(_));
        ExternalAuthorization { origin: ObjectRef::new("MeshConfig", "a", "b"), state, is_audit }
    }

    #[test]
    fn it_comes_back_from_the_wire_as_it_was() {
        let server = |host, failure_mode_allow| AuthorizationServer {
            address: ServerAddress::parse(host, 9191).unwrap(),
            timeout: Duration::from_millis(1500),
            failure_mode_allow,
            body: failure_mode_allow.then_some(CheckedBody {
                most_bytes: 100,
                allow_partial: true,
                as_bytes: false,
            }),
        };
        for state in [
            ExternalAuthorizationState::Invalid("why".into()),
            ExternalAuthorizationState::Active(server("opa.opa.svc", false)),
            ExternalAuthorizationState::Active(server("fd00::1", true)),
        ] {
            let external = external(state);
            assert_eq!(external_from_wire(external_to_wire(&external)), Ok(external));
        }
    }

    #[test]
    fn what_is_absent_or_unknown_is_an_error() {
        let origin = Some(object_to_wire(&ObjectRef::new("MeshConfig", "a", "b")));
        let with_body = |host: &str, port, timeout, most_bytes| {
            let body = wire::CheckedBody { most_bytes, allow_partial: false, as_bytes: false };
            let (host, body) = (host.into(), Some(body));
            let server = wire::AuthorizationServer { host, port, timeout, failure_mode_allow: true, body };
            Some(wire::external_authorization::State::Active(server))
        };
        let server = |host, port, timeout| with_body(host, port, timeout, 1);
        let second = Some(wire::Duration { seconds: 1, nanoseconds: 0 });
        for (state, field) in [
            (None, PATH),
            (server("", 1, second), "external_authorization.host"),
            (server("a", 0, second), "external_authorization.port"),
            (server("a", 1, None), "external_authorization.timeout"),
            (with_body("a", 1, second, 0), "external_authorization.body.most_bytes"),
            (with_body("a", 1, second, MOST_CHECKED_BODY + 1), "external_authorization.body.most_bytes"),
        ] {
            let wire = wire::ExternalAuthorization { origin: origin.clone(), state, is_audit: false };
            assert_eq!(external_from_wire(wire).unwrap_err().field, field);
        }
    }
}
