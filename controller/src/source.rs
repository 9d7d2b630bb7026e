//! Where objects come from.
//!
//! A [`Source`] reports what it has as changes, in batches that belong together. [`folder`] reads YAML files,
//! [`kubernetes`] an API server.

pub mod folder;
pub mod kubernetes;

use std::fmt;
use std::pin::Pin;

use serde::Serialize;
use tokio::sync::mpsc;

use crate::object::Change;

/// Something that knows objects and tells what changes about them.
pub trait Source: Send + 'static {
    /// Sends batches until the receiver is dropped. The first batch with [`Batch::is_complete`] ends the initial
    /// list: before it, an object that was not reported is not known to be absent.
    fn run(self: Box<Self>, batches: mpsc::Sender<Batch>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Changes that take effect together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What is new, different, or gone.
    pub changes: Vec<Change>,
    /// Whether everything that the source knew at its start has been reported.
    pub is_complete: bool,
    /// Everything that is wrong with what the source reads, as of now; it replaces what was reported before.
    pub problems: Vec<Problem>,
}

/// Something that is wrong with what a source reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The file, relative to the folder. Of a cluster: the kind, or the object as `<kind> <namespace>/<name>`.
    pub file: String,
    /// Line in it, from 1; 0 if the whole file is meant.
    pub line: u64,
    /// Column in characters, from 1; 0 if the whole line is meant.
    pub column: u64,
    /// The field, such as `spec.backends[0].port.number`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The object, as `<kind> <namespace>/<name>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// How bad it is.
    pub severity: ProblemSeverity,
    /// What it is.
    pub message: String,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProblemSeverity {
    /// Something is not taken: its last good state stays, or it denies.
    Error,
    /// Something is likely not meant.
    Warning,
    /// Something is left out on purpose.
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

impl fmt::Display for Problem {
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
