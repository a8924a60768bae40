// SPDX-License-Identifier: BSD-2-Clause

//! Where results go: one event in, one line of text or of JSON out.
//!
//! Nothing here knows a tool. An event says its kind, its fields (by serde) and its line of text;
//! the sink adds time and tool, and sees to it that nothing hostile reaches a terminal.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

pub use json::{Fields, as_text};
use json::{push_fields, push_payload};

mod json;

/// RFC 3339 in UTC, always with nine digits of a second, so that lines sort as text.
const RFC3339_NANOS: &[FormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");
/// What a person reads at the start of a line: the time of day in UTC, to the millisecond.
const TIME_OF_DAY: &[FormatItem<'static>] =
    format_description!("[hour]:[minute]:[second].[subsecond digits:3]");

/// The form of the results on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// A line for people.
    #[default]
    Text,
    /// JSON Lines: an object per line.
    Json,
}

/// When text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Whether to colour, given whether the output is a terminal and what `NO_COLOR` holds
    /// (<https://no-color.org>: any value that is not empty switches colour off).
    pub fn enabled(self, terminal: bool, no_color: Option<&str>) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => terminal && no_color.is_none_or(str::is_empty),
        }
    }
}

/// What the user asked for on the command line, common to all tools.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// Text or JSON Lines.
    pub format: Format,
    /// When to colour text.
    pub color: Color,
    /// How many times `-v` was given.
    pub verbose: u8,
    /// `-q`: nothing on standard error but errors.
    pub quiet: bool,
}

/// An observation, a state or a count: what a line is made of.
///
/// Its serde fields are the JSON line's, after `time`, `tool` and `kind`.
pub trait Event: Serialize {
    /// The value of `kind`: lower case, stable.
    fn kind(&self) -> &'static str;

    /// Writes the event for people, without the time and without the line's end. Text that came
    /// from outside goes through [`Printable`].
    ///
    /// # Errors
    /// Those of the writer.
    fn text(&self, line: &mut Line<'_>) -> io::Result<()>;

    /// More fields of the JSON line, which do not change from event to event: after the serde fields.
    fn constant(&self) -> Option<&Fields> {
        None
    }

    /// Bytes that passed, whole: last in the JSON line, as `data` if they are text ([`push_text`]), else as
    /// `data_base64` (RFC 4648, section 4); neither if there are none.
    fn payload(&self) -> &[u8] {
        &[]
    }
}

/// A line of text under way, with the colours that the user wants.
pub struct Line<'w> {
    writer: &'w mut dyn Write,
    color: bool,
}

impl fmt::Debug for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("color", &self.color)
            .finish_non_exhaustive()
    }
}

/// The few styles that lines use; SGR parameters of ECMA-48.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Something was refused or is suspicious.
    Bad,
    /// Something was allowed or is in order.
    Good,
    /// Something to notice.
    Note,
    /// Less important than the rest.
    Dim,
}

impl<'w> Line<'w> {
    /// A line that is written to `writer`.
    pub fn new(writer: &'w mut dyn Write, color: bool) -> Self {
        Self { writer, color }
    }

    /// Writes `text` in `style`.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn styled(&mut self, style: Style, text: impl fmt::Display) -> io::Result<()> {
        if !self.color {
            return write!(self.writer, "{text}");
        }
        let parameter = match style {
            Style::Bad => "31",
            Style::Good => "32",
            Style::Note => "33",
            Style::Dim => "2",
        };
        write!(self.writer, "\u{1b}[{parameter}m{text}\u{1b}[0m")
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// A tool's results on their way out.
pub struct Sink<W: Write> {
    tool: &'static str,
    settings: Settings,
    color: bool,
    writer: W,
    /// A line of JSON under way.
    line: Vec<u8>,
    /// The second of the line before, and what it is called.
    second: Option<(i64, String)>,
}

impl<W: Write> fmt::Debug for Sink<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink")
            .field("tool", &self.tool)
            .finish_non_exhaustive()
    }
}

/// The sink that tools write to: standard output behind a buffer, flushed after every batch.
pub type Stdout = Sink<io::BufWriter<Out>>;

/// Where a tool's results go.
#[derive(Debug)]
pub enum Out {
    /// To standard output.
    Stdout(io::Stdout),
    /// Nowhere: they are shown in another way.
    Nowhere,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes).map_err(named),
            Self::Nowhere => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush().map_err(named),
            Self::Nowhere => Ok(()),
        }
    }
}

/// The error, with what could not be written to. One that asks for another try stays what it is.
fn named(err: io::Error) -> io::Error {
    match err.kind() {
        io::ErrorKind::Interrupted => err,
        kind => io::Error::new(kind, format!("standard output: {err}")),
    }
}

/// Results on standard output.
pub fn stdout(tool: &'static str, settings: Settings) -> Stdout {
    sink(tool, settings, Out::Stdout(io::stdout()))
}

/// Results that are shown in another way, on a screen.
pub fn nowhere(tool: &'static str, settings: Settings) -> Stdout {
    sink(tool, settings, Out::Nowhere)
}

fn sink(tool: &'static str, settings: Settings, out: Out) -> Stdout {
    let writer = io::BufWriter::with_capacity(1 << 16, out);
    Sink::new(tool, settings, colored(settings), writer)
}

/// Whether what goes to standard output is to be coloured.
pub fn colored(settings: Settings) -> bool {
    let no_color = std::env::var("NO_COLOR").ok();
    let terminal = io::stdout().is_terminal();
    settings.color.enabled(terminal, no_color.as_deref())
}

impl<W: Write> Sink<W> {
    /// Results of `tool`, written to `writer`; `color` says whether text is coloured.
    pub fn new(tool: &'static str, settings: Settings, color: bool, writer: W) -> Self {
        Self {
            tool,
            settings,
            color,
            writer,
            line: Vec::new(),
            second: None,
        }
    }

    /// Writes `event`, which happened at `time`, as one line.
    ///
    /// # Errors
    /// Those of the writer; a closed pipe is one of them.
    pub fn event<E: Event>(&mut self, time: OffsetDateTime, event: &E) -> io::Result<()> {
        match self.settings.format {
            Format::Json => self.json(time, event),
            Format::Text => {
                let stamp = time.format(TIME_OF_DAY).map_err(io::Error::other)?;
                let mut line = Line::new(&mut self.writer, self.color);
                line.styled(Style::Dim, stamp)?;
                line.write_all(b" ")?;
                event.text(&mut line)?;
                self.writer.write_all(b"\n")
            }
        }
    }

    /// Appends what lines start with. As [`rfc3339`] has it: what a time has in common with that of the line before is not
    /// made anew.
    fn start(&mut self, time: OffsetDateTime, kind: &str) -> io::Result<()> {
        let second = time.unix_timestamp();
        if self.second.as_ref().is_none_or(|(last, _)| *last != second) {
            let mut text = rfc3339(time)?;
            text.truncate("0000-00-00T00:00:00".len());
            self.second = Some((second, text));
        }
        let text = self.second.as_ref().map_or("", |(_, text)| text);
        let (nanosecond, tool) = (time.nanosecond(), self.tool);
        write!(
            self.line,
            "{{\"time\":\"{text}.{nanosecond:09}Z\",\"tool\":\"{tool}\",\"kind\":\"{kind}\""
        )
    }

    fn json<E: Event>(&mut self, time: OffsetDateTime, event: &E) -> io::Result<()> {
        self.line.clear();
        self.start(time, event.kind())?;
        push_fields(&mut self.line, event)?;
        if let Some(Fields(fields)) = event.constant() {
            self.line.extend_from_slice(fields);
        }
        let payload = event.payload();
        if !payload.is_empty() {
            push_payload(&mut self.line, payload)?;
        }
        self.line.extend_from_slice(b"}\n");
        self.writer.write_all(&self.line)
    }

    /// Says that the tool is attached: on standard error, as a JSON line, and to the service
    /// manager where `NOTIFY_SOCKET` is set (`sd_notify(3)`).
    ///
    /// # Errors
    /// Those of the writer.
    pub fn ready<E: Event>(&mut self, event: &E) -> io::Result<()> {
        if self.settings.format == Format::Json {
            self.json(OffsetDateTime::now_utc(), event)?;
        }
        self.writer.flush()?;
        self.note("ready");
        if self.settings.format == Format::Text {
            let mut text = Vec::new();
            event.text(&mut Line::new(&mut text, false))?;
            // It may have nothing more to say.
            if !text.is_empty() {
                self.detail(&String::from_utf8_lossy(&text));
            }
        }
        // A service manager that does not listen is not this program's fault.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        Ok(())
    }

    /// Writes the last line: in JSON on standard output, for people on standard error.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn summary<E: Event>(&mut self, event: &E) -> io::Result<()> {
        match self.settings.format {
            Format::Json => self.json(OffsetDateTime::now_utc(), event)?,
            Format::Text => {
                let mut text = Vec::new();
                event.text(&mut Line::new(&mut text, false))?;
                self.note(&String::from_utf8_lossy(&text));
            }
        }
        self.writer.flush()
    }

    /// Tells the person at the terminal something that is no result.
    pub fn note(&self, text: &str) {
        if !self.settings.quiet {
            say(format_args!("ebpfkit: {}: {}", self.tool, Printable(text)));
        }
    }

    /// Like [`Sink::note`], for those who gave `-v`.
    pub fn detail(&self, text: &str) {
        if self.settings.verbose > 0 {
            self.note(text);
        }
    }

    /// The settings that this sink was made with.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Sends on what is buffered.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// The writer, with what was buffered in it.
    pub fn into_inner(self) -> W {
        self.writer
    }
}

/// `time` as JSON lines carry it.
///
/// # Errors
/// For a year that RFC 3339 cannot say.
pub fn rfc3339(time: OffsetDateTime) -> io::Result<String> {
    time.to_offset(time::UtcOffset::UTC)
        .format(RFC3339_NANOS)
        .map_err(io::Error::other)
}

/// Writes a line to standard error, at once, so that it stays whole beside those of others. Where that cannot be
/// written to, nobody is told, and the work goes on: a full disk must not end a guard.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Text from outside, made safe for a terminal and for a line: control characters, line and
/// paragraph separators, and the marks that reorder text (Unicode's bidirectional controls,
/// CVE-2021-42574) appear as escapes.
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for c in self.0.chars() {
            if is_printable(c) {
                f.write_char(c)?;
            } else {
                write!(f, "{}", c.escape_default())?;
            }
        }
        Ok(())
    }
}

/// Whether `c` may reach a terminal as it is.
pub fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    !c.is_control()
        && !matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// How many bytes there are before the first that is not `wanted`.
pub fn leading(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    /// Without a way out between these, the compiler looks at many at once.
    const STEP: usize = 16;
    let all = |step: &[u8]| step.iter().fold(true, |all, byte| all & wanted(*byte));
    let whole = bytes
        .chunks_exact(STEP)
        .take_while(|step| all(step))
        .count()
        * STEP;
    let rest = bytes[whole..].iter().position(|byte| !wanted(*byte));
    rest.map_or(bytes.len(), |rest| whole + rest)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_line_s_time_is_that_of_its_event_whatever_came_before() {
        let settings = Settings {
            format: Format::Json,
            ..Settings::default()
        };
        let mut sink = Sink::new("test", settings, false, Vec::new());
        for time in [
            datetime!(2026-07-29 12:00:00.000000001 UTC),
            datetime!(2026-07-29 12:00:00.9 UTC),
            datetime!(2026-07-29 14:00:01 +2),
            datetime!(2026-07-29 12:00:00.5 UTC),
            datetime!(1969-12-31 23:59:59.25 UTC),
            datetime!(1969-12-31 23:59:59 UTC),
        ] {
            sink.line.clear();
            sink.start(time, "any").unwrap();
            let wanted = format!(
                "{{\"time\":\"{}\",\"tool\":\"test\",\"kind\":\"any\"",
                rfc3339(time).unwrap()
            );
            assert_eq!(String::from_utf8_lossy(&sink.line), wanted);
        }
    }

    #[derive(Serialize)]
    struct Seen {
        comm: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'static str>,
    }

    impl Event for Seen {
        fn kind(&self) -> &'static str {
            "seen"
        }

        fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
            line.styled(Style::Bad, Printable(self.comm))
        }
    }

    fn lines(format: Format, color: bool) -> String {
        let settings = Settings {
            format,
            ..Settings::default()
        };
        let mut sink = Sink::new("tool", settings, color, Vec::new());
        let seen = Seen {
            comm: "a\u{1b}[31m\nb",
            user: None,
        };
        sink.event(datetime!(2026-01-02 03:04:05.000000006 UTC), &seen)
            .unwrap();
        String::from_utf8(sink.into_inner()).unwrap()
    }

    #[test]
    fn a_json_line_has_time_tool_and_kind_and_no_unknown_value() {
        assert_eq!(
            lines(Format::Json, false),
            "{\"time\":\"2026-01-02T03:04:05.000000006Z\",\"tool\":\"tool\",\"kind\":\"seen\",\
             \"comm\":\"a\\u001b[31m\\nb\"}\n"
        );
    }

    #[test]
    fn json_escapes_what_may_not_reach_a_terminal() {
        let comm = "gr\u{fc}n \u{1f600}\u{9b}31m\"\u{202e}\u{7f}x\u{e0001}";
        let mut sink = Sink::new(
            "tool",
            Settings {
                format: Format::Json,
                ..Settings::default()
            },
            false,
            Vec::new(),
        );
        let seen = Seen { comm, user: None };
        sink.event(OffsetDateTime::UNIX_EPOCH, &seen).unwrap();
        let line = String::from_utf8(sink.into_inner()).unwrap();
        let escaped = "gr\u{fc}n \u{1f600}\\u009b31m\\\"\\u202e\\u007fx\\udb40\\udc01";
        assert!(line.contains(escaped), "{line:?}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["comm"], comm);
    }

    #[test]
    fn text_carries_no_escape_of_another_and_stays_one_line() {
        assert_eq!(
            lines(Format::Text, false),
            "03:04:05.000 a\\u{1b}[31m\\nb\n"
        );
    }

    #[test]
    fn color_is_added_only_when_wanted() {
        assert_eq!(
            lines(Format::Text, true),
            "\u{1b}[2m03:04:05.000\u{1b}[0m \u{1b}[31ma\\u{1b}[31m\\nb\u{1b}[0m\n"
        );
        assert!(Color::Auto.enabled(true, None));
        assert!(Color::Auto.enabled(true, Some("")));
        assert!(!Color::Auto.enabled(true, Some("1")));
        assert!(!Color::Auto.enabled(false, None));
        assert!(Color::Always.enabled(false, Some("1")));
    }

    #[test]
    fn marks_that_reorder_or_hide_text_are_escaped() {
        for hidden in [
            '\u{202e}', '\u{2066}', '\u{200b}', '\u{9b}', '\u{7f}', '\u{2028}',
        ] {
            assert!(!is_printable(hidden), "{hidden:?}");
        }
        assert_eq!(Printable("grün 日本").to_string(), "grün 日本");
    }
}
