//! Splits a file into documents, and turns each document into objects or problems.
//!
//! What a document is decides what happens to it: an object of a kind of the table is read, a `List` is read item by
//! item, a kind of the mesh's neighbours (OSM, SMI, Gateway API) that is not enforced yet gets a warning, and
//! anything else is mentioned and ignored.
//!
//! Builtin kinds are decoded as they are; custom resources are checked against their CRD's schema first, as the API
//! server would, so that a folder and a cluster report the same errors. A document that cannot be read at all might
//! have defined any object, which `has_unknown` records: no object is then taken for deleted.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tidegate_crds::{Finding, gateway_api, not_enforced, schema};

use super::yaml::{Misfit, YamlNode, YamlPlace, YamlValue};
use crate::object::kinds::kinds;
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Kind, Object, ObjectKey, ObjectName};
use crate::source::{ProblemSeverity, SourceProblem};

/// The namespace of objects without one, as with `kubectl`.
const DEFAULT_NAMESPACE: &str = "default";

/// The content of a file.
#[derive(Debug, Default)]
pub(super) struct ParsedFile {
    pub(super) objects: Vec<ParsedObject>,
    /// Objects that exist but cannot be read.
    pub(super) broken: Vec<ObjectKey>,
    /// Whether an unreadable document might define any object.
    pub(super) has_unknown: bool,
    pub(super) problems: Vec<SourceProblem>,
}

/// An object and the line on which it starts.
#[derive(Clone, Debug)]
pub(super) struct ParsedObject {
    pub(super) object: Object,
    pub(super) line: u64,
}

/// Parses a whole file; an invalid document does not affect the others.
pub(super) fn parse(file: &str, text: &str) -> ParsedFile {
    let mut reader = Reader { file, first_line: 1, parsed: ParsedFile::default() };
    for (first_line, document) in split(text) {
        reader.first_line = first_line;
        reader.read_document(document);
    }
    reader.parsed
}

/// Splits a stream into documents, each with the number of its first line. A line that starts with `---` always begins
/// a document and `...` always ends one (YAML 1.2 §9.1), so this needs no parser, and an invalid document cannot
/// swallow the next.
fn split(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 1, 0);
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let bare = line.trim_end();
        let begins = bare == "---" || bare.starts_with("--- ") || bare.starts_with("---\t");
        if begins && offset > start {
            documents.push((first_line, text.get(start..offset).unwrap_or_default()));
            (start, first_line) = (offset, number);
        }
        offset += line.len();
        if bare == "..." {
            documents.push((first_line, text.get(start..offset).unwrap_or_default()));
            (start, first_line) = (offset, number + 1);
        }
    }
    documents.push((first_line, text.get(start..).unwrap_or_default()));
    documents
}

/// Reads the documents of one file; `parsed` collects the results.
struct Reader<'f> {
    file: &'f str,
    /// The line in the file where the document starts.
    first_line: u64,
    parsed: ParsedFile,
}

impl Reader<'_> {
    /// Reads one document; blank ones and those of comments alone are skipped.
    fn read_document(&mut self, text: &str) {
        if text
            .lines()
            .all(|line| line.trim().is_empty() || line.starts_with('#') || line.trim_end() == "---")
        {
            return;
        }
        match YamlNode::parse(text) {
            Ok(node) => self.read_object(&node),
            Err(misfit) => {
                self.parsed.has_unknown = true;
                self.misfit(&misfit, None);
            }
        }
    }

    /// Reads one object, by its `apiVersion` and `kind`; the items of a `List` one after the other.
    fn read_object(&mut self, node: &YamlNode) {
        if matches!(node.value, YamlValue::Null) {
            return;
        }
        let field = |name| node.get(name).and_then(YamlNode::text);
        let (Some(api_version), Some(kind)) = (field("apiVersion"), field("kind")) else {
            self.parsed.has_unknown = true;
            let message = "not a Kubernetes object: it needs apiVersion and kind";
            return self.problem(node.place, None, None, ProblemSeverity::Error, message.to_owned());
        };
        if let (true, Some(YamlValue::List(items))) =
            (kind.ends_with("List"), node.get("items").map(|items| &items.value))
        {
            return items.iter().for_each(|item| self.read_object(item));
        }
        macro_rules! read_by_kind {
            ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
                $(if kind == Kind::$kind.as_str() && self.read::<$type>(node, api_version) {
                    return;
                })*
            };
        }
        kinds!(read_by_kind);
        if let Some(message) = not_enforced::warning(api_version, kind) {
            let object = self.title(node, kind);
            return self.about(node.place, None, Some(object), ProblemSeverity::Warning, message);
        }
        let message = format!("{api_version} {kind} is not used by the mesh and is ignored");
        self.problem(node.place, None, None, ProblemSeverity::Info, message);
    }

    /// Reads an object of a kind that the controller reads. Returns whether the `apiVersion` is of this kind, even in
    /// an unsupported version.
    fn read<K: Stored>(&mut self, node: &YamlNode, api_version: &str) -> bool {
        let right = K::api_version(&());
        let Some(custom) = K::custom() else {
            if api_version == right {
                self.read_kubernetes::<K>(node);
            }
            return api_version == right;
        };
        // Gateway API's TCPRoute is another kind than SMI's.
        if api_version.split_once('/').is_some_and(|(group, _)| group == gateway_api::GROUP) {
            return false;
        }
        if custom.older_versions.contains(&api_version) {
            if custom.are_older_deprecated {
                let message = format!("{api_version} is deprecated: {right} has the same fields");
                self.api_version(node, ProblemSeverity::Warning, message);
            }
        } else if api_version != right {
            self.parsed.has_unknown = true;
            let message = format!("{} is not served in version {api_version}: use {right}", K::KIND);
            self.api_version(node, ProblemSeverity::Error, message);
            return true;
        }
        self.read_custom(node, &custom);
        true
    }

    /// Reads an object of a builtin kind. Unknown fields are ignored: the manifest may be for a newer Kubernetes.
    fn read_kubernetes<K: Stored>(&mut self, node: &YamlNode) {
        let Some(key) = self.key(node, K::KIND) else { return };
        match K::deserialize(node) {
            Ok(object) => self.accept(node, key, K::wrap(object.into())),
            Err(misfit) => {
                self.misfit(&misfit, Some(&key));
                self.parsed.broken.push(key);
            }
        }
    }

    /// Reports every invalid field of a custom resource at once, with its place.
    fn read_custom<K: Stored>(&mut self, node: &YamlNode, custom: &CustomKind<K>) {
        let Some(key) = self.key(node, K::KIND) else { return };
        let findings = schema::check(custom.definition, &node.to_json());
        self.findings(node, &key, &findings);
        if findings.iter().any(Finding::is_error) {
            return self.parsed.broken.push(key);
        }
        match K::deserialize(node) {
            Ok(object) => {
                self.findings(node, &key, &custom.findings(&object));
                self.accept(node, key, K::wrap(object.into()));
            }
            Err(misfit) => {
                self.misfit(&misfit, Some(&key));
                self.parsed.broken.push(key);
            }
        }
    }

    fn findings(&mut self, node: &YamlNode, key: &ObjectKey, findings: &[Finding]) {
        for finding in findings {
            let severity = if finding.is_error() { ProblemSeverity::Error } else { ProblemSeverity::Warning };
            let place = node.locate(&finding.path);
            self.problem(place, Some(finding.path.clone()), Some(key), severity, finding.message.clone());
        }
    }

    fn accept(&mut self, node: &YamlNode, key: ObjectKey, object: Object) {
        let object = with_name(object, &key.name);
        self.parsed.objects.push(ParsedObject { object, line: self.line(node.place) });
    }

    /// The object's name, checked by Kubernetes' rules: it ends up in certificates and file names.
    fn key(&mut self, node: &YamlNode, kind: Kind) -> Option<ObjectKey> {
        let text = |path: &str| {
            let (parent, name) = path.split_once('.')?;
            node.get(parent)?.get(name)?.text()
        };
        let problem = |this: &mut Self, path: &str, message: &str| {
            this.parsed.has_unknown = true;
            let place = node.locate(path);
            this.problem(place, Some(path.to_owned()), None, ProblemSeverity::Error, message.to_owned());
        };
        let Some(name) = text("metadata.name").filter(|name| is_object_name(name)) else {
            problem(self, "metadata.name", "a lower-case DNS name is required");
            return None;
        };
        let namespace = match kind {
            kind if kind.is_cluster_scoped() => "",
            _ => text("metadata.namespace").filter(|name| !name.is_empty()).unwrap_or(DEFAULT_NAMESPACE),
        };
        if !kind.is_cluster_scoped() && (!is_object_name(namespace) || namespace.contains('.')) {
            problem(self, "metadata.namespace", "must be a lower-case DNS label");
            return None;
        }
        Some(ObjectKey { kind, name: ObjectName::new(namespace, name) })
    }

    fn api_version(&mut self, node: &YamlNode, severity: ProblemSeverity, message: String) {
        self.problem(node.locate("apiVersion"), Some("apiVersion".to_owned()), None, severity, message);
    }

    /// A value that does not fit its type, at its place; without one, at the start of the document.
    fn misfit(&mut self, misfit: &Misfit, key: Option<&ObjectKey>) {
        let place = misfit.place.unwrap_or(YamlPlace { line: 1, column: 0 });
        self.problem(place, misfit.field(), key, ProblemSeverity::Error, misfit.message.clone());
    }

    /// `<kind> <namespace>/<name>` of an object of another kind.
    fn title(&self, node: &YamlNode, kind: &str) -> String {
        let text = |name| node.get("metadata")?.get(name)?.text();
        let namespace = text("namespace").unwrap_or(DEFAULT_NAMESPACE);
        format!("{kind} {namespace}/{}", text("name").unwrap_or_default())
    }

    /// A problem with an object of a known kind.
    fn problem(
        &mut self,
        place: YamlPlace,
        field: Option<String>,
        key: Option<&ObjectKey>,
        severity: ProblemSeverity,
        message: String,
    ) {
        self.about(place, field, key.map(ToString::to_string), severity, message);
    }

    /// A problem with anything: `object` is a title, such as [`Self::title`] makes.
    fn about(
        &mut self,
        place: YamlPlace,
        field: Option<String>,
        object: Option<String>,
        severity: ProblemSeverity,
        message: String,
    ) {
        self.parsed.problems.push(SourceProblem {
            file: self.file.to_owned(),
            line: self.line(place),
            column: place.column,
            field,
            object,
            severity,
            message,
        });
    }

    /// A line within the file, from one within the document; both count from 1.
    fn line(&self, place: YamlPlace) -> u64 {
        self.first_line + place.line.saturating_sub(1)
    }
}

/// The object with its name and namespace filled in.
fn with_name(object: Object, name: &ObjectName) -> Object {
    fn set(metadata: &mut ObjectMeta, name: &ObjectName) {
        metadata.namespace = (!name.namespace.is_empty()).then(|| name.namespace.to_string());
    }
    macro_rules! with_name {
        ($($(#[$doc:meta])* $kind:ident($type:ty): $part:ident,)*) => {
            match object {
                $(Object::$kind(mut object) => {
                    set(&mut Arc::make_mut(&mut object).metadata, name);
                    Object::$kind(object)
                })*
                Object::Unreadable(mut object) => {
                    set(&mut Arc::make_mut(&mut object).metadata, name);
                    Object::Unreadable(object)
                }
            }
        };
    }
    kinds!(with_name)
}

/// A DNS subdomain in lower case, of at most 253 bytes (RFC 1123 §2.1), which Kubernetes requires of most names.
fn is_object_name(text: &str) -> bool {
    let is_edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
            && is_edge(bytes.first())
            && is_edge(bytes.last())
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests;
