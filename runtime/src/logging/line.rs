//! One line of the log: every value is cut, and cannot end the line or send control sequences to a terminal.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Maximum bytes of one value. Field names are fixed in the program, so this bounds the line as well.
const MAX_VALUE: usize = 2048;

/// Suffix of a value that was cut.
const CUT: &str = "… (cut)";

/// Writes a field as text: `name=value`, the message without its name.
pub(super) fn write_text(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    let mut text = LineText::new(true);
    text.format(format_args!("{value:?}"));
    writer.write_str(&text.text)
}

/// A line that is one JSON object: `timestamp`, `level`, the event's fields, `target`.
#[derive(Clone, Copy, Debug)]
pub(super) struct JsonLine;

/// A value's text, up to the limit.
struct LineText {
    text: String,
    /// Whether to escape control characters.
    escapes: bool,
}

/// Writes fields into an open object.
struct JsonFields<'w, 'l> {
    writer: &'w mut Writer<'l>,
    result: fmt::Result,
}

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        writer.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "\",\"level\":\"{}\"", metadata.level())?;
        let mut fields = JsonFields { writer: &mut writer, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        writer.write_str(",\"target\":")?;
        write_quoted(&mut writer, metadata.target())?;
        writer.write_str("}\n")
    }
}

impl JsonFields<'_, '_> {
    fn write(&mut self, field: &Field, write: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        self.result = self.result.and_then(|()| {
            self.writer.write_char(',')?;
            write_quoted(self.writer, field.name())?;
            self.writer.write_char(':')?;
            write(self.writer)
        });
    }

    fn write_text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let mut text = LineText::new(false);
        text.format(value);
        self.write(field, |writer| write_quoted(writer, &text.text));
    }
}

impl Visit for JsonFields<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write_text(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write_text(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, |writer| write!(writer, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, |writer| write!(writer, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, |writer| write!(writer, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.write(field, |writer| {
            if value.is_finite() {
                write!(writer, "{value}")
            } else {
                // JSON cannot represent it.
                writer.write_str("null")
            }
        });
    }
}

impl LineText {
    fn new(escapes: bool) -> Self {
        Self { text: String::new(), escapes }
    }

    /// Keeps what fits. Formatting stops once the value is too long.
    fn format(&mut self, value: fmt::Arguments<'_>) {
        if self.write_fmt(value).is_err() {
            self.text.push_str(CUT);
        }
    }
}

impl Write for LineText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.text.len() + c.len_utf8() > MAX_VALUE {
                return Err(fmt::Error);
            }
            if self.escapes && is_control(c) {
                self.text.extend(c.escape_default());
            } else {
                self.text.push(c);
            }
        }
        Ok(())
    }
}

/// Characters that a terminal or a line reader may interpret: control characters, Unicode's line and paragraph
/// separators, and characters that change the direction of text.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A string of JSON (RFC 8259 §7).
fn write_quoted(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    writer.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => writer.write_str("\\\"")?,
            '\\' => writer.write_str("\\\\")?,
            '\n' => writer.write_str("\\n")?,
            // Each is one unit of UTF-16.
            c if is_control(c) => write!(writer, "\\u{:04x}", u32::from(c))?,
            c => writer.write_char(c)?,
        }
    }
    writer.write_char('"')
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::super::{LogFormat, lines};
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = lines(format, move || writer.clone(), false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const HOSTILE: &str = "a\n2026-01-01T00:00:00Z ERROR forged\r\x1b[31m\u{9b}\u{2028}\u{202e}\"\\";

    #[test]
    fn no_value_makes_a_line_of_its_own_or_reaches_a_terminal() {
        let text = logged(LogFormat::Text, || {
            tracing::info!(shown = %HOSTILE, debugged = ?HOSTILE, plain = HOSTILE, "say {HOSTILE}");
        });
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(text.ends_with('\n') && !text.trim_end_matches('\n').contains(is_control), "{text:?}");
        assert_eq!(
            text.matches("a\\n2026-01-01T00:00:00Z ERROR forged\\r\\u{1b}[31m\\u{9b}").count(),
            4,
            "{text}"
        );
        assert!(text.contains(" shown=a\\n") && text.contains(" plain=\"a\\n"), "{text}");

        let text = logged(LogFormat::Json, || {
            tracing::info!(shown = %HOSTILE, plain = HOSTILE, count = 7, is_so = true, "say {HOSTILE}");
        });
        assert!(!text.trim_end_matches('\n').contains(is_control), "{text:?}");
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&object["shown"], &object["plain"]), (&HOSTILE.into(), &HOSTILE.into()));
        assert_eq!(object["message"], format!("say {HOSTILE}"));
        assert_eq!((&object["count"], &object["is_so"]), (&7.into(), &true.into()));
        assert_eq!((&object["level"], &object["target"]), (&"INFO".into(), &module_path!().into()));
        assert!(object["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_long_value_is_cut_in_every_format() {
        let long = "é".repeat(2_000_000);
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format, || tracing::warn!(name = %long, again = ?long, "{long}"));
            assert!(text.len() < 4 * MAX_VALUE && text.matches(CUT).count() == 3, "{} bytes", text.len());
        }
    }
}
