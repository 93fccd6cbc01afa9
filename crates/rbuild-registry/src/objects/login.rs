//! Logins for object stores: given ones, and those of the environment.

use std::path::PathBuf;

use crate::config_error::{ConfigError, FileAction};
use crate::environment::ProcessEnvironment;
use crate::objects::azure::{AzureKey, AzureLogin};
use crate::objects::place::{AzureContainer, ObjectPlace};
use crate::objects::sigv4::AwsKey;
use crate::secret::Secret;
use crate::url;

/// A login for an object store. Parts that are missing come from the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectLogin {
    /// ID of the access key.
    pub id: Option<Secret>,
    /// The key that signs requests.
    pub key: Option<Secret>,
    /// A token: that of a temporary login, or a shared access signature.
    pub token: Option<Secret>,
}

/// The login of requests to a store.
#[derive(Clone)]
pub(crate) enum StoreLogin {
    S3 { key: Option<AwsKey>, region: String },
    Azure(AzureLogin),
}

/// A login, and the description of its origin as a clause.
#[derive(Clone)]
pub(crate) struct FoundLogin {
    pub login: StoreLogin,
    pub description: String,
}

impl FoundLogin {
    /// Returns the login for a place.
    pub fn of(
        environment: &ProcessEnvironment,
        place: &ObjectPlace,
        given: &ObjectLogin,
    ) -> Result<FoundLogin, ConfigError> {
        match place {
            ObjectPlace::S3(place) => {
                let found = aws_key(environment, given)?;
                let (key, description) = match found {
                    Some((key, origin)) => (Some(key), format!("with the access key of {origin}")),
                    None => (None, missing_key(environment, given)),
                };
                Ok(FoundLogin { login: StoreLogin::S3 { key, region: place.region.clone() }, description })
            }
            ObjectPlace::Azure(place) => Ok(azure_login(place, given)),
        }
    }

    /// Returns the parts of the login that must not be displayed.
    pub fn secrets(&self) -> Vec<&Secret> {
        match &self.login {
            StoreLogin::S3 { key: Some(key), .. } => [&key.secret].into_iter().chain(&key.session).collect(),
            StoreLogin::Azure(AzureLogin::Sas(token)) => vec![token],
            StoreLogin::S3 { key: None, .. } | StoreLogin::Azure(AzureLogin::Key(_) | AzureLogin::None) => Vec::new(),
        }
    }

    /// Returns true if requests are not authenticated.
    pub fn is_anonymous(&self) -> bool {
        matches!(self.login, StoreLogin::S3 { key: None, .. } | StoreLogin::Azure(AzureLogin::None))
    }
}

fn azure_login(place: &AzureContainer, given: &ObjectLogin) -> FoundLogin {
    let host = url::split(&place.account_url).map_or("", |(_, host, _)| host);
    let account = place.account_name.as_deref().unwrap_or_else(|| host.split('.').next().unwrap_or(host));
    let (login, description) = match (&given.key, &given.token) {
        (Some(key), _) => match AzureKey::parse(account, key) {
            Some(key) => (AzureLogin::Key(key), format!("with the key of the account {account}")),
            None => (AzureLogin::None, "the key of the account is not base64".to_string()),
        },
        (None, Some(token)) => (AzureLogin::Sas(token.clone()), "with a shared access signature".into()),
        (None, None) => (AzureLogin::None, "without a key or a shared access signature".into()),
    };
    FoundLogin { login: StoreLogin::Azure(login), description }
}

/// Returns the access key, with its origin: the options, the variables, or the file of AWS.
fn aws_key(environment: &ProcessEnvironment, given: &ObjectLogin) -> Result<Option<(AwsKey, String)>, ConfigError> {
    if let (Some(id), Some(secret)) = (&given.id, &given.key) {
        let key = AwsKey { id: id.clone(), secret: secret.clone(), session: given.token.clone() };
        return Ok(Some((key, "the options".into())));
    }
    let variable = |name: &str| environment.variable(name).map(Secret::new);
    if let (Some(id), Some(secret)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        let key = AwsKey { id, secret, session: variable("AWS_SESSION_TOKEN") };
        return Ok(Some((key, "AWS_ACCESS_KEY_ID".into())));
    }
    let path = environment.variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let Some(path) = path.or_else(|| environment.home(".aws/credentials")) else { return Ok(None) };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ConfigError::file(FileAction::Read, &path)(e)),
    };
    let profile = environment.variable("AWS_PROFILE").unwrap_or("default");
    Ok(profile_key(&text, profile).map(|key| (key, rbuild_linux::quoted(&path).to_string())))
}

/// Returns the reason why there is no access key, as a clause.
fn missing_key(environment: &ProcessEnvironment, given: &ObjectLogin) -> String {
    let pair = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    match (&given.id, &given.key, pair.map(|name| environment.variable(name).is_some())) {
        (Some(_), None, _) => "`secret_access_key` is missing".into(),
        (None, Some(_), _) => "`access_key_id` is missing".into(),
        (_, _, [true, false]) => format!("{} is not set", pair[1]),
        (_, _, [false, true]) => format!("{} is not set", pair[0]),
        _ => match environment.variable("AWS_PROFILE") {
            Some(profile) => format!("no access key of the profile `{profile}` in ~/.aws/credentials"),
            None => "no access key in the options, AWS_ACCESS_KEY_ID or ~/.aws/credentials".into(),
        },
    }
}

/// Returns the access key of a profile.
fn profile_key(text: &str, profile: &str) -> Option<AwsKey> {
    let mut is_own = false;
    let (mut id, mut secret, mut session) = (None, None, None);
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            is_own = name.trim() == profile;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| is_own) {
            let value = Some(Secret::new(value.trim()));
            match name.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => session = value,
                _ => {}
            }
        }
    }
    Some(AwsKey { id: id?, secret: secret?, session })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rbuild_testkit::Scratch;

    use super::*;
    use crate::objects::place::S3Bucket;

    fn place() -> ObjectPlace {
        ObjectPlace::S3(S3Bucket {
            bucket: "b".into(),
            region: "r".into(),
            endpoint: None,
            path_style: None,
            touch_refresh: Duration::ZERO,
            parallelism: 4,
        })
    }

    fn id_of(found: &FoundLogin) -> Option<&str> {
        match &found.login {
            StoreLogin::S3 { key: Some(key), .. } => Some(key.id.reveal()),
            _ => None,
        }
    }

    #[test]
    fn the_first_access_key_applies() {
        let dir = Scratch::new();
        std::fs::create_dir(dir.join(".aws")).unwrap();
        let home = dir.to_str().unwrap();
        let find = |variables: &[(&str, &str)], given: &ObjectLogin| {
            let environment = ProcessEnvironment::of(variables.iter().copied().chain([("HOME", home)]), &dir);
            FoundLogin::of(&environment, &place(), given).unwrap()
        };
        let given = ObjectLogin { id: Some(Secret::new("own")), key: Some(Secret::new("k")), token: None };
        let variables = [("AWS_ACCESS_KEY_ID", "env"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let none = ObjectLogin::default();
        assert_eq!(id_of(&find(&variables, &given)), Some("own"));
        assert_eq!(id_of(&find(&variables, &none)), Some("env"));
        let absent = find(&variables[..1], &none);
        assert!(absent.is_anonymous());
        let half = |id: Option<&str>, key: Option<&str>| ObjectLogin {
            id: id.map(Secret::new),
            key: key.map(Secret::new),
            token: None,
        };
        for (variables, given, want) in [
            (&variables[..1], none.clone(), "AWS_SECRET_ACCESS_KEY is not set"),
            (&variables[1..], none.clone(), "AWS_ACCESS_KEY_ID is not set"),
            (&[], half(Some("i"), None), "`secret_access_key` is missing"),
            (&[], half(None, Some("k")), "`access_key_id` is missing"),
            (&[("AWS_PROFILE", "p")], none.clone(), "no access key of the profile `p` in ~/.aws/credentials"),
            (&[], none.clone(), "no access key in the options, AWS_ACCESS_KEY_ID or ~/.aws/credentials"),
        ] {
            assert_eq!(find(variables, &given).description, want);
        }
        let file = "# mine\n[default]\naws_access_key_id = file\naws_secret_access_key=s\n[other]\n\
            aws_access_key_id=other\naws_secret_access_key=t\naws_session_token=u\n";
        std::fs::write(dir.join(".aws/credentials"), file).unwrap();
        assert_eq!(id_of(&find(&[], &none)), Some("file"));
        assert_eq!(id_of(&find(&[("AWS_PROFILE", "other")], &none)), Some("other"));
        assert_eq!(id_of(&find(&[("AWS_PROFILE", "absent")], &none)), None);
    }

    #[test]
    fn an_account_has_a_key_or_a_signature() {
        let azure = |given: &ObjectLogin| {
            let place = AzureContainer {
                account_url: "https://me.blob.core.windows.net".into(),
                account_name: None,
                container: "c".into(),
            };
            azure_login(&place, given)
        };
        let key = azure(&ObjectLogin { key: Some(Secret::new("a2V5")), ..ObjectLogin::default() });
        assert_eq!(key.description, "with the key of the account me");
        let sas = azure(&ObjectLogin { token: Some(Secret::new("sig=x")), ..ObjectLogin::default() });
        assert!(matches!(sas.login, StoreLogin::Azure(AzureLogin::Sas(_))));
        assert!(azure(&ObjectLogin::default()).is_anonymous());
        let wrong = azure(&ObjectLogin { key: Some(Secret::new("!")), ..ObjectLogin::default() });
        assert!(wrong.is_anonymous() && wrong.description.contains("not base64"));
    }
}
