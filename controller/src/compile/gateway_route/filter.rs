//! Filters of rules and of backendRefs.
//!
//! A filter that cannot be carried out fails the rule that has it; none is skipped. A mirror to a backend that does not exist
//! is left out, as Gateway API says, because a copy's loss does not change what the client gets.

use tidegate_core::route::filter::{
    Filter, Fraction, HeaderEdits, Mirror, PathEdit, Redirect, Rewrite, Scheme,
};
use tidegate_core::route::{Problem, RouteError};
use tidegate_crds::gateway_api::Lenient;
use tidegate_crds::gateway_api::rule::{self as written, PathModifier};

use super::fault::RouteFault;
use super::rule::{Rules, resolve};
use crate::compile::route_features::Feature;

/// The filters of a list, in its order, and the redirect, which is the action of a rule. `field` is the list's path.
pub(super) fn filters(
    rules: &Rules<'_>,
    parts: &[Lenient<written::FilterSpec>],
    field: &str,
) -> Result<(Vec<Filter>, Option<Redirect>), RouteFault> {
    let (mut filters, mut redirect) = (Vec::new(), None);
    for (at, part) in parts.iter().enumerate() {
        let field = format!("{field}[{at}]");
        let filter = part.read().map_err(|reason| RouteFault::unsupported(&field, reason))?;
        rules.need(feature(filter), &field)?;
        let model = |error: RouteError| RouteFault::of_model(&field, &error);
        match filter {
            written::FilterSpec::RequestHeaderModifier { request_header_modifier: modifier } => {
                filters.push(Filter::RequestHeaders(edits(modifier).map_err(model)?));
            }
            written::FilterSpec::ResponseHeaderModifier { response_header_modifier: modifier } => {
                filters.push(Filter::ResponseHeaders(edits(modifier).map_err(model)?));
            }
            written::FilterSpec::RequestRedirect { request_redirect } => {
                if redirect.is_some() {
                    let error = RouteError {
                        field: "type".to_owned(),
                        value: "RequestRedirect".to_owned(),
                        problem: Problem::Repeated,
                    };
                    return Err(model(error));
                }
                redirect = Some(self::redirect(request_redirect).map_err(model)?);
            }
            written::FilterSpec::URLRewrite { url_rewrite } => {
                let path = url_rewrite.path.as_ref().map(path_edit).transpose().map_err(model)?;
                let rewrite = Rewrite::new(url_rewrite.hostname.as_deref(), path).map_err(model)?;
                filters.push(Filter::Rewrite(rewrite));
            }
            written::FilterSpec::RequestMirror { request_mirror: mirror } => {
                let fraction = fraction(mirror).map_err(model)?;
                if let Ok(backend) = resolve(rules.index, &rules.object, &mirror.backend_ref) {
                    filters.push(Filter::Mirror(Mirror { backend, fraction }));
                }
            }
        }
    }
    Ok((filters, redirect))
}

/// The feature that a sidecar needs for a filter.
fn feature(filter: &written::FilterSpec) -> Feature {
    match filter {
        written::FilterSpec::RequestHeaderModifier { .. } => Feature::RequestHeaderModifier,
        written::FilterSpec::ResponseHeaderModifier { .. } => Feature::ResponseHeaderModifier,
        written::FilterSpec::RequestRedirect { .. } => Feature::RequestRedirect,
        written::FilterSpec::URLRewrite { .. } => Feature::UrlRewrite,
        written::FilterSpec::RequestMirror { .. } => Feature::RequestMirror,
    }
}

/// Header edits, in the order set, add, remove.
fn edits(modifier: &written::HeaderModifier) -> Result<HeaderEdits, RouteError> {
    let remove: Vec<_> = modifier.remove.iter().map(String::as_str).collect();
    HeaderEdits::new(&lines(&modifier.set), &lines(&modifier.add), &remove)
}

/// Names and values of headers.
fn lines(headers: &[written::Header]) -> Vec<(&str, &str)> {
    headers.iter().map(|header| (header.name.as_str(), header.value.as_str())).collect()
}

/// A redirect; what it does not set stays that of the request.
fn redirect(written: &written::RequestRedirect) -> Result<Redirect, RouteError> {
    let mut redirect = Redirect::new(written.status_code.unwrap_or(302))?;
    if let Some(scheme) = &written.scheme {
        redirect = redirect.with_scheme(match scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            other => {
                let problem = Problem::UnknownWord("http and https");
                return Err(RouteError { field: "scheme".to_owned(), value: other.to_owned(), problem });
            }
        });
    }
    if let Some(hostname) = &written.hostname {
        redirect = redirect.with_hostname(hostname)?;
    }
    if let Some(port) = written.port {
        redirect = redirect.with_port(port)?;
    }
    if let Some(path) = &written.path {
        redirect = redirect.with_path(path_edit(path)?);
    }
    Ok(redirect)
}

/// A replacement of the whole path, or of the prefix that has matched.
fn path_edit(path: &PathModifier) -> Result<PathEdit, RouteError> {
    match path {
        PathModifier::ReplaceFullPath { replace_full_path } => PathEdit::full(replace_full_path),
        PathModifier::ReplacePrefixMatch { replace_prefix_match } => PathEdit::prefix(replace_prefix_match),
    }
}

/// All requests, unless a percentage or a fraction is given; both exclude each other.
fn fraction(mirror: &written::RequestMirror) -> Result<Fraction, RouteError> {
    match (mirror.percent, mirror.fraction) {
        (None, None) => Ok(Fraction::ALL),
        (Some(percent), None) => Fraction::new(percent, 100),
        (None, Some(share)) => Fraction::new(share.numerator, share.denominator.unwrap_or(100)),
        (Some(percent), Some(_)) => {
            let problem = Problem::Conflict("fraction");
            Err(RouteError { field: "percent".to_owned(), value: percent.to_string(), problem })
        }
    }
}
