//! The verb `man`: prints a manual page, or writes all of them.

use crate::args::ManArgs;
use crate::cli::man;
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
    terminal::out(&String::from_utf8_lossy(&page.text));
    Ok(code::OK)
}
