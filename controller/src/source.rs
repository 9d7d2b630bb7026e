//! Where objects come from.
//!
//! An [`ObjectSource`] reports changes, in batches that belong together. [`folder`] reads YAML files, [`kubernetes`] an API
//! server.

pub mod folder;
pub mod kubernetes;

use std::fmt;
use std::pin::Pin;

use serde::Serialize;
use tokio::sync::mpsc;

use crate::object::Change;

/// Reads objects and reports how they change.
pub trait ObjectSource: Send + 'static {
    /// Sends batches until the receiver is dropped. The first batch with [`Batch::is_complete`] ends the initial list:
    /// before it, an unreported object may still exist.
    fn run(self: Box<Self>, batches: mpsc::Sender<Batch>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Changes that take effect together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What is new, different, or gone.
    pub changes: Vec<Change>,
    /// Whether everything that existed at the start has been reported.
    pub is_complete: bool,
    /// All current errors and warnings about what the source reads; replaces the previous ones.
    pub problems: Vec<SourceProblem>,
}

/// An error or a warning about something that a source reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceProblem {
    /// The file, relative to the folder. Of a cluster: the kind, or the object as `<kind> <namespace>/<name>`.
    pub file: String,
    /// Line in it, from 1; 0 for the whole file.
    pub line: u64,
    /// Column in characters, from 1; 0 for the whole line.
    pub column: u64,
    /// The field, such as `spec.backends[0].port.number`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The object, as `<kind> <namespace>/<name>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// How bad it is.
    pub severity: ProblemSeverity,
    /// The error or warning itself.
    pub message: String,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProblemSeverity {
    /// Something is not applied: its last good state stays in force, or it denies.
    Error,
    /// Something is probably a mistake.
    Warning,
    /// Something is ignored on purpose.
    Info,
}

impl fmt::Display for ProblemSeverity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

impl fmt::Display for SourceProblem {
    /// `file:line:column: severity: field: message`, as compilers write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if self.column > 0 {
            write!(f, ":{}", self.column)?;
        }
        write!(f, ": {}: ", self.severity)?;
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}
