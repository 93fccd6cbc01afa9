//! Clients of registries, from flags and the environment.

use rbuild_registry::{Client, Environment, Given, Notice, Options, Secret, TlsVerify};

use crate::args::RegistryFlags;
use crate::exit::Failure;
use crate::ui::terminal;

/// Returns a client that tells of waits and warnings on standard error, unless `quiet`.
pub fn client(environment: Environment, options: Options, quiet: bool) -> Client {
    Client::new(environment, options, move |notice| {
        if quiet {
            return;
        }
        match notice {
            Notice::Waiting { host, reason, wait } => {
                let seconds = wait.as_secs_f64().ceil();
                let host = if reason.contains(&host) { String::new() } else { format!("{host}: ") };
                terminal::err(&format!("{host}{reason}; trying again in {seconds} s\n"));
            }
            Notice::Warning { host, text } => terminal::warning(format!("{host}: {text}")),
        }
    })
}

/// Returns the client that flags ask for.
pub fn client_of(flags: &RegistryFlags, quiet: bool) -> Result<Client, Failure> {
    if let Some(path) = flags.authfile.as_ref().filter(|path| !path.exists()) {
        return Err(Failure::usage(format!("--authfile {}: there is no such file", path.display())));
    }
    let login = match &flags.creds {
        None => None,
        Some(pair) => match pair.split_once(':') {
            Some((user, password)) if !user.is_empty() => Some((user.to_string(), Secret::new(password))),
            _ => return Err(Failure::usage("--creds: the value is not of the form USER:PASSWORD")),
        },
    };
    let given = Given { login, file: flags.authfile.clone() };
    let options = Options { given, tls_verify: TlsVerify(flags.tls_verify), ..Options::default() };
    Ok(client(Environment::of_process(), options, quiet))
}
