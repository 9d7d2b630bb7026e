//! Global limits as the model has them, with all that is wrong with them.
//!
//! What is wrong with a value is reported with its path, and something else applies: a service without a valid host cannot be
//! called, so that `failOpen` decides; a descriptor with a wrong entry is left out. `problems` gets the path of a field, and what is
//! wrong with it.

use std::time::Duration;

use tidegate_core::policy::{
    DescribedField, DescriptorEntry, DescriptorPair, FieldCondition, FieldTest, GlobalConnectionLimit,
    GlobalRequestLimit, HeaderValueMatch, RateLimitService, RequestDescriptor, ServerAddress,
};

use super::global::{
    DescriptorSpec, HeaderConditionSpec, HeaderValueMatchSpec, HttpDescriptorEntrySpec,
    HttpGlobalRateLimitSpec, RateLimitServiceSpec, TcpGlobalRateLimitSpec,
};
use crate::call_timeout::call_timeout;

/// Status of the response above a limit that names none.
pub const TOO_MANY_REQUESTS: u16 = 429;
/// Time for one call if none is set, as in OSM.
const CALL_TIMEOUT: Duration = Duration::from_millis(20);
const GENERIC_KEY: &str = "generic_key";
const HEADER_MATCH: &str = "header_match";

impl TcpGlobalRateLimitSpec {
    /// The limit; `path` is its place in the object.
    pub fn read(&self, path: &str, problems: &mut dyn FnMut(String, String)) -> GlobalConnectionLimit {
        let descriptors = self.descriptors.iter().map(|descriptor| {
            descriptor.entries.iter().map(|entry| pair(&entry.key, &entry.value)).collect()
        });
        let (timeout, fail_open) = (self.timeout.as_deref(), self.fail_open);
        GlobalConnectionLimit {
            service: service(&self.rate_limit_service, &self.domain, (timeout, fail_open), path, problems),
            descriptors: descriptors.collect(),
        }
    }
}

impl HttpGlobalRateLimitSpec {
    /// The limit, without routes; `path` is its place in the object.
    pub fn read(&self, path: &str, problems: &mut dyn FnMut(String, String)) -> GlobalRequestLimit {
        let (timeout, fail_open) = (self.timeout.as_deref(), self.fail_open);
        let service = service(&self.rate_limit_service, &self.domain, (timeout, fail_open), path, problems);
        GlobalRequestLimit {
            service,
            descriptors: read_descriptors(self.descriptors.as_deref().unwrap_or_default(), path, problems),
            routes: Vec::new(),
            status: self.response_status_code.unwrap_or(TOO_MANY_REQUESTS),
            has_rate_limit_headers: self.enable_x_rate_limit_headers == Some(true),
        }
    }
}

/// The descriptors without mistakes; `path` is the place of the limit in the object.
pub fn read_descriptors(
    descriptors: &[DescriptorSpec<HttpDescriptorEntrySpec>],
    path: &str,
    problems: &mut dyn FnMut(String, String),
) -> Vec<RequestDescriptor> {
    let mut read = Vec::with_capacity(descriptors.len());
    for (i, descriptor) in descriptors.iter().enumerate() {
        let mut entries = Vec::with_capacity(descriptor.entries.len());
        for (j, entry) in descriptor.entries.iter().enumerate() {
            let path = format!("{path}.descriptors[{i}].entries[{j}]");
            match entry.read() {
                Ok(entry) => entries.push(entry),
                Err((field, problem)) => problems(format!("{path}{field}"), problem),
            }
        }
        if entries.len() == descriptor.entries.len() && !entries.is_empty() {
            read.push(RequestDescriptor { entries });
        }
    }
    read
}

fn service(
    spec: &RateLimitServiceSpec,
    domain: &str,
    (timeout, fail_open): (Option<&str>, Option<bool>),
    path: &str,
    problems: &mut dyn FnMut(String, String),
) -> RateLimitService {
    let address = match (spec.port, ServerAddress::parse(&spec.host, spec.port)) {
        (1.., Ok(address)) => Some(address),
        (0, _) => {
            problems(format!("{path}.rateLimitService.port"), "must be from 1 to 65535".into());
            None
        }
        (_, Err(error)) => {
            problems(format!("{path}.rateLimitService.host"), error.to_string());
            None
        }
    };
    let timeout = call_timeout(timeout, CALL_TIMEOUT).unwrap_or_else(|(timeout, problem)| {
        problems(format!("{path}.timeout"), problem);
        timeout
    });
    RateLimitService { address, domain: domain.into(), timeout, fail_open: fail_open != Some(false) }
}

impl HttpDescriptorEntrySpec {
    /// The entry. The error is the path of a field below it, and what is wrong with it.
    fn read(&self) -> Result<DescriptorEntry, (String, String)> {
        let Self { generic_key, remote_address, request_header, header_value_match } = self;
        match (generic_key, remote_address, request_header, header_value_match) {
            (Some(generic), None, None, None) => {
                Ok(DescriptorEntry::Generic(pair(key(generic.key.as_deref(), GENERIC_KEY), &generic.value)))
            }
            (None, Some(_), None, None) => Ok(DescriptorEntry::RemoteAddress),
            (None, None, Some(header), None) => {
                let field = field(&header.name).map_err(|problem| (".requestHeader.name".into(), problem))?;
                Ok(DescriptorEntry::Header { field, key: header.key.as_str().into() })
            }
            (None, None, None, Some(header)) => header.read().map(DescriptorEntry::HeaderMatch),
            _ => Err((
                String::new(),
                "must have exactly one of genericKey, remoteAddress, requestHeader and headerValueMatch"
                    .into(),
            )),
        }
    }
}

impl HeaderValueMatchSpec {
    fn read(&self) -> Result<HeaderValueMatch, (String, String)> {
        let condition = |(i, condition): (usize, &HeaderConditionSpec)| {
            let below = |(field, problem): (&str, String)| {
                (format!(".headerValueMatch.headers[{i}]{field}"), problem)
            };
            condition.read().map_err(below)
        };
        Ok(HeaderValueMatch {
            pair: pair(key(self.key.as_deref(), HEADER_MATCH), &self.value),
            conditions: self.headers.iter().enumerate().map(condition).collect::<Result<_, _>>()?,
            is_expected: self.expect_match != Some(false),
        })
    }
}

impl HeaderConditionSpec {
    fn read(&self) -> Result<FieldCondition, (&'static str, String)> {
        let Self { name, exact, prefix, suffix, regex, contains, present } = self;
        let texts =
            [exact, prefix, suffix, contains].map(|text| text.as_deref().filter(|text| !text.is_empty()));
        let regex = regex.as_deref().filter(|regex| !regex.is_empty());
        let test = match (texts, regex, present) {
            ([Some(text), None, None, None], None, None) => FieldTest::Exact(text.into()),
            ([None, Some(text), None, None], None, None) => FieldTest::Prefix(text.into()),
            ([None, None, Some(text), None], None, None) => FieldTest::Suffix(text.into()),
            ([None, None, None, Some(text)], None, None) => FieldTest::Contains(text.into()),
            ([None, None, None, None], Some(text), None) => {
                let test = FieldTest::regex(text);
                test.map_err(|error| (".regex", format!("{text:?} {}", error.problem)))?.without_program()
            }
            ([None, None, None, None], None, Some(present)) => FieldTest::Present(*present),
            _ => {
                let problem = "must have exactly one of exact, prefix, suffix, regex, contains and present";
                return Err(("", problem.into()));
            }
        };
        let field = field(name).map_err(|problem| (".name", problem))?;
        Ok(FieldCondition { field, test })
    }
}

fn field(name: &str) -> Result<DescribedField, String> {
    DescribedField::parse(name).map_err(|error| format!("{name:?} {}", error.problem))
}

/// A key, or the one that applies if there is none.
fn key<'k>(key: Option<&'k str>, default: &'k str) -> &'k str {
    key.filter(|key| !key.is_empty()).unwrap_or(default)
}

fn pair(key: &str, value: &str) -> DescriptorPair {
    DescriptorPair { key: key.into(), value: value.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(limit: Value) -> (GlobalRequestLimit, Vec<String>) {
        let spec: HttpGlobalRateLimitSpec = serde_json::from_value(limit).unwrap();
        let mut problems = Vec::new();
        let limit = spec.read("http", &mut |path, problem| problems.push(format!("{path}: {problem}")));
        (limit, problems)
    }

    fn limit(entry: &Value) -> Value {
        json!({
            "rateLimitService": {"host": "ratelimit.shop.svc", "port": 8081},
            "domain": "shop",
            "descriptors": [{"entries": [{"genericKey": {"value": "all"}}]}, {"entries": [entry]}],
        })
    }

    #[test]
    fn defaults_are_osm_s() {
        let (limit, problems) = read(limit(&json!({"remoteAddress": {}})));
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!((limit.status, limit.has_rate_limit_headers), (429, false));
        assert_eq!((limit.service.timeout, limit.service.fail_open), (Duration::from_millis(20), true));
        let generic = DescriptorEntry::Generic(pair("generic_key", "all"));
        let entries: Vec<_> = limit.descriptors.into_iter().map(|descriptor| descriptor.entries).collect();
        assert_eq!(entries, [[generic], [DescriptorEntry::RemoteAddress]]);
    }

    #[test]
    fn an_entry_is_one_of_four_kinds_and_a_condition_one_of_six() {
        let header = |condition: Value| json!({"headerValueMatch": {"value": "v", "headers": [condition]}});
        for (entry, problem) in [
            (json!({}), "http.descriptors[1].entries[0]: must have exactly one of genericKey,"),
            (
                json!({"remoteAddress": {}, "genericKey": {"value": "a"}}),
                "http.descriptors[1].entries[0]: must",
            ),
            (
                json!({"requestHeader": {"name": ":status", "key": "a"}}),
                "http.descriptors[1].entries[0].requestHeader.name: \":status\" is not a header name",
            ),
            (
                header(json!({"name": "a"})),
                "http.descriptors[1].entries[0].headerValueMatch.headers[0]: must have exactly one of exact,",
            ),
            (
                header(json!({"name": "a", "exact": "b", "present": true})),
                "http.descriptors[1].entries[0].headerValueMatch.headers[0]: must have exactly one of exact,",
            ),
            (
                header(json!({"name": "a", "regex": "("})),
                "http.descriptors[1].entries[0].headerValueMatch.headers[0].regex: \"(\" is not a regular expression",
            ),
        ] {
            let (limit, problems) = read(limit(&entry));
            assert!(problems.len() == 1 && problems[0].starts_with(problem), "{problems:?}");
            assert_eq!(limit.descriptors.len(), 1, "the other descriptor stays");
        }
        for test in ["exact", "prefix", "suffix", "contains", "regex"] {
            let (limit, problems) = read(limit(&header(json!({"name": "a", test: "b"}))));
            assert_eq!((limit.descriptors.len(), problems.len()), (2, 0), "{test}");
        }
    }

    #[test]
    fn a_service_without_a_valid_host_cannot_be_called_and_a_time_has_bounds() {
        let with = |field: &str, value: Value| {
            let mut limit = limit(&json!({"remoteAddress": {}}));
            limit[field] = value;
            read(limit)
        };
        let (limit, problems) = with("rateLimitService", json!({"host": "a b", "port": 1}));
        assert_eq!(limit.service.address, None);
        assert!(problems[0].starts_with("http.rateLimitService.host: "), "{problems:?}");
        for (text, milliseconds) in [("0s", 20), ("soon", 20), ("2m", 60_000)] {
            let (limit, problems) = with("timeout", text.into());
            assert_eq!(limit.service.timeout, Duration::from_millis(milliseconds), "{text}");
            assert!(problems[0].starts_with("http.timeout: "), "{problems:?}");
        }
        let (limit, problems) = with("timeout", "1500ms".into());
        assert_eq!((limit.service.timeout, problems.len()), (Duration::from_millis(1500), 0));
    }
}
