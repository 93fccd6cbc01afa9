//! The verbs `login` and `logout`.

use std::io::{BufRead, Error, ErrorKind, IsTerminal, Read};

use rbuild_engine::Warning;
use rbuild_linux::HiddenInput;
use rbuild_registry::credentials::{self, Stored};
use rbuild_registry::{CommandLineCredentials, Credential, Options, Secret, VerifiedLogin};

use crate::args::{LoginArgs, LogoutArgs};
use crate::exit::{Failure, code};
use crate::input::{registry, stdin};
use crate::ui::hints::{Hint, VerbRemedy};
use crate::ui::terminal;

/// Maximum length of a password in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

pub fn login(args: LoginArgs) -> Result<u8, Failure> {
    let registry = registry_name(args.registry.as_deref())?;
    let (user, password) = user_and_password(&args)?;
    let given = CommandLineCredentials { login: None, file: args.authfile };
    args.cert_dir.as_deref().map_or(Ok(()), registry::check_cert_dir)?;
    let (tls_verify, cert_dir, servers) = (args.tls_verify.into(), args.cert_dir, args.servers);
    let options = Options { given: given.clone(), tls_verify, cert_dir, servers, ..Options::default() };
    let environment = registry::environment()?;
    let client = registry::client(environment.clone(), options, false);
    let VerifiedLogin { registry, credential } = client.log_in(&registry, &user, &password)?;
    let stored = credentials::store(&environment, &given, &registry, &credential)?;
    match &stored {
        Stored::File(path) if matches!(credential, Credential::Password { .. }) => terminal::warning(Warning {
            text: format!("the password is stored unencrypted in `{path}`"),
            help: Some(Hint::from(VerbRemedy::ConfigureHelper).into()),
        }),
        _ => {}
    }
    if let Some(place) = credentials::preferred(&environment, &given, &registry, &stored) {
        let text = format!("another login for {registry} is in {place}, which takes precedence");
        terminal::warning(Warning { text, help: Some(Hint::from(VerbRemedy::RemoveOtherLogin).into()) });
    }
    terminal::out("Login Succeeded\n");
    Ok(code::OK)
}

pub fn logout(args: LogoutArgs) -> Result<u8, Failure> {
    let registry = registry_name(args.registry.as_deref())?;
    let given = CommandLineCredentials { login: None, file: args.authfile };
    let environment = registry::environment()?;
    // Settings may name another host, whose login is used.
    let used = registry::client(environment.clone(), Options::default(), false).login_name(&registry);
    let mut removed = credentials::forget(&environment, &given, &registry)?;
    if let Some(used) = used.ok().filter(|used| *used != registry) {
        removed.extend(credentials::forget(&environment, &given, &used)?);
    }
    for place in &removed.from {
        terminal::out(&format!("Removed the login for {registry} from {place}\n"));
    }
    if !removed.left.is_empty() {
        let reasons: Vec<String> = removed.left.iter().map(|e| rbuild_remedy::sentence(e)).collect();
        let failure = Failure::new(format!("a login for {registry} may remain: {}", reasons.join("; ")));
        return Err(failure.help(VerbRemedy::RemoveLogin));
    }
    for place in &removed.others {
        let text = format!("another login for {registry} is in {place}, which this command does not change");
        terminal::warning(Warning { text, help: Some(Hint::from(VerbRemedy::RemoveLogin).into()) });
    }
    if removed.from.is_empty() && removed.others.is_empty() {
        terminal::out(&format!("Not logged in to {registry}\n"));
    }
    Ok(code::OK)
}

/// Returns the host of a registry; scheme and path are removed, as in docker.
fn registry_name(given: Option<&str>) -> Result<String, Failure> {
    let given = given.unwrap_or("docker.io");
    let host = given.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or("");
    match host {
        "" => Err(Failure::usage(format!("`{given}` is not the host of a registry"))),
        "index.docker.io" | "registry-1.docker.io" => Ok("docker.io".into()),
        host => Ok(host.to_string()),
    }
}

/// Returns the user and the password, from flags or a prompt.
fn user_and_password(args: &LoginArgs) -> Result<(String, Secret), Failure> {
    if args.password.is_some() && args.password_stdin {
        return Err(Failure::usage("--password and --password-stdin are mutually exclusive"));
    }
    let terminal = std::io::stdin().is_terminal();
    let missing = |credential, remedy: VerbRemedy| {
        let failure = Failure::usage(format!("no {credential} given, and standard input is not a terminal"));
        Err(failure.help(remedy))
    };
    let user = match &args.username {
        Some(user) => user.clone(),
        None if args.password_stdin => return Err(Failure::usage("--password-stdin requires --username")),
        None if !terminal => return missing("user name", VerbRemedy::PassUser),
        None => ask("Username: ")?,
    };
    let password = match &args.password {
        Some(password) => {
            terminal::warning(Warning {
                text: "--password shows the password to other users of this machine".into(),
                help: Some(Hint::from(VerbRemedy::HidePassword).into()),
            });
            password.clone()
        }
        None if args.password_stdin => {
            let mut text = String::new();
            std::io::stdin().take(MAX_PASSWORD).read_to_string(&mut text).map_err(stdin::failed)?;
            text.trim_end_matches(['\r', '\n']).to_string()
        }
        None if !terminal => return missing("password", VerbRemedy::PassPassword),
        None => ask_hidden("Password: ")?,
    };
    match (user.is_empty(), password.is_empty()) {
        (false, false) => Ok((user, Secret::new(password))),
        (true, _) => Err(Failure::usage("the user name is empty")),
        _ => Err(Failure::usage("the password is empty")),
    }
}

fn ask(prompt: &str) -> Result<String, Failure> {
    terminal::err(prompt);
    let mut line = String::new();
    std::io::stdin().lock().take(MAX_PASSWORD).read_line(&mut line).map_err(stdin::failed)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_string())
}

/// Asks for a line that the terminal does not show. The echo is restored if a signal ends this.
fn ask_hidden(prompt: &str) -> Result<String, Failure> {
    let Some(hidden) = HiddenInput::start() else { return ask(prompt) };
    terminal::err(prompt);
    let line = hidden.read_line(MAX_PASSWORD as usize).map_err(stdin::failed)?;
    drop(hidden);
    let Some(line) = line else {
        terminal::err("\n");
        return Err(Failure::interrupted());
    };
    let line = String::from_utf8(line).map_err(|e| stdin::failed(Error::new(ErrorKind::InvalidData, e)))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_string())
}
