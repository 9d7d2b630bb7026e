//! Objects, decoded no further than they are read.
//!
//! The author of an object chooses the length of its lists, maps and texts. The types here skip what is not read, and
//! keep no more than a bound of the rest, so that an object takes what is read of it, whatever else is in it. A reader
//! puts them together into a type that has its fields and no others, for [`get`] or
//! [`ObjectWatch::lean`](crate::watch::ObjectWatch::lean).

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, GetParams, Resource};
use kube::core::Request;
use serde::Deserialize;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use tidegate_core::contract::labels::{CONTROL_PLANE, IGNORE, INJECTION, MONITORED_BY};

/// What a text ends in that was longer.
pub const CUT: char = '…';
/// Entries of [`Wanted::PREFIX`] that are kept.
const MOST_OF_PREFIX: usize = 16;

/// What is the same for objects of every kind. `L` is what is read of labels, `A` of annotations. The version is not kept:
/// objects that differ in nothing else are the same.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Meta<L = IgnoredAny, A = IgnoredAny> {
    /// The name.
    #[serde(default)]
    pub name: Option<String>,
    /// The namespace, unless the object belongs to none.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Tells it from those of the same name before and after it.
    #[serde(default)]
    pub uid: Option<String>,
    /// Of which spec it is.
    #[serde(default)]
    pub generation: Option<i64>,
    /// When it was made.
    #[serde(default)]
    pub creation_timestamp: Option<Time>,
    /// Since when it is being deleted.
    #[serde(default)]
    pub deletion_timestamp: Option<Time>,
    /// Its labels.
    #[serde(default = "none")]
    pub labels: Option<L>,
    /// Its annotations.
    #[serde(default = "none")]
    pub annotations: Option<A>,
}

/// The first `MOST` items of a list.
#[derive(Clone, Debug)]
pub struct First<T, const MOST: usize>(pub Vec<T>);

/// The first entries of a map of texts: `MOST` of them, and as many as have `MOST_BYTES` together.
#[derive(Clone, Debug, Default)]
pub struct BoundedEntries<const MOST: usize, const MOST_BYTES: usize = { usize::MAX }> {
    /// Those that are kept.
    pub entries: BTreeMap<String, String>,
    /// Whether there are more.
    pub has_more: bool,
}

/// Which entries of a map are read.
pub trait Wanted {
    /// Those of these names.
    const NAMES: &'static [&'static str];
    /// Also those whose names begin so; the first few of them.
    const PREFIX: Option<&'static str> = None;
    /// The most bytes of one that are kept.
    const MOST_BYTES: usize = 4096;
}

/// The labels by which a namespace is in a mesh, or in none.
#[derive(Clone, Debug)]
pub struct MembershipLabels;

/// The entries of a map of texts that are read. Of a text that is longer than [`Wanted::MOST_BYTES`] the beginning is kept,
/// and [`CUT`] after it, so that it is not taken for a whole one.
#[derive(Clone, Debug)]
pub struct Only<W> {
    /// Those that are there.
    pub entries: BTreeMap<String, String>,
    wanted: PhantomData<W>,
}

/// What `T` reads of an object, if that is there.
pub async fn get<K: Resource + Clone, T: DeserializeOwned>(
    api: &Api<K>,
    name: &str,
) -> kube::Result<Option<T>> {
    let request = Request::new(api.resource_url()).get(name, &GetParams::default());
    let request = request.map_err(kube::Error::BuildRequest)?;
    // Not `request::<T>`, which logs what it cannot read, such as a key.
    match api.clone().into_client().request_text(request).await {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(kube::Error::SerdeError),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

impl<L, A> Meta<L, A> {
    /// Name, namespace and UID, and when it was made.
    pub fn named(self) -> ObjectMeta {
        ObjectMeta {
            name: self.name,
            namespace: self.namespace,
            uid: self.uid,
            creation_timestamp: self.creation_timestamp,
            ..ObjectMeta::default()
        }
    }

    /// With its generation, which is said of a status.
    pub fn of_policy(self) -> ObjectMeta {
        ObjectMeta { generation: self.generation, ..self.named() }
    }
}

/// A default for fields whose type has none.
fn none<T>() -> Option<T> {
    None
}

impl Wanted for MembershipLabels {
    const NAMES: &'static [&'static str] = &[MONITORED_BY, IGNORE, CONTROL_PLANE, INJECTION];
}

impl<W> Only<W> {
    /// The value of an entry, if it is there.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(String::as_str)
    }
}

impl<W> Default for Only<W> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), wanted: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for First<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FirstVisitor<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for FirstVisitor<T, MOST> {
            type Value = First<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut first = Vec::new();
                while first.len() < MOST {
                    let Some(item) = items.next_element()? else { return Ok(First(first)) };
                    first.push(item);
                }
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }
        deserializer.deserialize_seq(FirstVisitor(PhantomData))
    }
}

impl<'de, const MOST: usize, const MOST_BYTES: usize> Deserialize<'de> for BoundedEntries<MOST, MOST_BYTES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<const MOST: usize, const MOST_BYTES: usize>;
        impl<'de, const MOST: usize, const MOST_BYTES: usize> Visitor<'de> for EntriesVisitor<MOST, MOST_BYTES> {
            type Value = BoundedEntries<MOST, MOST_BYTES>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut entries, mut bytes) = (BTreeMap::new(), 0);
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    bytes += key.len() + value.len();
                    if entries.len() == MOST || bytes > MOST_BYTES {
                        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                        return Ok(BoundedEntries { entries, has_more: true });
                    }
                    entries.insert(key, value);
                }
                Ok(BoundedEntries { entries, has_more: false })
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

impl<'de, W: Wanted> Deserialize<'de> for Only<W> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyVisitor<W>(PhantomData<W>);
        impl<'de, W: Wanted> Visitor<'de> for OnlyVisitor<W> {
            type Value = Only<W>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Only<W>, A::Error> {
                let (mut only, mut of_prefix) = (Only::default(), 0);
                while let Some(name) = map.next_key_seed(WantedName::<W>(PhantomData))? {
                    let name = match name {
                        Some((name, false)) => Some(name),
                        Some((name, true)) => {
                            of_prefix += 1;
                            (of_prefix <= MOST_OF_PREFIX).then_some(name)
                        }
                        None => None,
                    };
                    match name {
                        Some(name) => {
                            drop(only.entries.insert(name, map.next_value_seed(CutText(W::MOST_BYTES))?));
                        }
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(only)
            }
        }
        deserializer.deserialize_map(OnlyVisitor(PhantomData))
    }
}

/// The name of an entry that is read, and whether it is by its prefix alone.
struct WantedName<W>(PhantomData<W>);

impl<'de, W: Wanted> DeserializeSeed<'de> for WantedName<W> {
    type Value = Option<(String, bool)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<W: Wanted> Visitor<'_> for WantedName<W> {
    type Value = Option<(String, bool)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        let by_prefix = || W::PREFIX.is_some_and(|prefix| name.starts_with(prefix));
        Ok(if W::NAMES.contains(&name) {
            Some((name.to_owned(), false))
        } else {
            by_prefix().then(|| (cut(name, W::MOST_BYTES), true))
        })
    }
}

/// A text of at most so many bytes, or the beginning of a longer one.
struct CutText(usize);

impl<'de> DeserializeSeed<'de> for CutText {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for CutText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(cut(text, self.0))
    }
}

/// A text of at most `most` bytes, or its beginning with [`CUT`] after it.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("{}{CUT}", &text[..text.floor_char_boundary(most)])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    struct Read;

    impl Wanted for Read {
        const NAMES: &'static [&'static str] = &["a", "b"];
        const PREFIX: Option<&'static str> = Some("p/");
    }

    fn read<T: DeserializeOwned>(value: &Value) -> T {
        serde_json::from_str(&value.to_string()).unwrap()
    }

    #[test]
    fn of_a_map_those_entries_are_kept_that_are_read_and_a_long_text_says_that_it_was_cut() {
        let long = "é".repeat(Read::MOST_BYTES);
        let only: Only<Read> = read(&json!({"a": "1", "b": long, "c": "2", "p/x": "3", "q/x": "4"}));
        assert_eq!(only.entries.keys().collect::<Vec<_>>(), ["a", "b", "p/x"]);
        assert_eq!((only.get("a"), only.get("p/x")), (Some("1"), Some("3")));
        let cut = only.get("b").unwrap();
        assert_eq!(cut, format!("{}…", "é".repeat(Read::MOST_BYTES / 2)));
    }

    #[test]
    fn entries_that_are_known_by_their_prefix_do_not_push_out_those_known_by_name() {
        let mut map: BTreeMap<String, String> =
            (0..100).map(|i| (format!("p/{i:03}"), String::new())).collect();
        map.insert("b".to_owned(), "1".to_owned());
        // Before the others and after them.
        for name in ["a", "b"] {
            map.insert(name.to_owned(), "1".to_owned());
        }
        let text: Vec<String> = map.iter().rev().map(|(name, value)| format!("{name:?}:{value:?}")).collect();
        let only: Only<Read> = serde_json::from_str(&format!("{{{}}}", text.join(","))).unwrap();
        assert_eq!(only.entries.len(), 2 + MOST_OF_PREFIX);
        assert_eq!((only.get("a"), only.get("b")), (Some("1"), Some("1")));
    }

    #[test]
    fn a_map_is_kept_up_to_its_bounds_and_says_whether_there_is_more() {
        let map = |count: usize| (0..count).map(|i| (format!("l{i}"), Value::from("x"))).collect::<Value>();
        let entries = |count| read::<BoundedEntries<3, 9>>(&map(count));
        assert_eq!((entries(3).entries.len(), entries(3).has_more), (3, false));
        assert_eq!((entries(4).entries.len(), entries(4).has_more), (3, true));
        let by_bytes: BoundedEntries<3, 8> = read(&map(3));
        assert_eq!((by_bytes.entries.len(), by_bytes.has_more), (2, true));
    }

    #[test]
    fn what_is_not_read_takes_no_memory() {
        type Lean = Meta<Only<Read>>;
        let many: Value = (0..50_000).map(|i| (format!("l{i}"), json!("x"))).collect();
        let fields: Value = (0..20_000).map(|i| (format!("f:{i}"), json!({}))).collect();
        let text = json!({
            "name": "n", "labels": many, "annotations": many, "managedFields": [{"fieldsV1": fields}],
            "finalizers": vec!["f"; 10_000], "uid": "u",
        })
        .to_string();
        let held = allocation_counter::measure(|| {
            let meta: Lean = serde_json::from_str(&text).unwrap();
            assert_eq!(meta.named().name.as_deref(), Some("n"));
        });
        assert!(held.bytes_max < 256, "{} bytes for {} of text", held.bytes_max, text.len());
    }
}
