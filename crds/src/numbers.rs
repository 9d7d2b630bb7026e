//! Schemas of numbers that several kinds have. Kubernetes knows no unsigned formats and warns about formats that it does not know,
//! so that the smallest and the greatest value are bounds.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A port, 1 to 65535.
pub(crate) fn port_number(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 })
}

/// At most `most` ports.
pub(crate) fn port_numbers(generator: &mut SchemaGenerator, most: usize) -> Schema {
    json_schema!({ "type": "array", "maxItems": most, "items": port_number(generator) })
}

/// A number from 0 that may be null.
pub(crate) fn optional_count(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 0, "maximum": u32::MAX, "nullable": true })
}
