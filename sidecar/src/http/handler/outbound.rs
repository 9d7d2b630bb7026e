//! The app's own requests: each goes to an endpoint of its destination, which rules may choose.

use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tidegate_core::backend::BackendProtocol;
use tidegate_core::egress::policies::EgressDenial;
use tidegate_core::route::filter::{Redirect, RedirectInput, Rewrite, Scheme};
use tidegate_core::route::{Action, RequestView, RouteMatch, Selected, host_of};

use super::attempts::Attempts;
use super::handled::{Forward, ForwardTarget, Handled, HandlerAction, UpstreamProtocol};
use crate::connection_info::OutboundInfo;
use crate::destinations::{
    ActiveRule, AppliedRule, AttemptLimits, BalancedBackend, DrawnShare, EndpointChoice, HostLookup,
    LiveDestination, LiveHosts, NoEndpoint, PendingHost, PolicedAddress, ProxiedDestination,
    ResolvedDestination, ResolvedRoutes, ResolvedTarget,
};
use crate::http::HttpContext;
use crate::http::local_reply::{self, LocalReply};
use crate::http::mirror::MirrorTarget;
use crate::http::request::{NormalRequest, Request, Version};
use crate::refusal_log::RefusalLog;
use crate::upstream::ConnectFailure;

/// Where the requests of a connection go.
pub(super) struct Outbound {
    dialled: SocketAddr,
    destination: LiveDestination,
    /// Of requests, where hosts tell these apart.
    hosts: LiveHosts,
    info: Rc<OutboundInfo>,
    refusals: Rc<RefusalLog>,
    context: Rc<HttpContext>,
}

impl Outbound {
    pub(super) fn new(
        info: Rc<OutboundInfo>,
        destination: LiveDestination,
        refusals: Rc<RefusalLog>,
        context: Rc<HttpContext>,
    ) -> Self {
        Self { dialled: info.dialled, destination, hosts: LiveHosts::default(), info, refusals, context }
    }

    /// Chooses an endpoint from the newest ones, by the newest routes.
    pub(super) fn handle(&self, request: &Request<'_>) -> Handled {
        let mut destination = self.destination.current();
        if let Some(otherwise) = destination.told_apart_by_host() {
            destination = match self.hosts.current(request.authority, &self.destination) {
                HostLookup::Known(destination) => {
                    self.info.hosts.set(request.authority, destination.service(), destination.owner());
                    destination
                }
                HostLookup::Unnamed => otherwise.clone(),
                HostLookup::Unknown(host) => return HandlerAction::Await(Box::new(host)).into(),
            };
        }
        match destination.target() {
            ResolvedTarget::Blocked(reason) => {
                self.refusals.blocked(self.dialled, reason);
                Handled::reply(local_reply::blocked(NoEndpoint::Blocked.details()))
            }
            ResolvedTarget::Unregistered(reason) => {
                let host = String::from_utf8_lossy(request.authority);
                self.refusals.unregistered(self.dialled, Some(&host), reason);
                Handled::reply(local_reply::unregistered(NoEndpoint::Unregistered.details()))
            }
            ResolvedTarget::Proxied(proxied) => self.proxy(proxied, &destination, request),
            ResolvedTarget::Policies(address) => self.by_policies(address, request),
            // A host is not told apart further.
            ResolvedTarget::ByHost(_) => {
                Handled::reply(local_reply::no_endpoint(NoEndpoint::NoneHealthy.details()))
            }
            ResolvedTarget::Backend(backend) => {
                let mut handled = forward(destination.choose(backend), request);
                limit_attempts(&mut handled, destination.attempts(), request);
                handled
            }
            ResolvedTarget::Routes(routes) => route(&destination, routes, self.dialled.port(), request),
        }
    }

    /// Waits until it is known where the requests for a host go.
    pub(super) async fn find(&self, host: PendingHost) {
        let destinations = self.destination.destinations();
        let target = destinations.find(&host.key).await.unwrap_or_else(|unanswered| {
            self.refusals.unanswered(&host.key, unanswered);
            Arc::new(destinations.unanswered(self.dialled))
        });
        self.hosts.add(host, &self.destination, target);
    }

    /// What policies allow goes to the address that was dialled. Where they distinguish paths, the request is forwarded with the path
    /// by which it was matched.
    fn by_policies(&self, address: &PolicedAddress, request: &Request<'_>) -> Handled {
        let policies = &address.policies;
        let host = host_of(request.authority);
        let Ok(normal) = NormalRequest::new(request, policies.needs_normal_path()) else {
            return self.deny(address, request, local_reply::bad_request("path_without_normal_form"));
        };
        match policies.for_request(self.dialled, host, &normal) {
            Ok(rule) => {
                let allowed = address.allowed(Some(rule));
                self.info.hosts.set(request.authority, None, allowed.owner());
                let path = normal.into_other_path();
                Handled { path, ..self.leave(allowed, request) }
            }
            Err(EgressDenial::Request) => self.deny(address, request, local_reply::no_route()),
            Err(EgressDenial::Host) => {
                if !policies.is_audit {
                    self.refusals.unregistered(self.dialled, Some(host), &policies.reason);
                }
                self.deny(address, request, local_reply::unregistered(NoEndpoint::Unregistered.details()))
            }
        }
    }

    /// Answers a request that policies do not allow; in audit mode it is logged, counted and forwarded as it was sent.
    fn deny(&self, address: &PolicedAddress, request: &Request<'_>, reply: LocalReply) -> Handled {
        let policies = &address.policies;
        if !policies.is_audit {
            return Handled::reply(reply);
        }
        let host = host_of(request.authority);
        self.refusals.would_refuse(self.dialled, Some(host), &policies.reason);
        self.context.telemetry.would_refuse(reply.details);
        self.leave(address.allowed(None), request)
    }

    /// Forwards a request that policies allow to leave the mesh.
    fn leave(&self, allowed: &ResolvedDestination, request: &Request<'_>) -> Handled {
        match allowed.target() {
            ResolvedTarget::Proxied(proxied) => self.proxy(proxied, allowed, request),
            ResolvedTarget::Backend(backend) => forward(allowed.choose(backend), request),
            _ => Handled::reply(local_reply::no_endpoint(NoEndpoint::NoneHealthy.details())),
        }
    }

    /// Forwards a request that leaves the mesh, through a forward proxy if there is one for its host.
    fn proxy(
        &self,
        proxied: &ProxiedDestination,
        destination: &ResolvedDestination,
        request: &Request<'_>,
    ) -> Handled {
        let host = Some(host_of(request.authority)).filter(|host| !host.is_empty());
        // Proxies neither switch protocols nor speak HTTP/2.
        let is_absolute = request.version != Version::Http2 && request.field("upgrade").is_none();
        let choice = proxied.choose_for_request(host, is_absolute);
        // What belongs to a ServiceEntry is called by its host.
        if destination.service().is_none() {
            let service = choice.as_ref().map_or_else(|_| proxied.service(host), EndpointChoice::service);
            self.info.hosts.set(request.authority, service, destination.owner());
        }
        forward(choice, request)
    }

    /// The endpoint of a request could not be reached: turns to the next one; `false` if there is none.
    pub(super) fn turn(
        &self,
        choice: &mut EndpointChoice,
        error: &dyn Display,
        failure: Option<ConnectFailure>,
    ) -> bool {
        self.refusals.unreachable(self.dialled, choice, error);
        match failure {
            Some(failure) => choice.turn_after(failure),
            None => choice.turn(),
        }
    }

    /// A forward proxy has answered a request in place of the server, with this reason.
    pub(super) fn proxy_refused(&self, choice: &EndpointChoice, reason: &str) {
        self.refusals.unreachable(self.dialled, choice, &reason);
    }
}

/// Forwards a request to an endpoint.
fn forward(choice: Result<EndpointChoice, NoEndpoint>, request: &Request<'_>) -> Handled {
    match choice {
        Ok(choice) => Handled::from(HandlerAction::Forward(Forward {
            protocol: endpoint_version(choice.protocol(), request),
            target: ForwardTarget::Chosen(Box::new(choice)),
            attempts: None,
        })),
        Err(reason) => {
            let reply = local_reply::no_endpoint(reason.details());
            Handled::reply(LocalReply { flag: reason.flag(), ..reply })
        }
    }
}

/// Does what the rule says that applies to a request. Where rules distinguish paths, the request is forwarded with the path by
/// which they were matched.
fn route(
    destination: &ResolvedDestination,
    routes: &ResolvedRoutes,
    port: u16,
    request: &Request<'_>,
) -> Handled {
    let table = routes.table();
    let Ok(normal) = NormalRequest::new(request, table.needs_normal_path()) else {
        return Handled::reply(local_reply::bad_request("path_without_normal_form"));
    };
    let found = table.select(&normal).and_then(|found| Some((found, routes.rule(found.index)?)));
    let Some((found, rule)) = found else { return Handled::reply(local_reply::no_route()) };
    let (applied, handled) = match &found.rule.action {
        _ if !rule.is_carried_out() => {
            let reply = local_reply::unrouted(500, "direct_response");
            (AppliedRule::of(rule), Handled::reply(reply))
        }
        Action::Forward(_) => {
            let (applied, share) = routes.draw(rule);
            let mut handled = send(destination, share, request);
            // A rule's own limits are in place of those about the Service.
            limit_attempts(&mut handled, rule.limits().or(destination.attempts()), request);
            mirror(&mut handled, destination, routes.mirrors(&applied), request);
            (applied, handled)
        }
        Action::Respond(response) => {
            let reply = local_reply::unrouted(response.status, "direct_response");
            (AppliedRule::of(rule), Handled::reply(reply))
        }
        Action::Redirect(redirect) => redirected(rule, redirect, port, &normal, &found),
    };
    let path = sent_path(normal, applied.rewrites(), found.matching);
    Handled { rule: Some(applied), path, ..handled }
}

/// Limits the attempts of a request that is forwarded.
fn limit_attempts(handled: &mut Handled, limits: Option<&Arc<AttemptLimits>>, request: &Request<'_>) {
    if let (HandlerAction::Forward(forward), Some(limits)) = (&mut handled.action, limits) {
        forward.attempts = Some(Attempts::new(Some(limits), request, forward));
    }
}

/// Has a request that is forwarded copied to an endpoint of each of these backends that has one.
fn mirror<'b>(
    handled: &mut Handled,
    destination: &ResolvedDestination,
    backends: impl Iterator<Item = &'b Arc<BalancedBackend>>,
    request: &Request<'_>,
) {
    let HandlerAction::Forward(forward) = &mut handled.action else { return };
    let target = |backend| {
        let choice = destination.choose(backend).ok()?;
        let protocol = endpoint_version(choice.protocol(), request);
        Some(MirrorTarget::new(choice, protocol))
    };
    let targets: Vec<_> = backends.filter_map(target).collect();
    if !targets.is_empty() {
        let mut attempts = forward.attempts.take().unwrap_or_else(|| Attempts::new(None, request, forward));
        attempts.copied_to(targets);
        forward.attempts = Some(attempts);
    }
}

/// Sends a request where its share goes.
fn send(destination: &ResolvedDestination, share: DrawnShare<'_>, request: &Request<'_>) -> Handled {
    match share {
        DrawnShare::Backend(backend) => forward(destination.choose(backend), request),
        DrawnShare::Invalid(status) => Handled::reply(local_reply::unrouted(status, "invalid_backend")),
        DrawnShare::Nothing => Handled::reply(local_reply::unrouted(500, "no_backend")),
    }
}

/// Redirects a client of a Service's port, which is where it has sent the request in plaintext.
fn redirected(
    rule: &Arc<ActiveRule>,
    redirect: &Redirect,
    port: u16,
    request: &NormalRequest<'_, '_>,
    found: &Selected<'_>,
) -> (AppliedRule, Handled) {
    let input = RedirectInput {
        scheme: Scheme::Http,
        port,
        authority: request.authority(),
        path: request.path(),
        query: request.query(),
        matching: found.matching,
    };
    let applied = AppliedRule::of(rule);
    match redirect.location(&input) {
        Some(location) => {
            (applied.redirecting(location), Handled::reply(local_reply::redirect(redirect.status())))
        }
        None => (applied, Handled::reply(local_reply::bad_request("redirect_without_host"))),
    }
}

/// Path and query to send instead of the client's, if they differ: rewritten, or in the form in which they were matched.
fn sent_path(
    request: NormalRequest<'_, '_>,
    rewrites: &[Rewrite],
    matching: &RouteMatch,
) -> Option<Box<[u8]>> {
    let mut edits = rewrites.iter().filter_map(Rewrite::path).peekable();
    if edits.peek().is_none() || request.path() == b"*" {
        return request.into_other_path();
    }
    let mut target = request.path().to_vec();
    for edit in edits {
        target = edit.apply(&target, matching).into_owned();
    }
    if let Some(query) = request.query() {
        target.push(b'?');
        target.extend_from_slice(query);
    }
    Some(target.into())
}

/// The version towards an endpoint: the client's, unless the endpoint speaks only one.
fn endpoint_version(protocol: BackendProtocol, request: &Request<'_>) -> UpstreamProtocol {
    match protocol {
        BackendProtocol::Http1 => UpstreamProtocol::Http1,
        BackendProtocol::Http2 => UpstreamProtocol::Http2,
        BackendProtocol::Http | BackendProtocol::Tcp if request.version == Version::Http2 => {
            UpstreamProtocol::Http2
        }
        BackendProtocol::Http | BackendProtocol::Tcp => UpstreamProtocol::Http1,
    }
}
