//! Bounded deserialization of the lists and texts of custom resources. Data beyond a bound is an error that names the
//! field, and is not kept in memory, so that authors of objects and clients of the webhooks cannot exhaust it.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Maximum characters of a Kubernetes name, or of a host.
pub(crate) const NAME: usize = 253;
/// Maximum characters of a word, or of a DNS label.
pub(crate) const WORD: usize = 63;

/// Deserializes a list of at most `most` items. `field` is its path, such as `spec.backends`.
pub(crate) fn list<'de, D, T>(deserializer: D, field: &'static str, most: usize) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(List { field, most, item: PhantomData })
}

/// Like [`list`], for a field that may be absent or null.
pub(crate) fn optional_list<'de, D, T>(
    deserializer: D,
    field: &'static str,
    most: usize,
) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_option(Optional(List { field, most, item: PhantomData }))
}

/// Deserializes a list of at most `most` texts of at most `MOST` characters; one that is absent or null is empty.
pub(crate) fn texts<'de, D, const MOST: usize>(
    deserializer: D,
    field: &'static str,
    most: usize,
) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(optional_texts::<D, MOST>(deserializer, field, most)?.unwrap_or_default())
}

/// Like [`texts`], but keeps whether the list is there.
pub(crate) fn optional_texts<'de, D, const MOST: usize>(
    deserializer: D,
    field: &'static str,
    most: usize,
) -> Result<Option<Vec<String>>, D::Error>
where
    D: Deserializer<'de>,
{
    let texts = optional_list::<D, Text<MOST>>(deserializer, field, most)?;
    Ok(texts.map(|texts| texts.into_iter().map(String::from).collect()))
}

/// Deserializes a map of at most `most` entries whose keys have at most `KEY` characters, for a field that may be null.
pub(crate) fn map<'de, D, const KEY: usize, T>(
    deserializer: D,
    field: &'static str,
    most: usize,
) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(Map::<KEY, T> { field, most, value: PhantomData })
}

/// A text of at most `MOST` characters, as JSON schema's `maxLength` counts them.
#[derive(Debug)]
pub(crate) struct Text<const MOST: usize>(String);

/// Deserializes a text of at most `MOST` characters.
pub(crate) fn text<'de, D, const MOST: usize>(deserializer: D) -> Result<String, D::Error>
where
    D: Deserializer<'de>,
{
    Text::<MOST>::deserialize(deserializer).map(|text| text.0)
}

/// Like [`text`], for a field that may be absent or null.
pub(crate) fn optional_text<'de, D, const MOST: usize>(deserializer: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::<Text<MOST>>::deserialize(deserializer)?.map(|text| text.0))
}

struct List<T> {
    field: &'static str,
    most: usize,
    item: PhantomData<T>,
}

struct Optional<T>(List<T>);

struct Map<const KEY: usize, T> {
    field: &'static str,
    most: usize,
    value: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} items", self.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while list.len() < self.most {
            match items.next_element()? {
                Some(item) => list.push(item),
                None => return Ok(list),
            }
        }
        match items.next_element::<IgnoredAny>()? {
            None => Ok(list),
            Some(_) => Err(A::Error::custom(format!("{}: {}", self.field, too_many(self.most)))),
        }
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Optional<T> {
    type Value = Option<Vec<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self.0).map(Some)
    }
}

impl<'de, const KEY: usize, T: Deserialize<'de>> Visitor<'de> for Map<KEY, T> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map of at most {} entries", self.most)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = entries.next_key::<Text<KEY>>()? {
            if map.len() >= self.most {
                return Err(A::Error::custom(format!("{}: {}", self.field, too_many_entries(self.most))));
            }
            map.insert(key.0, entries.next_value()?);
        }
        Ok(map)
    }
}

impl<'de, const MOST: usize> Deserialize<'de> for Text<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<const MOST: usize>;
        impl<const MOST: usize> Visitor<'_> for TextVisitor<MOST> {
            type Value = Text<MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                if is_longer(text, MOST) {
                    return Err(E::custom(too_long(MOST)));
                }
                Ok(Text(text.to_owned()))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

impl<const MOST: usize> From<Text<MOST>> for String {
    fn from(text: Text<MOST>) -> Self {
        text.0
    }
}

/// Whether a text has more than `most` characters.
pub(crate) fn is_longer(text: &str, most: usize) -> bool {
    text.len() > most && text.chars().nth(most).is_some()
}

/// The message for a list that is too long.
pub(crate) fn too_many(most: usize) -> String {
    format!("Too many: must have at most {most} items")
}

/// The message for a map that is too large.
fn too_many_entries(most: usize) -> String {
    format!("Too many: must have at most {most} entries")
}

/// The message for a text that is too long.
pub(crate) fn too_long(most: usize) -> String {
    format!("Too long: may not be more than {most} characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug, PartialEq)]
    struct Sample {
        #[serde(default, deserialize_with = "few")]
        few: Option<Vec<u8>>,
        #[serde(default, deserialize_with = "optional_text::<_, 3>")]
        text: Option<String>,
    }

    fn few<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        optional_list(deserializer, "few", 2)
    }

    #[test]
    fn the_bound_is_still_read_and_one_more_is_an_error_that_says_so() {
        let read = |text: &str| serde_json::from_str::<Sample>(text).map_err(|error| error.to_string());
        assert_eq!(
            read(r#"{"few": [1, 2], "text": "äöü"}"#),
            Ok(Sample { few: Some(vec![1, 2]), text: Some("äöü".into()) })
        );
        assert_eq!(read(r#"{"few": null, "text": null}"#), Ok(Sample { few: None, text: None }));
        assert!(
            read(r#"{"few": [1, 2, 3]}"#)
                .unwrap_err()
                .starts_with("few: Too many: must have at most 2 items")
        );
        assert!(
            read(r#"{"text": "abcd"}"#)
                .unwrap_err()
                .starts_with("Too long: may not be more than 3 characters")
        );
    }
}
