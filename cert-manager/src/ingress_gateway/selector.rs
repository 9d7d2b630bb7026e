//! A label selector in the form of `kubectl --selector`: `a=b,c!=d,e,!f`, all of which must match.

use std::collections::BTreeMap;

/// Maximum requirements of a selector.
const MOST: usize = 16;

/// A requirement for labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

/// One requirement of a label selector; all of them must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    /// `key=value`, `key==value`.
    Is(String, String),
    /// `key!=value`; objects without the label match.
    IsNot(String, String),
    /// `key`.
    Has(String),
    /// `!key`.
    HasNot(String),
}

impl Selector {
    /// Parses a selector. One without requirements would select every object and is refused.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let all: Vec<_> = text.split(',').map(str::trim).map(Requirement::parse).collect::<Result<_, _>>()?;
        if all.len() > MOST { Err(format!("more than {MOST} requirements")) } else { Ok(Self(all)) }
    }

    /// Whether labels match.
    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Is(key, value) => labels.get(key) == Some(value),
            Requirement::IsNot(key, value) => labels.get(key) != Some(value),
            Requirement::Has(key) => labels.contains_key(key),
            Requirement::HasNot(key) => !labels.contains_key(key),
        })
    }
}

impl Requirement {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a requirement such as key=value, key!=value, key or !key");
        let key = |key: &str| {
            let key = key.trim();
            let is_name = !key.is_empty()
                && key.len() <= 317
                && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
            is_name.then(|| key.to_owned()).ok_or_else(wrong)
        };
        let value = |value: &str| {
            let value = value.trim();
            let is_value = value.len() <= 63
                && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            is_value.then(|| value.to_owned()).ok_or_else(wrong)
        };
        match (text.split_once("!="), text.split_once('='), text.strip_prefix('!')) {
            (Some((left, right)), ..) => Ok(Self::IsNot(key(left)?, value(right)?)),
            (None, Some((left, right)), _) => {
                Ok(Self::Is(key(left)?, value(right.strip_prefix('=').unwrap_or(right))?))
            }
            (None, None, Some(absent)) => key(absent).map(Self::HasNot),
            (None, None, None) => key(text).map(Self::Has),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_requirements_must_hold() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let selector = Selector::parse("tls = yes, env!=dev,team,!example.com/no").unwrap();
        for (pairs, expected) in [
            (&[("tls", "yes"), ("team", "")][..], true),
            (&[("tls", "yes"), ("team", "a"), ("env", "prod")], true),
            (&[("tls", "yes"), ("team", "a"), ("env", "dev")], false),
            (&[("tls", "yes"), ("team", "a"), ("example.com/no", "")], false),
            (&[("tls", "no"), ("team", "a")], false),
            (&[("tls", "yes")], false),
            (&[], false),
        ] {
            assert_eq!(selector.matches(&labels(pairs)), expected, "{pairs:?}");
        }
        assert_eq!(Selector::parse("a==b"), Selector::parse("a=b"));
    }

    #[test]
    fn text_that_is_not_a_requirement_is_refused_and_quoted() {
        for text in ["", "a,", "a in (b)", "=b", "!", "a=b c", "a=b=c"] {
            let problem = Selector::parse(text).unwrap_err();
            assert!(problem.contains("is not a requirement"), "{text}: {problem}");
        }
        assert_eq!(Selector::parse(&["a"; 17].join(",")).unwrap_err(), "more than 16 requirements");
    }
}
