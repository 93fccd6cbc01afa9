//! Clients of registries, from flags and the environment.

use std::path::Path;
use std::sync::OnceLock;

use rbuild_image::Reference;
use rbuild_linux::quoted;
use rbuild_registry::{
    Client, CommandLineCredentials, CommandLineLogin, Notice, OpenUploads, Options, ProcessEnvironment, RetryPolicy,
    Secret, ShortNames,
};
use rbuild_remedy::{ReportedError, sentence};

use crate::args::RegistryFlags;
use crate::exit::{Failure, reported};
use crate::input::hidden_credentials::{self, HiddenCredentials};
use crate::input::user_password::{setting, user_and_password};
use crate::input::withheld_caches::WithheldLogin;
use crate::input::{flags, value};
use crate::ui::hints::{self, ValueRemedy};
use crate::ui::plain::plain;
use crate::ui::terminal;

/// Returns a client that reports waits and warnings on standard error, unless `quiet`.
pub fn client(environment: ProcessEnvironment, options: Options, quiet: bool) -> Client {
    Client::new(environment, options, move |notice| {
        if !quiet {
            show(&notice);
        }
    })
}

/// Shows a notice of a client on standard error.
pub fn show(notice: &Notice) {
    match notice {
        Notice::Waiting { .. } => terminal::err(&format!("{}\n", words(notice))),
        Notice::Warning { .. } => terminal::warning(words(notice)),
    }
}

/// Returns the text of a notice.
pub fn words(notice: &Notice) -> String {
    match notice {
        Notice::Waiting { host, reason, wait } => {
            let seconds = wait.as_secs_f64().ceil();
            let host = if reason.contains(host) { String::new() } else { format!("{host}: ") };
            plain(&format!("{host}{reason}; trying again in {seconds} s")).into_owned()
        }
        Notice::Warning { host, text } => format!("{host}: {text}"),
    }
}

/// Returns the image that a text of the command line names.
///
/// # Errors
///
/// Fails if the text is not a name, or if the settings do not determine its registry.
pub fn full_name(text: &str) -> Result<Reference, Failure> {
    let name = value::image_name(text)?;
    check_short_names()?;
    let short_names = ShortNames::read(&ProcessEnvironment::of_process())?;
    Ok(short_names.map_or(Ok(None), |names| names.full(text))?.unwrap_or(name))
}

/// Returns the name that the settings determine for a short one; `None` if they determine none.
pub fn configured_name(text: &str) -> Option<String> {
    let short_names = ShortNames::read(&ProcessEnvironment::of_process()).ok().flatten()?;
    short_names.full(text).ok().flatten().map(|full| full.to_string())
}

/// Returns the image that a name in a Dockerfile stands for, if that is not the one of docker.io.
pub fn full_name_in_dockerfile(text: &str) -> Result<Option<Reference>, ReportedError> {
    let read = ShortNames::read(&ProcessEnvironment::of_process());
    let full = read.and_then(|names| names.map_or(Ok(None), |names| names.full(text)));
    full.map_err(|e| reported(&e, e.remedy()))
}

/// Returns the environment of this process, with the credentials that were set aside.
pub fn environment() -> Result<ProcessEnvironment, Failure> {
    let environment = ProcessEnvironment::of_process();
    let HiddenCredentials { auth_config, variables, .. } = hidden_credentials::read()?;
    let documents = auth_config.map(|text| ("DOCKER_AUTH_CONFIG".to_string(), text));
    let withheld = documents.into_iter().chain(variables);
    Ok(withheld.fold(environment, |environment, (name, value)| environment.with(&name, &value)))
}

/// Returns the client for the flags. Credentials among them are sent only to the registry of `own`,
/// the images that the command pulls or pushes.
pub fn client_of(flags: &RegistryFlags, own: &[Reference], quiet: bool) -> Result<Client, Failure> {
    client_with(flags, own, move |notice| {
        if !quiet {
            show(&notice);
        }
    })
}

/// Returns the same client, with another receiver of its notices.
pub fn client_with(
    flags: &RegistryFlags,
    own: &[Reference],
    notify: impl Fn(Notice) + Send + Sync + 'static,
) -> Result<Client, Failure> {
    Ok(Client::new(environment()?, options(flags, own, RetryPolicy::default())?, notify))
}

/// Returns a client without images and notices, with its own timeouts and numbers of attempts.
pub fn client_within(flags: &RegistryFlags, retry_policy: RetryPolicy) -> Result<Client, Failure> {
    Ok(Client::new(environment()?, options(flags, &[], retry_policy)?, |_| {}))
}

fn options(flags: &RegistryFlags, own: &[Reference], retry_policy: RetryPolicy) -> Result<Options, Failure> {
    check(flags)?;
    let HiddenCredentials { creds, creds_by_flag, object_logins, .. } = hidden_credentials::read()?;
    let object_logins = object_logins.into_iter().map(WithheldLogin::login).collect();
    let login = creds.map(|pair| own_login(&pair, own, creds_by_flag)).transpose()?;
    let given = CommandLineCredentials { login, file: flags.authfile.clone() };
    let (tls_verify, cert_dir) = (flags.tls_verify.into(), flags.cert_dir.clone());
    let servers = flags.servers.clone();
    let uploads = uploads().clone();
    Ok(Options { given, tls_verify, cert_dir, servers, object_logins, retry_policy, uploads, ..Options::default() })
}

/// Returns the open uploads of all clients of this process.
pub fn uploads() -> &'static OpenUploads {
    static UPLOADS: OnceLock<OpenUploads> = OnceLock::new();
    UPLOADS.get_or_init(OpenUploads::default)
}

/// Checks the variable with the meaning of short names.
///
/// # Errors
///
/// Fails if its value is unknown.
fn check_short_names() -> Result<(), Failure> {
    let known = ShortNames::are_configured(&ProcessEnvironment::of_process());
    known.map(drop).map_err(|e| Failure::usage(sentence(&e)).help(hints::use_one_of(&["docker", "podman"])))
}

/// Checks the flags for logins and the meaning of short names, even if no registry will be
/// contacted.
///
/// # Errors
///
/// Fails if the login file does not exist, or if `RBUILD_SHORT_NAMES` is invalid.
pub fn check(flags: &RegistryFlags) -> Result<(), Failure> {
    check_short_names()?;
    if let Some(path) = flags.authfile.as_ref().filter(|path| !path.exists()) {
        return Err(Failure::usage(format!("--authfile {}: no such file or directory", quoted(path)))
            .help(ValueRemedy::LoginFile));
    }
    flags.cert_dir.as_deref().map_or(Ok(()), check_cert_dir)
}

/// Checks the directory with certificates.
///
/// # Errors
///
/// Fails if it is not a directory.
pub fn check_cert_dir(dir: &Path) -> Result<(), Failure> {
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err("it is not a directory".to_string()),
        Err(e) => Err(flags::reason(&e)),
    }
    .map_err(|reason| {
        let message = format!("--cert-dir {}: {reason}", quoted(dir));
        Failure::usage(message).help(ValueRemedy::CertificateDirectory)
    })
}

fn own_login(pair: &str, own: &[Reference], by_flag: bool) -> Result<CommandLineLogin, Failure> {
    let (user, password) = user_and_password(pair, by_flag)?;
    let mut registries: Vec<&str> = own.iter().map(Reference::registry).collect();
    registries.sort_unstable();
    registries.dedup();
    if registries.len() > 1 {
        let name = setting(by_flag);
        let message = format!("{name} is a login for one registry, but there are several: {}", registries.join(", "));
        return Err(Failure::usage(message).help(ValueRemedy::LogInToEach));
    }
    let registry = registries.first().map(|registry| registry.to_string());
    Ok(CommandLineLogin { user: user.to_string(), password: Secret::new(password), registry })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_apply_to_the_registry_of_the_command() {
        let names = |list: &[&str]| list.iter().map(|name| name.parse().unwrap()).collect::<Vec<Reference>>();
        let login = own_login("joe:a:b", &names(&["a.io/x:1", "a.io/y"]), true).unwrap();
        assert_eq!(
            (login.user.as_str(), login.password.reveal(), login.registry.as_deref()),
            ("joe", "a:b", Some("a.io"))
        );
        assert_eq!(own_login("joe:a", &names(&["x"]), true).unwrap().registry.as_deref(), Some("docker.io"));
        assert_eq!(own_login("joe:a", &[], true).unwrap().registry, None);
        assert!(own_login("joe:a", &names(&["a.io/x", "b.io/x"]), true).unwrap_err().message.contains("a.io, b.io"));
        for invalid in ["", "joe", ":a", "joe:"] {
            assert!(own_login(invalid, &[], true).is_err(), "{invalid}");
        }
        for (by_flag, want) in [(true, "--creds: the value"), (false, "RBUILD_CREDS: the value")] {
            let message = own_login("joe", &[], by_flag).unwrap_err().message;
            assert!(message.starts_with(want), "{message}");
        }
    }

    #[test]
    fn notices_and_faults_of_logins_are_as_recorded() {
        let names: Vec<Reference> = ["a.io/x", "b.io/x"].map(|name| name.parse().unwrap()).to_vec();
        let waiting = |reason: &str, milliseconds| Notice::Waiting {
            host: "a.io".into(),
            reason: reason.into(),
            wait: std::time::Duration::from_millis(milliseconds),
        };
        let warning = Notice::Warning { host: "a.io".into(), text: "a warning".into() };
        let notices = [waiting("connection reset by peer", 1200), waiting("a.io answered 503", 60_000), warning];
        let notices = notices.map(|notice| words(&notice) + "\n");
        let refused = |(pair, by_flag)| own_login(pair, &names, by_flag).map(drop).expect_err(pair).text();
        let faults = [("joe", true), ("joe", false), (":a", true), ("joe:a", true), ("joe:a", false)].map(refused);
        rbuild_testkit::assert_recorded!("registries", notices.concat() + &faults.concat());
    }
}
