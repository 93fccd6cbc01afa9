//! Text, widths, tables, diagnostics, hints, transfer bars, workflow commands and the timings page.

pub mod annotations;
pub mod columns;
pub mod diagnostics;
pub mod hints;
pub mod plain;
pub mod terminal;
pub mod timings_html;
pub mod transfer_bar;
pub mod workflow_commands;
