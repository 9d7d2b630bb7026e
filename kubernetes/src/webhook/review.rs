//! The `AdmissionReview` of `admission.k8s.io/v1`, limited to the fields that our webhooks use.

use futures_util::future::BoxFuture;
use json_patch::Patch;
use k8s_openapi::ByteString;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// The only supported version.
const API_VERSION: &str = "admission.k8s.io/v1";
/// The only supported kind.
const KIND: &str = "AdmissionReview";
/// Maximum bytes that are kept of a name or type in a request. Kubernetes' own names are not longer.
const MAX_NAME: usize = 253;
/// Maximum bytes of a request's uid, for which the API server uses 36.
const MAX_UID: usize = 128;
/// Maximum bytes of a reason or a warning in a response or in the log.
pub(super) const MAX_MESSAGE: usize = 8 * 1024;
/// Maximum warnings of a response.
const MAX_WARNINGS: usize = 64;

/// Decides admission requests.
pub trait AdmissionReviewer: Send + Sync + 'static {
    /// Whether the object may be stored, and with which changes. The client is waiting, so this makes no network calls.
    fn review<'a>(&'a self, request: &'a AdmissionRequest<'a>) -> BoxFuture<'a, Verdict>;
}

/// An admission request. Objects stay text until a reviewer decodes what it needs of them, as types whose size is
/// bounded by that text: a tree of everything could be many times larger than the request.
#[derive(Clone, Debug)]
pub struct AdmissionRequest<'a> {
    head: AdmissionRequestHead<'a>,
    generate_name: String,
}

/// A request. Long texts are cut.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct AdmissionRequestHead<'a> {
    #[serde(deserialize_with = "uid")]
    uid: String,
    kind: ObjectKind,
    #[serde(default, deserialize_with = "beginning")]
    sub_resource: String,
    #[serde(default, deserialize_with = "beginning")]
    name: String,
    #[serde(default, deserialize_with = "beginning")]
    namespace: String,
    operation: Operation,
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
    #[serde(borrow, default)]
    old_object: Option<&'a RawValue>,
}

/// The object as far as `metadata.generateName`.
#[derive(Deserialize, Default)]
struct NamedObject {
    #[serde(default)]
    metadata: NamedMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct NamedMeta {
    #[serde(default, deserialize_with = "beginning")]
    generate_name: String,
}

/// A type of objects.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectKind {
    /// Empty for the core group.
    #[serde(default, deserialize_with = "beginning")]
    pub group: String,
    /// For example `v1`.
    #[serde(deserialize_with = "beginning")]
    pub version: String,
    /// For example `Pod`.
    #[serde(deserialize_with = "beginning")]
    pub kind: String,
}

/// The operation on the object.
#[derive(Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// Creation.
    #[default]
    Create,
    /// Change.
    Update,
    /// Deletion.
    Delete,
    /// A connection to it, such as by `kubectl exec`.
    Connect,
}

/// The response to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether and how the object is stored.
    pub outcome: ReviewOutcome,
    /// Shown to the author of the request, whether it is accepted or refused.
    pub warnings: Vec<String>,
}

/// Whether and how an object is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum ReviewOutcome {
    /// Stored unchanged.
    Allowed,
    /// Stored with these changes (RFC 6902).
    Patched(Patch),
    /// Refused: what is wrong and what to do.
    Denied(String),
}

/// Why a body is not an admission request.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidReview {
    #[error("the body is not an AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    #[error("expected kind {KIND} of {API_VERSION}, got {kind:?} of {api_version:?}")]
    Kind { kind: String, api_version: String },
}

/// The whole body. The API version and kind are checked before anything else counts.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdmissionReview<'a> {
    #[serde(deserialize_with = "beginning")]
    api_version: String,
    #[serde(deserialize_with = "beginning")]
    kind: String,
    #[serde(borrow)]
    request: AdmissionRequestHead<'a>,
}

/// What it gets.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReviewResponse<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: AdmissionResponse<'a>,
}

/// The member `response`: `uid` as in the request; `patch` and `patchType` only together.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AdmissionResponse<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<ResponseStatus<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    /// The JSON patch, in base64 like every byte string.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<ByteString>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: Vec<&'a str>,
}

/// The `metav1.Status` of a refusal; its message is what `kubectl` shows.
#[derive(Serialize)]
struct ResponseStatus<'a> {
    code: u16,
    message: &'a str,
}

impl<'a> AdmissionRequest<'a> {
    /// Parses everything but the objects. serde_json refuses more than 128 levels of nesting.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, InvalidReview> {
        let AdmissionReview { api_version, kind, request: head } = serde_json::from_slice(body)?;
        if api_version != API_VERSION || kind != KIND {
            return Err(InvalidReview::Kind { kind, api_version });
        }
        let named = match head.object {
            Some(object) if head.name.is_empty() => serde_json::from_str(object.get()).unwrap_or_default(),
            _ => NamedObject::default(),
        };
        Ok(Self { head, generate_name: named.metadata.generate_name })
    }

    /// Identifies the request; the answer repeats it.
    pub(super) fn uid(&self) -> &str {
        &self.head.uid
    }

    /// The type of the object.
    pub fn kind(&self) -> &ObjectKind {
        &self.head.kind
    }

    /// For example `ephemeralcontainers`; empty for the object itself.
    pub fn sub_resource(&self) -> &str {
        &self.head.sub_resource
    }

    /// The object's name, or the `metadata.generateName` from which the API server will generate one.
    pub fn name(&self) -> &str {
        if self.head.name.is_empty() { &self.generate_name } else { &self.head.name }
    }

    /// The object's namespace; empty for cluster-scoped objects. Unlike the object's own `metadata.namespace`, it is
    /// never missing.
    pub fn namespace(&self) -> &str {
        &self.head.namespace
    }

    /// The operation on the object.
    pub fn operation(&self) -> Operation {
        self.head.operation
    }

    /// The object to be stored; `None` on [`Operation::Delete`].
    pub fn object<T: Deserialize<'a>>(&self) -> Result<Option<T>, serde_json::Error> {
        self.head.object.map(|object| serde_json::from_str(object.get())).transpose()
    }

    /// The object that is currently stored; `None` on [`Operation::Create`].
    pub fn old_object<T: Deserialize<'a>>(&self) -> Result<Option<T>, serde_json::Error> {
        self.head.old_object.map(|object| serde_json::from_str(object.get())).transpose()
    }
}

impl Verdict {
    /// Stored unchanged.
    pub fn allowed() -> Self {
        Self { outcome: ReviewOutcome::Allowed, warnings: Vec::new() }
    }

    /// Stored with changes; unchanged if there are none.
    pub fn patched(patch: Patch) -> Self {
        let outcome = if patch.is_empty() { ReviewOutcome::Allowed } else { ReviewOutcome::Patched(patch) };
        Self { outcome, warnings: Vec::new() }
    }

    /// Refused.
    pub fn denied(message: impl Into<String>) -> Self {
        Self { outcome: ReviewOutcome::Denied(message.into()), warnings: Vec::new() }
    }

    /// Adds warnings.
    #[must_use]
    pub fn with_warnings(mut self, warnings: impl IntoIterator<Item = String>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}

impl<'a> ReviewResponse<'a> {
    /// Encodes a verdict, with warnings and reasons cut to their bounds. The error is the patch's, which cannot be
    /// encoded.
    pub(super) fn new(uid: &'a str, verdict: &'a Verdict) -> Result<Self, serde_json::Error> {
        let mut response = AdmissionResponse {
            uid,
            allowed: true,
            status: None,
            patch_type: None,
            patch: None,
            warnings: verdict.warnings.iter().take(MAX_WARNINGS).map(|warning| cut(warning)).collect(),
        };
        match &verdict.outcome {
            ReviewOutcome::Allowed => {}
            ReviewOutcome::Patched(patch) => {
                response.patch_type = Some("JSONPatch");
                response.patch = Some(ByteString(serde_json::to_vec(patch)?));
            }
            ReviewOutcome::Denied(message) => {
                response.allowed = false;
                response.status = Some(ResponseStatus { code: 403, message: cut(message) });
            }
        }
        Ok(Self { api_version: API_VERSION, kind: KIND, response })
    }
}

/// Cuts a text that may quote the request.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_MESSAGE)]
}

/// A text, cut to [`MAX_NAME`] bytes; a longer one ends in `…`, so that it equals no name.
fn beginning<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Beginning;

    impl Visitor<'_> for Beginning {
        type Value = String;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
            let kept = &text[..text.floor_char_boundary(MAX_NAME)];
            Ok(if kept.len() == text.len() { text.to_owned() } else { format!("{kept}…") })
        }

        fn visit_unit<E: Error>(self) -> Result<String, E> {
            Ok(String::new())
        }
    }
    deserializer.deserialize_any(Beginning)
}

/// The response repeats it in full.
fn uid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let uid = beginning(deserializer)?;
    if uid.len() > MAX_UID {
        return Err(D::Error::custom(format_args!("request.uid is longer than {MAX_UID} bytes")));
    }
    Ok(uid)
}
