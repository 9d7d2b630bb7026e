//! A request for tests.

use super::matching::RequestView;
use crate::path::split_query;

#[derive(Clone, Debug)]
pub(crate) struct TestRequest {
    method: String,
    authority: String,
    target: String,
    fields: Vec<(String, String)>,
}

impl TestRequest {
    pub(crate) fn new(method: &str, authority: &str, target: &str) -> Self {
        Self { method: method.into(), authority: authority.into(), target: target.into(), fields: vec![] }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }
}

impl RequestView for TestRequest {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }

    fn path(&self) -> &[u8] {
        split_query(self.target.as_bytes()).0
    }

    fn query(&self) -> Option<&[u8]> {
        split_query(self.target.as_bytes()).1
    }

    fn field<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_bytes())
    }
}
