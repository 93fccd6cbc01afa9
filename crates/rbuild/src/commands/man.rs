//! The verb `man`: shows or prints a manual page, or writes all of them.

use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};

use crate::args::ManArgs;
use crate::cli::{clap_command, man};
use crate::exit::{Failure, code};
use crate::input::output;
use crate::ui::hints::UsageRemedy;
use crate::ui::terminal;

pub fn man(args: ManArgs) -> Result<u8, Failure> {
    if let Some(dir) = &args.output {
        let failed = |e| output::unwritten("the directory", dir, rbuild_linux::Error::new("mkdirat", dir.as_path(), e));
        std::fs::create_dir_all(dir).map_err(failed)?;
        for page in man::all() {
            let path = dir.join(page.file);
            output::file("the manual page", &path)?
                .write(&page.text)
                .map_err(|e| output::unwritten("the manual page", &path, e))?;
        }
        return Ok(code::OK);
    }
    let page = man::page(args.command.as_deref()).ok_or_else(|| {
        let name = args.command.as_deref().unwrap_or_default();
        Failure::usage(format!("no manual page for `{name}`")).help(UsageRemedy::ListCommands)
    })?;
    if std::io::stdout().is_terminal() {
        if !is_shown_by_man(&page.text) {
            terminal::out(&clap_command::help(args.command.as_deref(), true));
        }
    } else {
        terminal::out(&String::from_utf8_lossy(&page.text));
    }
    Ok(code::OK)
}

/// Shows a page with man(1), which formats and pages it. Returns false if that is impossible.
fn is_shown_by_man(page: &[u8]) -> bool {
    let man = Command::new("man").args(["-l", "-"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut man) = man else { return false };
    // A reader that ends early has seen enough.
    let _ = man.stdin.take().map(|mut input| input.write_all(page));
    man.wait().is_ok_and(|status| status.success())
}
