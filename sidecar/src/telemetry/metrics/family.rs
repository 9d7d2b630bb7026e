//! How families of the metrics page begin.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;

/// Begins a family of counters without a unit.
pub(super) fn counter<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    name: &'s str,
    help: &str,
) -> Result<MetricEncoder<'s>, Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)
}
