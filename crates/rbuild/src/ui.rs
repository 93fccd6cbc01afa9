//! Text, tables, diagnostics, transfer bars and the timings page.

pub mod diagnostics;
pub mod terminal;
pub mod timings_html;
pub mod transfer_bar;
