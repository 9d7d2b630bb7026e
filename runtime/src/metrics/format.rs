//! The two text formats of a metrics page, and the choice between them.
//!
//! The registry writes OpenMetrics 1.0. The classic text format 0.0.4, which `promtool check metrics` and older
//! scrapers read, is derived from it: a counter's family has the name of its samples, and there is neither `# UNIT` nor
//! `# EOF`.

use std::fmt::Write;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// The format that a request's `Accept` headers prefer: OpenMetrics if they list it with at least the weight of
    /// `text/plain`, otherwise the classic one, as Prometheus' own client libraries decide.
    pub(crate) fn accepted(headers: &HeaderMap) -> Self {
        let ranges = || {
            let fields = headers.get_all(ACCEPT).iter().filter_map(|field| field.to_str().ok());
            fields.flat_map(|field| field.split(','))
        };
        let weight_of = |wanted: &str| {
            let weights = ranges()
                .map(weighted)
                .filter(|(range, _)| range.eq_ignore_ascii_case(wanted))
                .map(|(_, q)| q);
            weights.fold(0.0, f32::max)
        };
        let open_metrics = weight_of("application/openmetrics-text");
        if open_metrics > 0.0 && open_metrics >= weight_of("text/plain") {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// Its `content-type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A media range without its parameters, and its weight: 1 unless `q` says otherwise, 0 if `q` is malformed (RFC 9110 §12.4.2).
fn weighted(range: &str) -> (&str, f32) {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    (name, weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)))
}

/// Converts a page of OpenMetrics to the classic text format.
pub(super) fn to_text(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    // A family's help comes before its type, which determines its name.
    let mut help = None;
    for line in page.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|described| described.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            // Writing to a String cannot fail.
            if let Some((_, help)) = help.take_if(|(described, _)| *described == name) {
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(fields: &[&'static str]) -> Format {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(ACCEPT, field.parse().unwrap());
        }
        Format::accepted(&headers)
    }

    #[test]
    fn the_accept_fields_choose_the_format() {
        // What Prometheus 2 and 3 send by default.
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                          q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for fields in [
            [prometheus].as_slice(),
            &["application/openmetrics-text"],
            &["text/html", "Application/OpenMetrics-Text"],
            &["text/plain, application/openmetrics-text; version=1.0.0"],
        ] {
            assert_eq!(accepted(fields), Format::OpenMetrics, "{fields:?}");
        }
        for fields in [
            [].as_slice(),
            &["*/*"],
            &["text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.4"],
            &["application/openmetrics-text;q=0"],
            &["application/openmetrics-text;q=much"],
        ] {
            assert_eq!(accepted(fields), Format::Text, "{fields:?}");
        }
    }

    #[test]
    fn the_classic_format_names_families_as_their_samples_and_has_no_units() {
        let page = "# HELP tidegate_sent_bytes Payload.\n# TYPE tidegate_sent_bytes counter\n\
                    # UNIT tidegate_sent_bytes bytes\ntidegate_sent_bytes_total 7\n\
                    # HELP tidegate_build About it.\n# TYPE tidegate_build info\ntidegate_build_info{version=\"1\"} 1\n\
                    # HELP tidegate_wait_seconds Time.\n# TYPE tidegate_wait_seconds histogram\n\
                    tidegate_wait_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n";
        assert_eq!(
            to_text(page),
            "# HELP tidegate_sent_bytes_total Payload.\n# TYPE tidegate_sent_bytes_total counter\n\
             tidegate_sent_bytes_total 7\n# HELP tidegate_build_info About it.\n# TYPE tidegate_build_info gauge\n\
             tidegate_build_info{version=\"1\"} 1\n# HELP tidegate_wait_seconds Time.\n\
             # TYPE tidegate_wait_seconds histogram\ntidegate_wait_seconds_bucket{le=\"+Inf\"} 2\n"
        );
    }
}
