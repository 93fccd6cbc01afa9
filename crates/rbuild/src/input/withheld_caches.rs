//! Logins in the values of `--cache-from` and `--cache-to`, which only the fetcher receives.

use rbuild_dockerfile::CsvError;
use rbuild_image::hide_logins;
use rbuild_registry::{ObjectLogin, Secret};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::input::output::csv_fields;
use crate::ui::hints::ValueRemedy;

/// A login for an object store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithheldLogin {
    id: Option<String>,
    key: Option<String>,
    token: Option<String>,
}

impl WithheldLogin {
    /// Returns the login for a client.
    pub fn login(self) -> ObjectLogin {
        let [id, key, token] = [self.id, self.key, self.token].map(|part| part.map(Secret::new));
        ObjectLogin { id, key, token }
    }
}

/// Variables with logins for each type.
const VARIABLES: [(&str, &[&str]); 3] = [
    ("s3", &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]),
    ("azblob", &["BUILDKIT_AZURE_STORAGE_ACCOUNT_URL"]),
    ("gha", &["ACTIONS_RUNTIME_TOKEN"]),
];
/// The field before the number of a login that was withheld. Fields from there on are not those of
/// the user.
const LOGIN: &str = "login";
/// A secret in a value that is displayed.
const MASK: &str = "***";

/// The fields of a value whose login may have been withheld.
pub struct CacheFlagValue {
    /// The value as the user wrote it, with masked secrets.
    pub shown: String,
    /// The fields, except for the login.
    pub fields: Vec<String>,
    /// Number of the login that was withheld.
    pub login: Option<usize>,
}

impl CacheFlagValue {
    /// Splits a value.
    ///
    /// # Errors
    ///
    /// Fails if the value has no fields.
    pub fn split(text: &str) -> Result<CacheFlagValue, CsvError> {
        let mut fields = csv_fields(text)?;
        let number = |field: &String| field.strip_prefix(LOGIN)?.strip_prefix('=')?.parse::<usize>().ok();
        let Some((at, login)) = fields.iter().enumerate().find_map(|(at, field)| Some((at, number(field)?))) else {
            return Ok(CacheFlagValue { shown: text.to_string(), fields, login: None });
        };
        let shown = joined(&fields[..at]);
        fields.remove(at);
        Ok(CacheFlagValue { shown, fields, login: Some(login) })
    }
}

/// The logins of a command line.
#[derive(Debug, Default)]
pub struct CacheLogins {
    pub logins: Vec<WithheldLogin>,
    /// Types of caches that are used.
    kinds: Vec<String>,
}

impl CacheLogins {
    /// Returns the value of a flag with masks in place of its login, and keeps the login, whose
    /// number follows the value. `variable` returns the values of variables.
    ///
    /// # Errors
    ///
    /// Fails if the value has no fields, or one that only follows a value.
    pub fn withhold(
        &mut self,
        flag: &str,
        text: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<String, Failure> {
        // The message of an error must not contain the text.
        let fields = csv_fields(text).map_err(|e| {
            let form = if flag == "--cache-to" { ValueRemedy::CacheTargetForm } else { ValueRemedy::CacheSourceForm };
            Failure::usage(format!("{flag}: {e}")).help(form)
        })?;
        let pairs: Vec<(String, String)> = fields.iter().map(|field| pair(field)).collect();
        if pairs.iter().any(|(key, _)| key == LOGIN) {
            return Err(Failure::usage(format!("{flag}: unknown option `{LOGIN}`")));
        }
        let kind = pairs.iter().rev().find(|(key, _)| key == "type");
        let kind = kind.map(|(_, value)| value.trim().to_lowercase()).unwrap_or_default();
        let is_known = VARIABLES.iter().any(|(known, _)| *known == kind);
        if !is_known && !pairs.iter().any(|(key, _)| is_secret(key)) {
            return Ok(text.to_string());
        }
        let (mut login, mut kept, mut has_url) = (WithheldLogin::default(), Vec::new(), false);
        for (field, (key, value)) in fields.iter().zip(&pairs) {
            match (kind.as_str(), key.as_str()) {
                ("s3", "access_key_id") => login.id = Some(value.clone()),
                ("s3" | "azblob", "secret_access_key") => login.key = Some(value.clone()),
                ("s3", "session_token") | ("gha", "token") => login.token = Some(value.clone()),
                ("azblob", "account_url") => {
                    has_url = true;
                    login.token = signature(value).or(login.token);
                    kept.push(format!("{key}={}", masked_url(value)));
                    continue;
                }
                ("s3", "endpoint_url") => {
                    kept.push(format!("{key}={}", masked_url(value)));
                    continue;
                }
                // An unknown option, or one of an unknown type, which an error states.
                (_, key) if is_secret(key) => {}
                _ => {
                    kept.push(field.clone());
                    continue;
                }
            }
            kept.push(format!("{}={MASK}", field.split_once('=').map_or(field.as_str(), |(name, _)| name)));
        }
        if !is_known {
            return Ok(joined(&kept));
        }
        let url = variable("BUILDKIT_AZURE_STORAGE_ACCOUNT_URL").filter(|_| kind == "azblob" && !has_url);
        let signed_url = url.and_then(|url| Some((signature(&url)?, url)));
        if let Some((signature, _)) = &signed_url {
            login.token = Some(signature.clone());
        }
        if kind == "gha" && login.token.is_none() {
            login.token = variable("ACTIONS_RUNTIME_TOKEN").filter(|token| !token.is_empty());
        }
        self.kinds.push(kind);
        if login == WithheldLogin::default() {
            return Ok(joined(&kept));
        }
        let known = self.logins.iter().position(|known| *known == login);
        let number = known.unwrap_or(self.logins.len());
        if known.is_none() {
            self.logins.push(login);
        }
        kept.push(format!("{LOGIN}={number}"));
        kept.extend(signed_url.map(|(_, url)| format!("account_url={}", masked_url(&url))));
        Ok(joined(&kept))
    }

    /// Returns the variables with logins for the caches that are used.
    pub fn variables(&self) -> Vec<&'static str> {
        let used = VARIABLES.iter().filter(|(kind, _)| self.kinds.iter().any(|known| known == kind));
        used.flat_map(|(_, names)| names.iter().copied()).collect()
    }
}

/// Returns the query of the URL of an account, which is a shared access signature.
fn signature(url: &str) -> Option<String> {
    url.split_once('?').map(|(_, query)| query.to_string()).filter(|query| !query.is_empty())
}

/// Returns a URL with masks in place of its login and its query.
fn masked_url(url: &str) -> String {
    match url.split_once('?') {
        Some((url, _)) => format!("{}?{MASK}", hide_logins(url)),
        None => hide_logins(url).to_string(),
    }
}

/// Splits a field into its key in lower case and its value.
fn pair(field: &str) -> (String, String) {
    let (key, value) = field.split_once('=').unwrap_or((field, ""));
    (key.trim().to_lowercase(), value.to_string())
}

/// Returns true for names of options whose values may be secrets.
fn is_secret(key: &str) -> bool {
    let letters: String = key.chars().filter(char::is_ascii_alphanumeric).collect();
    ["key", "token", "secret", "password"].iter().any(|word| letters.contains(word))
}

fn joined(fields: &[String]) -> String {
    fields.iter().map(|field| quoted_field(field)).collect::<Vec<_>>().join(",")
}

fn quoted_field(field: &str) -> String {
    if field.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_can_state_a_secret() {
        for (text, want) in [
            ("type=S3,bucket=b,secret_access_key=k", "type=S3,bucket=b,secret_access_key=***,login=0"),
            ("type=s3 ,bucket=b,secret_access_key=k", "type=s3 ,bucket=b,secret_access_key=***,login=0"),
            ("type=s3,secret-access-key=k,bucket=b", "type=s3,secret-access-key=***,bucket=b"),
            ("type=foo,secret_access_keyy=k", "type=foo,secret_access_keyy=***"),
            ("bucket=b,Session_Token=t", "bucket=b,Session_Token=***"),
            ("type=s3,endpoint_url=http://u:k@h?tok=k", "type=s3,endpoint_url=http://***@h?***"),
            ("type=local,src=d,sign=file", "type=local,src=d,sign=file"),
        ] {
            let got = CacheLogins::default().withhold("--cache-from", text, &|_| None).unwrap();
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn the_number_of_a_login_follows_the_value_and_is_never_shown() {
        let mut found = CacheLogins::default();
        let variable = |name: &str| match name {
            "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL" => Some("https://a.net/?sig=env".to_string()),
            _ => None,
        };
        for (text, shown, rest) in [
            ("a.io/b", "a.io/b", ""),
            ("type=registry,ref=a.io/b,secret_access_key=x", "type=registry,ref=a.io/b,secret_access_key=***", ""),
            ("type=s3,bucket=b", "type=s3,bucket=b", ""),
            (
                "type=s3,access_key_id=i,SECRET_ACCESS_KEY=k,bucket=b",
                "type=s3,access_key_id=***,SECRET_ACCESS_KEY=***,bucket=b",
                ",login=0",
            ),
            (
                "secret_access_key=k,access_key_id=i,\"type=s3\",\"prefix=a,login=7\"",
                "secret_access_key=***,access_key_id=***,type=s3,\"prefix=a,login=7\"",
                ",login=0",
            ),
            (
                "type=s3,access_key_id=i,secret_access_key=k,session_token=t",
                "type=s3,access_key_id=***,secret_access_key=***,session_token=***",
                ",login=1",
            ),
            (
                "type=azblob,account_url=https://a.net/?sv=1&sig=x,container=c",
                "type=azblob,account_url=https://a.net/?***,container=c",
                ",login=2",
            ),
            ("type=azblob", "type=azblob", ",login=3,account_url=https://a.net/?***"),
            (
                "type=azblob,account_url=https://a.net,secret_access_key=k",
                "type=azblob,account_url=https://a.net,secret_access_key=***",
                ",login=4",
            ),
            ("type=gha,scope=x,token=t,ghtoken=g", "type=gha,scope=x,token=***,ghtoken=***", ",login=5"),
            ("type=gha", "type=gha", ""),
        ] {
            let got = found.withhold("--cache-to", text, &variable).unwrap();
            assert_eq!(got, format!("{shown}{rest}"));
            let CacheFlagValue { shown: known, fields, login } = CacheFlagValue::split(&got).unwrap();
            assert_eq!((known.as_str(), login.is_some()), (shown, !rest.is_empty()));
            assert!(!fields.iter().any(|field| field.starts_with(LOGIN)), "{fields:?}");
        }
        assert_eq!(found.logins.len(), 6);
        assert_eq!(found.variables().len(), 5);
        let login = found.logins[1].clone().login();
        assert_eq!(login.token.unwrap().reveal(), "t");
        let error = |text: &str| CacheLogins::default().withhold("--cache-to", text, &variable).unwrap_err().text();
        let text = error("type=s3,secret_access_key=a\"b");
        assert!(!text.contains("a\"b"), "{text}");
        assert!(error("type=s3,bucket=b,login=0").contains("unknown option `login`"));
    }
}
