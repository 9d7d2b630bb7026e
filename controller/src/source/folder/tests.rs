use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use tempfile::TempDir;

use super::*;

/// Longer than any step here takes; a hang still fails the test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A folder, its running source, and what the source has reported.
struct Watched {
    folder: TempDir,
    batches: mpsc::Receiver<Batch>,
    objects: BTreeMap<ObjectKey, Object>,
    problems: Vec<SourceProblem>,
    deleted: BTreeSet<String>,
    count: usize,
}

impl Watched {
    fn start(folder: TempDir) -> Self {
        Self::start_at(folder, "")
    }

    fn start_at(folder: TempDir, below: &str) -> Self {
        let (sender, batches) = mpsc::channel(16);
        tokio::spawn(Box::new(FolderSource::new(folder.path().join(below))).run(sender));
        Self {
            folder,
            batches,
            objects: BTreeMap::new(),
            problems: Vec::new(),
            deleted: BTreeSet::new(),
            count: 0,
        }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).unwrap();
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let batch = tokio::time::timeout_at(deadline, self.batches.recv()).await;
            let batch = batch.unwrap_or_else(|_| panic!("never: {what}: {:?}", self.names())).unwrap();
            self.count += 1;
            self.problems = batch.problems;
            for change in batch.changes {
                match change {
                    Change::Apply { object, .. } => drop(self.objects.insert(object.key(), object)),
                    Change::Delete(key) => {
                        self.deleted.insert(key.to_string());
                        self.objects.remove(&key);
                    }
                }
            }
        }
    }

    fn names(&self) -> Vec<String> {
        self.objects.keys().map(ToString::to_string).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.names().iter().any(|known| known == name)
    }

    fn port_of(&self, service: &str) -> Option<i32> {
        self.objects.values().find_map(|object| match object {
            Object::Service(object) if object.metadata.name.as_deref() == Some(service) => {
                Some(object.spec.as_ref()?.ports.as_ref()?.first()?.port)
            }
            _ => None,
        })
    }
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

#[tokio::test]
async fn the_first_batch_is_everything_below_the_folder_but_hidden_files() {
    let mut watched = Watched::start(folder(&[
        ("a.yaml", &service("a", "1")),
        ("sub/deep/b.yml", &service("b", "1")),
        ("c.json", "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"c\"}}"),
        (".hidden.yaml", &service("no", "1")),
        (".git/x.yaml", &service("no", "1")),
        ("a.yaml~", &service("no", "1")),
        ("README.md", "no"),
    ]));
    let batch = watched.batches.recv().await.unwrap();
    assert!(batch.is_complete);
    assert_eq!(batch.changes.len(), 3, "{:?}", batch.changes);
    assert_eq!(batch.problems, []);
    watched.write("sub/deep/b.yml", &service("b", "2"));
    watched.until("a change in a sub-folder", |w| w.port_of("b") == Some(2)).await;
    fs::create_dir(watched.folder.path().join("new")).unwrap();
    watched.write("new/d.yaml", &service("d", "1"));
    watched.until("a file in a new sub-folder", |w| w.has("Service default/d")).await;
}

#[tokio::test]
async fn a_broken_file_keeps_the_last_good_state_of_its_objects_and_says_where() {
    let both = |b: &str| format!("{}---\n{}", service("a", "1"), service("b", b));
    let mut watched =
        Watched::start(folder(&[("x.yaml", &both("1")), ("other.yaml", &service("other", "1"))]));
    watched.until("start", |w| w.port_of("b") == Some(1)).await;

    // A wrong type: the object keeps its state; its neighbour in the file and other files still update.
    watched.write("x.yaml", &both("high").replace("port: 1}", "port: 2}"));
    watched.write("other.yaml", &service("other", "2"));
    watched.until("the good parts", |w| w.port_of("a") == Some(2) && w.port_of("other") == Some(2)).await;
    assert_eq!(watched.port_of("b"), Some(1));
    let [problem] = watched.problems.as_slice() else { panic!("{:?}", watched.problems) };
    assert_eq!((problem.file.as_str(), problem.line), ("x.yaml", 9));
    assert_eq!(problem.field.as_deref(), Some("spec.ports[0].port"));

    // Invalid YAML: everything stays.
    watched.write("x.yaml", "apiVersion: v1\nkind: [\n");
    watched.until("the report", |w| w.problems.iter().any(|p| p.field.is_none())).await;
    assert_eq!((watched.port_of("a"), watched.port_of("b")), (Some(2), Some(1)));
    assert_eq!(watched.problems[0].file, "x.yaml");

    // Fixed, and without `a`, which now counts as deleted.
    watched.write("x.yaml", &service("b", "3"));
    watched.until("the mended file", |w| w.port_of("b") == Some(3)).await;
    assert!(!watched.has("Service default/a"));
    assert_eq!(watched.problems, []);
}

#[tokio::test]
async fn a_file_that_is_gone_takes_its_objects_with_it_and_one_that_is_renamed_does_not() {
    let mut watched =
        Watched::start(folder(&[("a.yaml", &service("a", "1")), ("b.yaml", &service("b", "1"))]));
    watched.until("start", |w| w.names().len() == 2).await;
    let path = |name: &str| watched.folder.path().join(name);
    fs::rename(path("a.yaml"), path("c.yaml")).unwrap();
    fs::remove_file(path("b.yaml")).unwrap();
    watched.until("the deletion", |w| !w.has("Service default/b")).await;
    assert_eq!(watched.deleted, ["Service default/b".to_owned()].into());
    assert!(watched.has("Service default/a"));
}

#[tokio::test]
async fn a_file_replaced_by_rename_is_read() {
    let mut watched = Watched::start(folder(&[("a.yaml", &service("a", "1"))]));
    watched.until("start", |w| w.port_of("a") == Some(1)).await;
    watched.write(".a.yaml.new", &service("a", "2"));
    let path = |name: &str| watched.folder.path().join(name);
    fs::rename(path(".a.yaml.new"), path("a.yaml")).unwrap();
    watched.until("the new file", |w| w.port_of("a") == Some(2)).await;
    assert!(watched.deleted.is_empty());
}

#[tokio::test]
async fn a_file_that_is_being_written_is_left_until_it_is_whole() {
    let whole = format!("{}---\n{}", service("a", "2"), service("b", "2"));
    let mut watched = Watched::start(folder(&[("x.yaml", &whole.replace("port: 2", "port: 1"))]));
    watched.until("start", |w| w.port_of("b") == Some(1)).await;
    let mut file = fs::File::create(watched.folder.path().join("x.yaml")).unwrap();
    let (first, second) = whole.split_at(whole.find("---").unwrap());
    file.write_all(first.as_bytes()).unwrap();
    // The change of another file shows that the source has scanned the folder since.
    watched.write("marker.yaml", &service("marker", "1"));
    watched.until("the marker", |w| w.has("Service default/marker")).await;
    assert_eq!((watched.port_of("a"), watched.port_of("b")), (Some(1), Some(1)));
    file.write_all(second.as_bytes()).unwrap();
    drop(file);
    watched.until("the whole file", |w| w.port_of("b") == Some(2)).await;
    assert_eq!(watched.port_of("a"), Some(2));
    assert!(watched.deleted.is_empty(), "{:?}", watched.deleted);
}

#[tokio::test]
async fn a_file_that_stays_empty_holds_nothing() {
    let mut watched = Watched::start(folder(&[("a.yaml", &service("a", "1"))]));
    watched.until("start", |w| w.has("Service default/a")).await;
    watched.write("a.yaml", "");
    watched.until("the deletion", |w| w.names().is_empty()).await;
}

#[tokio::test]
async fn of_an_object_in_two_files_the_first_counts_and_the_other_is_reported() {
    let mut watched = Watched::start(folder(&[
        ("a.yaml", &service("x", "1")),
        ("b.yaml", &format!("\n{}", service("x", "2"))),
    ]));
    watched.until("start", |w| w.port_of("x") == Some(1)).await;
    assert_eq!(
        watched.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["b.yaml:2: error: Service default/x already exists in a.yaml:1; this one is ignored"]
    );
    fs::remove_file(watched.folder.path().join("a.yaml")).unwrap();
    watched.until("the other one", |w| w.port_of("x") == Some(2)).await;
    assert!(watched.deleted.is_empty());
    assert_eq!(watched.problems, []);
}

#[tokio::test]
async fn changes_that_come_together_are_reported_together() {
    let mut watched = Watched::start(folder(&[]));
    watched.until("start", |w| w.count == 1).await;
    for i in 0..200 {
        watched.write(&format!("{i}.yaml"), &service(&format!("s{i}"), "1"));
    }
    watched.until("all", |w| w.names().len() == 200).await;
    assert!(watched.count < 50, "{} batches", watched.count);
}

#[tokio::test]
async fn a_folder_may_come_later() {
    let mut watched = Watched::start_at(folder(&[]), "later");
    watched.until("the report", |w| !w.problems.is_empty()).await;
    fs::create_dir(watched.folder.path().join("later")).unwrap();
    watched.write("later/a.yaml", &service("a", "1"));
    watched.until("the file", |w| w.has("Service default/a") && w.problems.is_empty()).await;
}

#[tokio::test]
async fn a_folder_that_takes_the_place_of_another_is_followed() {
    let files = [("now/a.yaml", &*service("a", "1")), ("next/a.yaml", &service("a", "2"))];
    let mut watched = Watched::start_at(folder(&files), "now");
    watched.until("start", |w| w.port_of("a") == Some(1)).await;
    let path = |name: &str| watched.folder.path().join(name);
    fs::rename(path("now"), path("before")).unwrap();
    fs::rename(path("next"), path("now")).unwrap();
    watched.until("the other folder", |w| w.port_of("a") == Some(2)).await;
    watched.write("now/a.yaml", &service("a", "3"));
    watched.until("a change in it", |w| w.port_of("a") == Some(3)).await;
    assert!(watched.deleted.is_empty());
}

#[test]
fn a_service_without_endpoint_slices_gets_the_pods_that_it_selects() {
    let pod = |name: &str, status: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: a}}}}\n\
             spec: {{containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}]}}]}}\nstatus: {{{status}}}\n---\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {app: a}, ports: [{name: w, \
                   port: 80, targetPort: web}]}\n---\n";
    let text = [
        pod("ready", "podIP: 127.0.0.2"),
        pod("unready", "podIP: 127.0.0.3, conditions: [{type: Ready, status: 'False'}]"),
        pod("done", "podIP: 127.0.0.4, phase: Succeeded"),
        pod("pending", "phase: Pending"),
        pod("v6", "podIP: '::1'"),
        service.to_owned(),
        service.replace("name: a}", "name: covered}"),
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nendpoints: []\n\
         metadata: {name: own, labels: {kubernetes.io/service-name: covered}}\n"
            .to_owned(),
    ]
    .concat();
    let dir = folder(&[("all.yaml", &text)]);
    let loaded = FolderSource::new(dir.path()).load();
    assert_eq!(loaded.problems, []);
    let slices: Vec<Arc<EndpointSlice>> = loaded
        .changes
        .into_iter()
        .filter_map(|change| match change {
            Change::Apply { object: Object::EndpointSlice(slice), origin: None } => Some(slice),
            _ => None,
        })
        .collect();
    let shown: Vec<_> = slices
        .iter()
        .map(|slice| {
            let endpoints = slice.endpoints.iter().flatten();
            let endpoints: Vec<_> = endpoints
                .map(|e| (e.addresses[0].as_str(), e.conditions.as_ref().unwrap().ready.unwrap()))
                .collect();
            let port = &slice.ports.as_ref().unwrap()[0];
            (slice.address_type.as_str(), port.name.as_deref(), port.port, endpoints)
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("IPv4", Some("w"), Some(8080), vec![("127.0.0.2", true), ("127.0.0.3", false)]),
            ("IPv6", Some("w"), Some(8080), vec![("::1", true)]),
        ]
    );
}
