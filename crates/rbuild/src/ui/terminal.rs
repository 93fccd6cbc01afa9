//! Writes to the terminal. Standard output carries only data; everything else goes to standard
//! error.

use rbuild_dockerfile::Help;
use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rbuild_engine::Warning;
use serde_json::json;

use crate::ui::columns;
use crate::ui::hints::Hint;
use crate::ui::plain::plain;
use crate::ui::workflow_commands::{self, quoted_lines, without_inner_commands};

/// First failure to write to standard output.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// True if GitHub reads the output and executes workflow commands in it.
static FOR_GITHUB: AtomicBool = AtomicBool::new(false);
/// True if errors are annotated.
static ANNOTATES: AtomicBool = AtomicBool::new(false);

/// Prevents that text of a build is executed as a workflow command of GitHub. Applies to all output
/// of this process and of those that it forks.
pub fn quote_for_github() {
    FOR_GITHUB.store(true, Ordering::Relaxed);
}

/// Does the same as [`quote_for_github`], and annotates errors.
pub fn write_for_github() {
    quote_for_github();
    ANNOTATES.store(true, Ordering::Relaxed);
}

/// True if warnings are JSON documents.
static FOR_PROGRAMS: AtomicBool = AtomicBool::new(false);

/// Prints warnings as JSON documents, as `--progress rawjson` requires. Applies to this process and
/// those that it forks.
pub fn write_for_programs() {
    FOR_PROGRAMS.store(true, Ordering::Relaxed);
}

/// Returns true after [`write_for_programs`].
fn is_for_programs() -> bool {
    FOR_PROGRAMS.load(Ordering::Relaxed)
}

fn is_for_github() -> bool {
    FOR_GITHUB.load(Ordering::Relaxed)
}

/// Returns true if text on standard error is colored.
pub fn colors() -> bool {
    has_colors(io::stderr().is_terminal(), |name| std::env::var_os(name))
}

/// Returns true if text is colored: on terminals, unless NO_COLOR is set (no-color.org), and
/// elsewhere if FORCE_COLOR is set (force-color.org).
fn has_colors(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let is_set = |name| variable(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && (is_terminal || is_set("FORCE_COLOR"))
}

/// Returns true if lines on standard error can be redrawn.
pub fn redraws() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|t| !t.is_empty() && t != "dumb")
}

/// Returns the width of standard error, if it is a terminal.
pub fn columns() -> Option<usize> {
    io::stderr().is_terminal().then(rbuild_linux::terminal::terminal_size).flatten().map(|(_, columns)| columns)
}

/// Prints an error, and its hint on a second line.
pub fn error(message: &str, help: Option<&Hint>) {
    err(&error_text(message, help, colors()));
    annotate(|| workflow_commands::error(None, &plain(message)));
}

/// Formats an error, with its hint on a second line.
pub fn error_text(message: &str, help: Option<&Hint>, colors: bool) -> String {
    let (on, off) = if colors { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let hint = help.map_or(String::new(), |help| help.line(colors));
    format!("{on}error{off}: {}\n{hint}", plain(message))
}

/// Prints a warning.
pub fn warning(warning: impl Into<Warning<Help>>) {
    let warning = warning.into();
    if is_for_programs() {
        err(&warning_document(&warning_line(&warning)));
    } else {
        err(&warning_text(&warning, colors()));
    }
}

/// Prints a note: a fact that is neither an error nor a reason for a warning.
pub fn note(text: &str) {
    err(&format!("note: {}\n", plain(text)));
}

/// Returns a warning as a line of `--progress rawjson`.
pub fn warning_document(text: &str) -> String {
    format!("{}\n", json!({"warnings": [{"level": 1, "short": STANDARD.encode(text)}]}))
}

/// Formats a warning, with its hint on a second line.
pub fn warning_text(warning: &Warning<Help>, colors: bool) -> String {
    let (on, off) = if colors { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
    let hint = warning.help.as_ref().map_or(String::new(), |help| Hint::from(help).line(colors));
    format!("{on}warning{off}: {}\n{hint}", plain(&warning.text))
}

/// Returns a warning and its hint on one line, without a title.
pub fn warning_line(warning: &Warning<Help>) -> String {
    let hint = warning.help.as_ref().map_or(String::new(), |help| format!("; {}", Hint::from(help)));
    plain(&format!("{}{hint}", warning.text)).into_owned()
}

/// Writes to standard error. A failure is ignored, because it could not be reported.
pub fn err(text: &str) {
    if is_for_github() { err_with_commands(&quoted_lines(text)) } else { err_with_commands(text) }
}

/// Writes a text whose lines may be workflow commands of rbuild itself.
pub fn err_with_commands(text: &str) {
    let _ = io::stderr().write_all(written(text).as_bytes());
}

/// Writes annotations, if GitHub reads the output.
pub fn annotate(lines: impl FnOnce() -> String) {
    if ANNOTATES.load(Ordering::Relaxed) {
        err_with_commands(&lines());
    }
}

/// Returns the form in which a text is written.
fn written(text: &str) -> Cow<'_, str> {
    if is_for_github() { without_inner_commands(text).into() } else { text.into() }
}

/// Writes data to standard output. A closed pipe (`| head`) is not an error; any other failure is
/// kept for [`lost_output`].
pub fn out(text: &str) {
    let mut stdout = io::stdout().lock();
    let text = if is_for_github() { quoted_lines(text).into() } else { Cow::Borrowed(text) };
    if let Err(e) = stdout.write_all(written(&text).as_bytes()).and_then(|()| stdout.flush())
        && e.kind() != io::ErrorKind::BrokenPipe
    {
        LOST.get_or_init(|| e);
    }
}

/// Returns the error because of which data could not be written to standard output.
pub fn lost_output() -> Option<&'static io::Error> {
    LOST.get()
}

/// Formats a table like docker: headings, then rows, with three spaces between columns.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|h| columns::width(h)).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(columns::width(cell));
        }
    }
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            text.push_str(&columns::pad(cell, width + 3));
        }
        text.trim_end().to_string() + "\n"
    };
    let mut text = line(headings.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_table_are_aligned() {
        let row = |cells: [&str; 3]| cells.map(String::from).to_vec();
        let rows = [row(["編集", "x", "end"]), row(["a", "", ""]), row(["e\u{301}", "long name", "end"])];
        let want = "NAME   TAG         LAST\n編集   x           end\na\ne\u{301}      long name   end\n";
        assert_eq!(table(&["NAME", "TAG", "LAST"], &rows), want);
    }

    #[test]
    fn colors_follow_the_terminal_and_the_two_variables() {
        for (is_terminal, no, force, want) in [
            (true, None, None, true),
            (false, None, None, false),
            (true, Some("1"), None, false),
            (true, Some(""), None, true),
            (false, None, Some("1"), true),
            (false, None, Some(""), false),
            (false, Some("1"), Some("1"), false),
        ] {
            let value = |name: &str| if name == "NO_COLOR" { no } else { force }.map(OsString::from);
            assert_eq!(has_colors(is_terminal, value), want, "{is_terminal} {no:?} {force:?}");
        }
    }

    #[test]
    fn untrusted_text_cannot_control_the_terminal() {
        for colors in [false, true] {
            let foreign = "a\u{1b}]0;title\u{7}b\rc\u{9b}31m\u{202e}d\ne\tf\u{7f}";
            let warning = Warning { text: foreign.into(), help: Some(foreign.into()) };
            for text in
                [error_text(foreign, Some(&Hint::from(&Help::from(foreign))), colors), warning_text(&warning, colors)]
            {
                let shown = "a\\u{1b}]0;title\\u{7}b\\rc\\u{9b}31m\\u{202e}d\ne\tf\\u{7f}";
                assert_eq!(text.matches(shown).count(), 2, "{text:?}");
                assert_eq!(text.contains('\u{1b}'), colors);
            }
            assert!(!warning_line(&warning).contains(['\u{1b}', '\r', '\u{202e}']));
        }
    }
}
