//! The `AdmissionReview` of `admission.k8s.io/v1`, as far as our webhooks read and write it.

use futures_util::future::BoxFuture;
use json_patch::Patch;
use k8s_openapi::ByteString;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The one version that is spoken.
const API_VERSION: &str = "admission.k8s.io/v1";
/// The one kind.
const KIND: &str = "AdmissionReview";

/// Decides about admission requests.
pub trait Reviewer: Send + Sync + 'static {
    /// Whether the object may be stored, and what is to be changed in it before. Somebody waits: it calls nobody.
    fn review<'a>(&'a self, request: &'a AdmissionRequest<'a>) -> BoxFuture<'a, Verdict>;
}

/// What the API server asks about. The object itself is read on demand and as the type that it is said to be, so that
/// what a stranger sends is never kept as a tree many times larger than its text.
#[derive(Clone, Debug)]
pub struct AdmissionRequest<'a> {
    head: Head,
    body: &'a [u8],
}

/// All of a request but its objects.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
struct Head {
    uid: String,
    kind: Kind,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    operation: Operation,
    #[serde(default)]
    dry_run: Option<bool>,
    #[serde(default)]
    object: Option<NamedObject>,
}

#[derive(Deserialize, Clone, Debug, Default)]
struct NamedObject {
    #[serde(default)]
    metadata: NamedMeta,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
struct NamedMeta {
    #[serde(default)]
    generate_name: Option<String>,
}

/// A type of objects.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// Empty for the core group.
    #[serde(default)]
    pub group: String,
    /// Such as `v1`.
    pub version: String,
    /// Such as `Pod`.
    pub kind: String,
}

/// What is to happen to an object.
#[derive(Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// It is new.
    #[default]
    Create,
    /// It changes.
    Update,
    /// It goes.
    Delete,
    /// A connection to it is made, such as by `kubectl exec`.
    Connect,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether and how the object is stored.
    pub outcome: Outcome,
    /// Shown to whoever made the request, on acceptance and refusal alike.
    pub warnings: Vec<String>,
}

/// Whether and how an object is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// As it is.
    Allowed,
    /// With these changes (RFC 6902).
    Patched(Patch),
    /// Not, and why: what is wrong and what to do.
    Denied(String),
}

/// Why a body is no request.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidReview {
    #[error("the body is no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    #[error("expected kind {KIND} of {API_VERSION}, got {kind:?} of {api_version:?}")]
    Kind { kind: String, api_version: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<R> {
    api_version: String,
    kind: String,
    request: R,
}

/// A request's `object`, read as a `T`.
#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct New<T> {
    #[serde(default = "Option::default")]
    object: Option<T>,
}

/// A request's `oldObject`, read as a `T`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "T: DeserializeOwned")]
struct Old<T> {
    #[serde(default = "Option::default")]
    old_object: Option<T>,
}

/// What it gets.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReviewResponse<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    /// The JSON patch; in base64 as every byte string.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<ByteString>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Status<'a> {
    code: u16,
    message: &'a str,
}

impl<'a> AdmissionRequest<'a> {
    /// Reads all but the objects. serde_json refuses what is nested deeper than 128 levels.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, InvalidReview> {
        let Review { api_version, kind, request: head } = serde_json::from_slice(body)?;
        if api_version != API_VERSION || kind != KIND {
            return Err(InvalidReview::Kind { kind, api_version });
        }
        Ok(Self { head, body })
    }

    /// Identifies the request; the answer repeats it.
    pub(super) fn uid(&self) -> &str {
        &self.head.uid
    }

    /// The type of the object.
    pub fn kind(&self) -> &Kind {
        &self.head.kind
    }

    /// Such as `ephemeralcontainers`; empty for the object itself.
    pub fn sub_resource(&self) -> &str {
        &self.head.sub_resource
    }

    /// The object's name, or the `metadata.generateName` that the API server is yet to make one from.
    pub fn name(&self) -> &str {
        if !self.head.name.is_empty() {
            return &self.head.name;
        }
        let generate_name =
            self.head.object.as_ref().and_then(|object| object.metadata.generate_name.as_deref());
        generate_name.unwrap_or_default()
    }

    /// The object's namespace; empty for objects of the whole cluster. The object's own `metadata.namespace` may be
    /// missing, this is not.
    pub fn namespace(&self) -> &str {
        &self.head.namespace
    }

    /// What is to happen to the object.
    pub fn operation(&self) -> Operation {
        self.head.operation
    }

    /// Whether nothing will be stored.
    pub fn is_dry_run(&self) -> bool {
        self.head.dry_run.unwrap_or(false)
    }

    /// The object as it is to be stored; `None` on [`Operation::Delete`].
    pub fn object<T: DeserializeOwned>(&self) -> Result<Option<T>, serde_json::Error> {
        let review: Review<New<T>> = serde_json::from_slice(self.body)?;
        Ok(review.request.object)
    }

    /// The object as it is stored; `None` on [`Operation::Create`].
    pub fn old_object<T: DeserializeOwned>(&self) -> Result<Option<T>, serde_json::Error> {
        let review: Review<Old<T>> = serde_json::from_slice(self.body)?;
        Ok(review.request.old_object)
    }
}

impl Verdict {
    /// Stored as it is.
    pub fn allowed() -> Self {
        Self { outcome: Outcome::Allowed, warnings: Vec::new() }
    }

    /// Stored with changes; as it is if there are none.
    pub fn patched(patch: Patch) -> Self {
        let outcome = if patch.is_empty() { Outcome::Allowed } else { Outcome::Patched(patch) };
        Self { outcome, warnings: Vec::new() }
    }

    /// Not stored.
    pub fn denied(message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Denied(message.into()), warnings: Vec::new() }
    }

    /// Adds warnings.
    #[must_use]
    pub fn with_warnings(mut self, warnings: impl IntoIterator<Item = String>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}

impl<'a> ReviewResponse<'a> {
    pub(super) fn new(uid: &'a str, verdict: &'a Verdict) -> Result<Self, serde_json::Error> {
        let mut response = Response {
            uid,
            allowed: true,
            status: None,
            patch_type: None,
            patch: None,
            warnings: &verdict.warnings,
        };
        match &verdict.outcome {
            Outcome::Allowed => {}
            Outcome::Patched(patch) => {
                response.patch_type = Some("JSONPatch");
                response.patch = Some(ByteString(serde_json::to_vec(patch)?));
            }
            Outcome::Denied(message) => {
                response.allowed = false;
                response.status = Some(Status { code: 403, message });
            }
        }
        Ok(Self { api_version: API_VERSION, kind: KIND, response })
    }
}
