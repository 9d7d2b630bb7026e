//! Real Helm 3 and Helm 4, and the charts as they render them.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use serde_json::Value;

use crate::golden::repository;

/// A version of Helm that the charts support.
#[derive(Clone, Debug)]
pub struct Helm {
    program: PathBuf,
}

/// Objects of a rendering, in an order that does not depend on the version of Helm.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects(Vec<Value>);

impl Helm {
    /// Helm 3 and Helm 4.
    pub fn all() -> [Self; 2] {
        ["helm-3", "helm-4"].map(Self::find)
    }

    /// Helm 4.
    pub fn newest() -> Self {
        Self::find("helm-4")
    }

    fn find(name: &str) -> Self {
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| env::home_dir().map(|home| home.join(".cache"))).unwrap();
        let program = cache.join("tidegate/helm").join(name);
        assert!(program.exists(), "{} is missing: tests/helm downloads it", program.display());
        Self { program }
    }

    /// Its program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Runs a command.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// A command without arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(repository());
        command
    }

    /// Standard output of a command that must not fail.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {arguments:?}: {error}", self.program.display());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The objects of `chart`.
    pub fn template(&self, chart: &str, namespace: &str, arguments: &[&str]) -> Objects {
        let mut all = vec!["template", "tidegate", chart, "--namespace", namespace];
        all.extend(arguments);
        Objects::parse(&self.must(&all))
    }
}

impl Objects {
    /// Reads YAML documents.
    pub fn parse(yaml: &str) -> Self {
        let mut documents = vec![String::new()];
        for line in yaml.lines() {
            if line == "---" {
                documents.push(String::new());
            } else {
                writeln!(documents.last_mut().unwrap(), "{line}").unwrap();
            }
        }
        let values = documents.iter().map(|document| serde_saphyr::from_str(document));
        let mut objects: Vec<Value> =
            values.map(Result::unwrap).filter(|value: &Value| !value.is_null()).map(whole).collect();
        objects.sort_by_cached_key(name);
        Self(objects)
    }

    /// Every object of a kind.
    pub fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    /// The one object of a kind and name.
    pub fn one(&self, kind: &str, name: &str) -> &Value {
        let mut found = self.of(kind).filter(|object| object["metadata"]["name"] == name);
        let object = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
        assert!(found.next().is_none(), "two {kind} {name}");
        object
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Value> {
        self.0.iter()
    }

    /// As YAML documents, with sorted keys.
    pub fn to_yaml(&self) -> String {
        self.0.iter().map(|object| format!("---\n{}", serde_saphyr::to_string(object).unwrap())).collect()
    }
}

/// A file of the repository.
pub fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Numbers without a fraction as integers: `65535.0` and `65535` are the same number to Kubernetes.
fn whole(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 => Value::from(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(whole).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, whole(value))).collect(),
        other => other,
    }
}

fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    format!("{} {} {}", text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}
