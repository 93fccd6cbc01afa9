//! Credentials from arguments and variables, which only the fetcher receives. The builder is a copy
//! of the launcher, so they must not be in the launcher's memory.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::args::{BuildArgs, Cli, Verb};
use crate::exit::Failure;
use crate::input::user_password::user_and_password;
use crate::input::withheld_caches::{CacheLogins, WithheldLogin};

/// Variable with a login.
const CREDS: &str = "RBUILD_CREDS";
/// Variable with a document of logins.
const AUTH_CONFIG: &str = "DOCKER_AUTH_CONFIG";
const FLAG: &str = "--creds";

/// The credentials of the command line and the environment.
#[derive(Default, Serialize, Deserialize)]
pub struct HiddenCredentials {
    /// User and password.
    pub creds: Option<String>,
    /// True if the user and the password come from the flag, false if from the variable.
    pub creds_by_flag: bool,
    /// A document with logins.
    pub auth_config: Option<String>,
    /// Logins for object stores.
    #[serde(default)]
    pub object_logins: Vec<WithheldLogin>,
    /// Variables with logins for object stores, and their values.
    #[serde(default)]
    pub variables: Vec<(String, String)>,
}

/// Executes the program again without its credentials, if it has any.
pub fn hide(cli: &Cli, argv: &[OsString]) -> Result<(), Failure> {
    // This is that program.
    if rbuild_linux::withheld().is_ok_and(|text| text.is_some()) {
        return Ok(());
    }
    let flags = match &cli.verb {
        Verb::Build(args) => Some(&args.registry),
        Verb::Pull(args) => Some(&args.registry),
        Verb::Push(args) => Some(&args.registry),
        Verb::Inspect(args) => Some(&args.registry),
        Verb::Run(args) => Some(&args.container.registry),
        Verb::Create(args) => Some(&args.container.registry),
        _ => None,
    };
    // The words of a container's command are the last ones, and are not flags of rbuild.
    let words = match &cli.verb {
        Verb::Run(args) => args.container.words.len(),
        Verb::Create(args) => args.container.words.len(),
        _ => 0,
    };
    let (line, words) = argv.split_at(argv.len().saturating_sub(words));
    let is_flag = |arg: &OsString| arg == FLAG || arg.as_encoded_bytes().starts_with(b"--creds=");
    let creds_by_flag = line.iter().take_while(|arg| *arg != "--").any(is_flag);
    // CI systems pass an unset secret as an empty variable.
    let given = flags.and_then(|flags| flags.creds.clone()).filter(|pair| creds_by_flag || !pair.is_empty());
    // The launcher must not read them again.
    given.as_deref().map_or(Ok(()), |pair| user_and_password(pair, creds_by_flag).map(drop))?;
    let mut line = if flags.is_some() { without_flag(line) } else { line.to_vec() };
    let mut logins = CacheLogins::default();
    let mut variables = Vec::new();
    if let Verb::Build(args) = &cli.verb {
        line = without_logins(&line, &mut logins)?;
        variables = variables_to_withhold(args, &logins);
    }
    let auth_config = std::env::var(AUTH_CONFIG).ok();
    let found = HiddenCredentials { creds: given, creds_by_flag, auth_config, object_logins: logins.logins, variables };
    if found.creds.is_none()
        && std::env::var_os(CREDS).is_none()
        && std::env::var_os(AUTH_CONFIG).is_none()
        && found.object_logins.is_empty()
        && found.variables.is_empty()
    {
        return Ok(());
    }
    let text = serde_json::to_string(&found).map_err(|e| not_withheld(&e))?;
    let argv = [&line, words].concat();
    let removed: Vec<&str> =
        [CREDS, AUTH_CONFIG].into_iter().chain(found.variables.iter().map(|(name, _)| name.as_str())).collect();
    Err(not_withheld(&rbuild_linux::execute_withholding(&text, &argv, &removed)))
}

/// Returns the arguments without the logins in the values of caches.
fn without_logins(line: &[OsString], logins: &mut CacheLogins) -> Result<Vec<OsString>, Failure> {
    let variable = |name: &str| std::env::var(name).ok();
    let mut kept: Vec<OsString> = Vec::new();
    let mut rest = line.iter();
    while let Some(arg) = rest.next() {
        kept.push(arg.clone());
        let Some(text) = arg.to_str() else { continue };
        if text == "--" {
            break;
        }
        for flag in ["--cache-from", "--cache-to"] {
            if let Some(value) = text.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
                kept.pop();
                kept.push(format!("{flag}={}", logins.withhold(flag, value, &variable)?).into());
            } else if text == flag
                && let Some(value) = rest.next()
            {
                kept.push(match value.to_str() {
                    Some(value) => logins.withhold(flag, value, &variable)?.into(),
                    None => value.clone(),
                });
            }
        }
    }
    kept.extend(rest.cloned());
    Ok(kept)
}

/// Returns the variables with logins of caches, unless the build uses them otherwise, too.
fn variables_to_withhold(args: &BuildArgs, logins: &CacheLogins) -> Vec<(String, String)> {
    let is_used = |name: &&str| args.secret.iter().chain(&args.build_arg).any(|text| text.contains(*name));
    let names = logins.variables().into_iter().filter(|name| !is_used(name));
    names.filter_map(|name| Some((name.to_string(), std::env::var(name).ok()?))).collect()
}

fn not_withheld(e: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::caused("cannot withhold the credentials from the builder", e)
}

/// Removes the flag and its value from valid arguments.
fn without_flag(argv: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut rest = argv.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            kept.push(arg.clone());
            kept.extend(rest.cloned());
            break;
        }
        if arg == FLAG {
            rest.next();
        } else if !arg.as_encoded_bytes().starts_with(b"--creds=") {
            kept.push(arg.clone());
        }
    }
    kept
}

/// Returns the credentials that were set aside.
pub fn read() -> Result<HiddenCredentials, Failure> {
    match rbuild_linux::withheld().map_err(|e| Failure::caused(UNREAD, &e))? {
        Some(text) => parse(&text),
        None => Ok(HiddenCredentials::default()),
    }
}

const UNREAD: &str = "cannot read the credentials that were given";

fn parse(text: &str) -> Result<HiddenCredentials, Failure> {
    serde_json::from_str(text).map_err(|_| Failure::new(format!("{UNREAD}: they are incomplete")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_as_recorded_and_contain_no_credentials() {
        let incomplete = parse("{\"creds\": \"joe:hunter2").map(drop).unwrap_err();
        let not_executed = not_withheld(&std::io::Error::from_raw_os_error(2));
        rbuild_testkit::assert_recorded!("credentials", incomplete.text() + &not_executed.text());
    }

    #[test]
    fn the_flag_is_removed_with_its_value() {
        let removed = |args: &str| {
            let args: Vec<OsString> = args.split(' ').map(OsString::from).collect();
            without_flag(&args).iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(removed("rbuild push --creds a:b -q x"), "rbuild push -q x");
        assert_eq!(removed("rbuild --creds=a:b -t x . --push --creds=c:d"), "rbuild -t x . --push");
        assert_eq!(removed("rbuild push x -- --creds"), "rbuild push x -- --creds");
    }
}
