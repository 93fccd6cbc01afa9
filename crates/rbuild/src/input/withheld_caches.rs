//! Logins in the values of `--cache-from` and `--cache-to`, which only the fetcher receives.

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
/// The option that refers to a login that was withheld.
pub const LOGIN: &str = "login";

/// The logins of a command line.
#[derive(Debug, Default)]
pub struct CacheLogins {
    pub logins: Vec<WithheldLogin>,
    /// Types of caches that are used.
    kinds: Vec<String>,
}

impl CacheLogins {
    /// Returns the value of a flag without its login, and keeps the login. `variable` returns the
    /// values of variables.
    ///
    /// # Errors
    ///
    /// Fails if the value has no fields.
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
                ("gha", "ghtoken") => {}
                ("azblob", "account_url") => {
                    has_url = true;
                    kept.push(format!("{key}={}", login.without_signature(value)));
                }
                ("s3", "endpoint_url") => {
                    kept.push(format!("{key}={}", hide_logins(value.split('?').next().unwrap_or_default())));
                }
                // An unknown option, or one of an unknown type, which an error states.
                (_, key) if is_secret(key) => kept.push(format!("{key}=***")),
                _ => kept.push(field.clone()),
            }
        }
        if !is_known {
            return Ok(joined(&kept));
        }
        let url = variable("BUILDKIT_AZURE_STORAGE_ACCOUNT_URL").filter(|url| url.contains('?'));
        if let Some(url) = url.filter(|_| kind == "azblob" && !has_url) {
            kept.push(format!("account_url={}", login.without_signature(&url)));
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
        Ok(joined(&kept))
    }

    /// Returns the variables with logins for the caches that are used.
    pub fn variables(&self) -> Vec<&'static str> {
        let used = VARIABLES.iter().filter(|(kind, _)| self.kinds.iter().any(|known| known == kind));
        used.flat_map(|(_, names)| names.iter().copied()).collect()
    }
}

impl WithheldLogin {
    /// Returns a URL without its query, which is a shared access signature, and without a login.
    fn without_signature(&mut self, url: &str) -> String {
        let (url, query) = url.split_once('?').unwrap_or((url, ""));
        if !query.is_empty() {
            self.token = Some(query.to_string());
        }
        hide_logins(url).to_string()
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
            ("type=S3,bucket=b,secret_access_key=k", "type=S3,bucket=b,login=0"),
            ("type=s3 ,bucket=b,secret_access_key=k", "type=s3 ,bucket=b,login=0"),
            ("type=s3,secret-access-key=k,bucket=b", "type=s3,secretaccesskey=***,bucket=b"),
            ("type=foo,secret_access_keyy=k", "type=foo,secret_access_keyy=***"),
            ("bucket=b,Session_Token=t", "bucket=b,session_token=***"),
            ("type=s3,endpoint_url=http://u:k@h?tok=k", "type=s3,endpoint_url=http://***@h"),
            ("type=local,src=d,sign=file", "type=local,src=d,sign=file"),
        ] {
            let got = CacheLogins::default().withhold("--cache-from", text, &|_| None).unwrap();
            assert_eq!(got.replace("secret-access-key", "secretaccesskey"), want, "{text}");
        }
    }

    #[test]
    fn a_value_has_the_number_of_its_login_in_place_of_the_login() {
        let mut found = CacheLogins::default();
        let variable = |name: &str| match name {
            "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL" => Some("https://a.net/?sig=env".to_string()),
            _ => None,
        };
        let mut of = |text: &str| found.withhold("--cache-to", text, &variable).unwrap();
        for (text, want) in [
            ("a.io/b", "a.io/b"),
            ("type=registry,ref=a.io/b,secret_access_key=x", "type=registry,ref=a.io/b,secret_access_key=***"),
            ("type=s3,bucket=b", "type=s3,bucket=b"),
            ("type=s3,bucket=b,access_key_id=i,SECRET_ACCESS_KEY=k", "type=s3,bucket=b,login=0"),
            ("secret_access_key=k,access_key_id=i,\"type=s3\",\"prefix=a,b\"", "type=s3,\"prefix=a,b\",login=0"),
            ("type=s3,access_key_id=i,secret_access_key=k,session_token=t", "type=s3,login=1"),
            ("type=azblob,account_url=https://a.net/?sv=1&sig=x", "type=azblob,account_url=https://a.net/,login=2"),
            ("type=azblob", "type=azblob,account_url=https://a.net/,login=3"),
            (
                "type=azblob,account_url=https://a.net,secret_access_key=k",
                "type=azblob,account_url=https://a.net,login=4",
            ),
            ("type=gha,scope=x,token=t,ghtoken=g", "type=gha,scope=x,login=5"),
            ("type=gha", "type=gha"),
        ] {
            assert_eq!(of(text), want);
            assert_eq!(of(want), want, "once");
        }
        assert_eq!(found.logins.len(), 6);
        assert_eq!(found.variables().len(), 5);
        let login = found.logins[1].clone().login();
        assert_eq!(login.token.unwrap().reveal(), "t");
        let e = CacheLogins::default().withhold("--cache-to", "type=s3,secret_access_key=a\"b", &variable).unwrap_err();
        assert!(!e.text().contains("a\"b"), "{}", e.text());
    }
}
