//! What the server's answer means.
//!
//! Edits of a request replace the client's fields unless the server says `append`: a field that the server sets for the app
//! must not be joined with one that the client has forged. A client's copy of a field that the server leaves out stays, so a
//! server sets or removes each field that the app trusts.

use ::http::header::SET_COOKIE;
use ::http::{HeaderName, StatusCode};
use bytes::Bytes;
use tidegate_core::route::filter::HeaderEdits;
use tidegate_proto::external_authorization::check_response::HttpResponse;
use tidegate_proto::external_authorization::header_value_option::HeaderAppendAction;
use tidegate_proto::external_authorization::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValueOption, OkHttpResponse,
};

use super::{CheckError, RefusalResponse};
use crate::http::verdict::{Edits, InvalidField, QueryEdits};

/// A valid answer.
pub(super) enum Answer {
    Allow(Option<Box<Edits>>),
    Deny(RefusalResponse),
}

/// The meaning of an answer to this request. Without a status, only an `ok_response` allows.
pub(super) fn answer(response: CheckResponse, request: &CheckRequest) -> Result<Answer, CheckError> {
    let code = response.status.map(|status| status.code);
    Ok(match (code, response.http_response) {
        (Some(0) | None, Some(HttpResponse::OkResponse(ok))) => Answer::Allow(edits(ok, request)?),
        (Some(0), _) => Answer::Allow(None),
        (_, Some(HttpResponse::ErrorResponse(error))) => {
            return Err(CheckError::Undecided(refusal(error)?.into()));
        }
        (_, Some(HttpResponse::DeniedResponse(denied))) => Answer::Deny(refusal(denied)?),
        _ => Answer::Deny(forbidden()),
    })
}

/// What to do with a field.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FieldAction {
    Replace,
    Append,
    AddIfAbsent,
    ReplaceIfPresent,
}

impl FieldAction {
    /// The older `append` is stronger than `append_action`, whose default cannot be distinguished from its absence.
    fn of(option: &HeaderValueOption) -> Self {
        match (&option.append, HeaderAppendAction::try_from(option.append_action)) {
            (Some(append), _) if append.value => Self::Append,
            (None, Ok(HeaderAppendAction::AddIfAbsent)) => Self::AddIfAbsent,
            (None, Ok(HeaderAppendAction::OverwriteIfExists)) => Self::ReplaceIfPresent,
            _ => Self::Replace,
        }
    }
}

/// Name and value of a field that may be edited.
fn field(option: &HeaderValueOption) -> Option<(&str, &str)> {
    let header = option.header.as_ref()?;
    let value = match header.value.as_str() {
        "" => std::str::from_utf8(&header.raw_value).ok()?,
        value => value,
    };
    HeaderEdits::may_edit(&header.key).then_some((header.key.as_str(), value))
}

fn edits(ok: OkHttpResponse, request: &CheckRequest) -> Result<Option<Box<Edits>>, CheckError> {
    let sent = request.attributes.as_ref().and_then(|attributes| attributes.request.as_ref()?.http.as_ref());
    let is_sent = |name: &str| {
        sent.is_some_and(|request| request.headers.contains_key(name.to_ascii_lowercase().as_str()))
    };
    let (mut set, mut add) = (Vec::new(), Vec::new());
    for option in &ok.headers {
        let Some(field @ (name, _)) = field(option) else { continue };
        match FieldAction::of(option) {
            FieldAction::Append => add.push(field),
            FieldAction::Replace => set.push(field),
            FieldAction::AddIfAbsent if !is_sent(name) => set.push(field),
            FieldAction::ReplaceIfPresent if is_sent(name) => set.push(field),
            FieldAction::AddIfAbsent | FieldAction::ReplaceIfPresent => {}
        }
    }
    let remove: Vec<&str> = ok.headers_to_remove.iter().map(String::as_str).collect();
    let remove: Vec<&str> = remove.into_iter().filter(|name| HeaderEdits::may_edit(name)).collect();
    let invalid = |error: tidegate_core::route::RouteError| InvalidField(error.to_string());
    let request = HeaderEdits::new(&set, &add, &remove).map_err(invalid)?;

    let (mut set, mut add) = (Vec::new(), Vec::new());
    for option in &ok.response_headers_to_add {
        let Some(field @ (name, _)) = field(option) else { continue };
        match FieldAction::of(option) {
            FieldAction::Replace | FieldAction::ReplaceIfPresent if !is(name, &SET_COOKIE) => set.push(field),
            _ => add.push(field),
        }
    }
    let response = HeaderEdits::new(&set, &add, &[]).map_err(invalid)?;
    let set = ok.query_parameters_to_set.into_iter().map(|parameter| (parameter.key, parameter.value));
    let query = QueryEdits { set: set.collect(), remove: ok.query_parameters_to_remove };
    let edits = Edits { request, response, query };
    Ok((!edits.is_empty()).then(|| Box::new(edits)))
}

/// Fields that the sidecar writes itself, or that are about the connection, are left out.
fn refusal(denied: DeniedHttpResponse) -> Result<RefusalResponse, CheckError> {
    let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
    let status = status.filter(|status| matches!(status, 200..=599));
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let mut response = RefusalResponse::of_status(status.unwrap_or(StatusCode::FORBIDDEN));
    response.body = denied.body.into();
    for (name, value) in denied.headers.iter().filter_map(field) {
        response.add(name, value)?;
    }
    if matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        response.body = Bytes::new();
    }
    Ok(response)
}

/// `403` without a body, as from Envoy.
pub(super) fn forbidden() -> RefusalResponse {
    RefusalResponse::of_status(StatusCode::FORBIDDEN)
}

fn is(name: &str, field: &HeaderName) -> bool {
    name.eq_ignore_ascii_case(field.as_str())
}
