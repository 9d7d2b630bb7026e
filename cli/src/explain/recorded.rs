//! A request that a sidecar has recorded, as its access log has it.

use std::process::ExitCode;

use serde_json::Value;

use crate::output::{OutputFormat, print_as, printable};

/// Prints what happened to the requests with an ID, the oldest first. Exits with 1 if none is recorded.
pub(super) fn print_requests(id: &str, requests: &[Value], output: OutputFormat) -> anyhow::Result<ExitCode> {
    if requests.is_empty() {
        anyhow::bail!(
            "the sidecar has no record of request {:?}: it keeps recent failures, traced requests and a sample of others; its \
             access log may have it",
            printable(id)
        );
    }
    print_as(output, &requests, |requests| requests.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// One line for each fact that there is.
fn text(request: &Value) -> String {
    let found = |key: &str| if key.starts_with('/') { request.pointer(key) } else { request.get(key) };
    let known = |key: &str| match found(key) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(printable(text)),
        Some(value) => Some(value.to_string()),
    };
    let joined = |keys: &[&str]| {
        let parts: Vec<_> = keys.iter().filter_map(|key| known(key)).collect();
        (!parts.is_empty()).then(|| parts.join(" "))
    };
    let time = |key| known(key).map(|time| format!("{time} ms"));
    let lines = [
        ("time", known("start_time")),
        ("direction", known("direction")),
        ("request", joined(&["method", "authority", "path", "protocol"])),
        ("status", known("response_code")),
        ("flags", known("response_flags").filter(|flags| flags != "-")),
        ("details", known("response_code_details")),
        ("cause", known("upstream_transport_failure_reason")),
        ("route", known("route_name")),
        ("policy", known("policy")),
        ("destination", known("upstream_cluster")),
        ("backend", known("/remote/service")),
        ("endpoint", known("upstream_host")),
        ("workload", joined(&["/remote/namespace", "/remote/workload", "/remote/principal"])),
        ("client", joined(&["downstream_remote_address", "presented_names"])),
        ("duration", time("duration")),
        ("of upstream", time("upstream_service_time")),
    ];
    let line = |(name, value): (&str, Option<String>)| value.map(|value| format!("{name:<15} {value}\n"));
    lines.into_iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_has_no_line() {
        let request = json!({
            "start_time": "2026-01-01T00:00:00.000Z", "direction": "outbound", "method": "GET", "authority": "cart",
            "path": "/a\u{1b}", "protocol": "HTTP/1.1", "response_code": 503, "response_flags": "UF",
            "upstream_transport_failure_reason": "Connection refused (os error 111)",
            "route_name": "HTTPRoute/shop/r/0", "upstream_host": null, "duration": 7, "policy": null,
            "remote": {"service": "shop/cart-v2", "workload": null},
        });
        let expected = "time            2026-01-01T00:00:00.000Z\ndirection       outbound\n\
                        request         GET cart /a\\u{1b} HTTP/1.1\nstatus          503\nflags           UF\n\
                        cause           Connection refused (os error 111)\n\
                        route           HTTPRoute/shop/r/0\nbackend         shop/cart-v2\nduration        7 ms\n";
        assert_eq!(text(&request), expected);
        assert!(print_requests("x", &[], OutputFormat::Table).is_err());
    }
}
