//! YAML as a tree with the place of each value, and a deserializer that reports the place of an invalid one.
//!
//! serde alone reports a place only for syntax errors. Here the text is parsed into a tree whose nodes have their
//! places, and the tree is deserialized into the object's type: an error takes the place of the node where it
//! occurred and collects the path to it on the way up. The same tree becomes JSON for the schema's check. JSON files
//! are read the same way, because JSON is YAML.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer, StringDeserializer};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_saphyr::Spanned;

/// A place in a text; lines and columns count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct YamlPlace {
    pub(super) line: u64,
    pub(super) column: u64,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct YamlNode {
    pub(super) place: YamlPlace,
    pub(super) value: YamlValue,
}

/// The values of YAML's core schema. Integers beyond `i64` are kept apart, because object fields are signed.
#[derive(Clone, Debug)]
pub(super) enum YamlValue {
    Null,
    Bool(bool),
    Integer(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    List(Vec<YamlNode>),
    Map(Vec<(String, YamlNode)>),
}

/// A value that does not fit its type: the place, the field, and the reason.
#[derive(Clone, Debug)]
pub(super) struct Misfit {
    pub(super) place: Option<YamlPlace>,
    /// Path to the field, innermost step first.
    steps: Vec<String>,
    pub(super) message: String,
}

impl YamlNode {
    /// Parses one document; an error has the place where the text stops being YAML.
    pub(super) fn parse(text: &str) -> Result<Self, Misfit> {
        let options = serde_saphyr::options! { with_snippet: false };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| Misfit {
            place: error.location().map(|at| YamlPlace { line: at.line(), column: at.column() }),
            steps: Vec::new(),
            message: plain_message(&error),
        })
    }

    /// A field of a map; `None` for other values. Duplicate keys were refused by the parser.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            YamlValue::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// A text; numbers and other values are not texts.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            YamlValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The place of the field at a path such as `spec.backends[0].port`, or of the deepest part of the path that
    /// exists.
    pub(super) fn locate(&self, path: &str) -> YamlPlace {
        let mut node = self;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let next = match (&node.value, step.strip_suffix(']')) {
                (YamlValue::List(items), Some(index)) => index.parse().ok().and_then(|i: usize| items.get(i)),
                _ => node.get(step),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.place
    }

    /// The value without places, for the check against a schema.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            YamlValue::Null => serde_json::Value::Null,
            YamlValue::Bool(value) => (*value).into(),
            YamlValue::Integer(value) => (*value).into(),
            YamlValue::Unsigned(value) => (*value).into(),
            YamlValue::Float(value) => (*value).into(),
            YamlValue::Text(value) => value.as_str().into(),
            YamlValue::List(items) => items.iter().map(Self::to_json).collect(),
            YamlValue::Map(entries) => serde_json::Value::Object(
                entries.iter().map(|(key, node)| (key.clone(), node.to_json())).collect(),
            ),
        }
    }
}

impl Misfit {
    /// The field, such as `spec.ports[0].port`; `None` for the whole document.
    pub(super) fn field(&self) -> Option<String> {
        let path: String = self.steps.iter().rev().map(String::as_str).collect();
        let path = path.strip_prefix('.').unwrap_or(&path);
        (!path.is_empty()).then(|| path.to_owned())
    }

    /// Adds the step that leads to the value, and the place of the parent's node if no deeper one is recorded.
    fn within(mut self, step: String, place: YamlPlace) -> Self {
        self.place.get_or_insert(place);
        self.steps.push(step);
        self
    }
}

/// The reason without the place that the library appends: we report places ourselves, counted within the whole file.
fn plain_message(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = text.split(" at line ").next().unwrap_or_default();
    // Advice to programmers, not to authors of manifests.
    let text = text.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
    text.trim_end_matches(['.', ',', ':']).to_owned()
}

impl<'de> Deserialize<'de> for YamlNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<YamlValue>::deserialize(deserializer)?;
        let place = YamlPlace { line: spanned.referenced.line(), column: spanned.referenced.column() };
        Ok(Self { place, value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for YamlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

/// Builds a [`YamlValue`] from whatever the parser finds.
struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = YamlValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<YamlValue, E> {
        Ok(YamlValue::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<YamlValue, E> {
        Ok(YamlValue::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<YamlValue, E> {
        Ok(i64::try_from(value).map_or(YamlValue::Unsigned(value), YamlValue::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<YamlValue, E> {
        Ok(YamlValue::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<YamlValue, E> {
        Ok(YamlValue::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<YamlValue, E> {
        Ok(YamlValue::Text(value))
    }

    fn visit_unit<E>(self) -> Result<YamlValue, E> {
        Ok(YamlValue::Null)
    }

    fn visit_none<E>(self) -> Result<YamlValue, E> {
        Ok(YamlValue::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<YamlValue, D::Error> {
        YamlValue::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<YamlValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(YamlValue::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<YamlValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(YamlValue::Map(entries))
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { place: None, steps: Vec::new(), message: message.to_string() }
    }
}

/// A node as input of serde. Types decide what fits; only what YAML and Kubernetes' JSON differ in is handled here.
impl<'de> Deserializer<'de> for &'de YamlNode {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let result = match &self.value {
            YamlValue::Null => visitor.visit_unit(),
            YamlValue::Bool(value) => visitor.visit_bool(*value),
            YamlValue::Integer(value) => visitor.visit_i64(*value),
            YamlValue::Unsigned(value) => visitor.visit_u64(*value),
            YamlValue::Float(value) => visitor.visit_f64(*value),
            YamlValue::Text(value) => visitor.visit_borrowed_str(value),
            YamlValue::List(items) => visitor.visit_seq(YamlItems { items, next: 0 }),
            YamlValue::Map(entries) => visitor.visit_map(YamlEntries { entries, next: 0 }),
        };
        result.map_err(|mut misfit| {
            misfit.place.get_or_insert(self.place);
            misfit
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.value {
            YamlValue::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// Quantities may be written as numbers, which Kubernetes reads as text.
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let number = match self.value {
            YamlValue::Integer(value) => Some(value.to_string()),
            YamlValue::Float(value) => Some(value.to_string()),
            _ => None,
        };
        match number {
            Some(number) if name == "Quantity" => {
                let text: StringDeserializer<Misfit> = number.into_deserializer();
                visitor.visit_newtype_struct(text)
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    /// A variant by its bare name, or with its content as the only entry of a map.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match &self.value {
            YamlValue::Text(text) => visitor.visit_enum(UnitVariant(text)),
            YamlValue::List(items) => SeqAccessDeserializer::new(YamlItems { items, next: 0 })
                .deserialize_enum(name, variants, visitor),
            YamlValue::Map(entries) => MapAccessDeserializer::new(YamlEntries { entries, next: 0 })
                .deserialize_enum(name, variants, visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map struct identifier ignored_any
    }
}

/// The items of a list, with the index for the path of an error.
struct YamlItems<'n> {
    items: &'n [YamlNode],
    next: usize,
}

impl<'n> SeqAccess<'n> for YamlItems<'n> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'n>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some(item) = self.items.get(self.next) else { return Ok(None) };
        let step = format!("[{}]", self.next);
        self.next += 1;
        seed.deserialize(item).map(Some).map_err(|misfit| misfit.within(step, item.place))
    }
}

/// The entries of a map, with the key for the path of an error.
struct YamlEntries<'n> {
    entries: &'n [(String, YamlNode)],
    next: usize,
}

impl<'n> MapAccess<'n> for YamlEntries<'n> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'n>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        let Some((key, _)) = self.entries.get(self.next) else { return Ok(None) };
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'n>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let Some((key, node)) = self.entries.get(self.next) else {
            return Err(de::Error::custom("a value without a key"));
        };
        self.next += 1;
        seed.deserialize(node).map_err(|misfit| misfit.within(format!(".{key}"), node.place))
    }
}

/// The bare name of a variant, which can have no content.
struct UnitVariant<'n>(&'n str);

impl<'n> EnumAccess<'n> for UnitVariant<'n> {
    type Error = Misfit;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'n>>(self, seed: V) -> Result<(V::Value, Self), Misfit> {
        Ok((seed.deserialize(self.0.into_deserializer())?, self))
    }
}

impl<'n> VariantAccess<'n> for UnitVariant<'n> {
    type Error = Misfit;

    fn unit_variant(self) -> Result<(), Misfit> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'n>>(self, _: T) -> Result<T::Value, Misfit> {
        Err(de::Error::custom("expected a value, got a bare name"))
    }

    fn tuple_variant<V: Visitor<'n>>(self, _: usize, _: V) -> Result<V::Value, Misfit> {
        Err(de::Error::custom("expected a list, got a bare name"))
    }

    fn struct_variant<V: Visitor<'n>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Misfit> {
        Err(de::Error::custom("expected fields, got a bare name"))
    }
}
