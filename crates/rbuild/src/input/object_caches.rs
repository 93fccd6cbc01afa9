//! Parses the options of caches in object stores.

use std::time::Duration;

use rbuild_image::BlobDigest;
use rbuild_registry::{ActionsPlace, AzureContainer, ObjectPlace, S3Bucket};
use rbuild_transport::{GithubCache, ObjectCache};

use crate::input::value::{self, BadValue};
use crate::ui::hints::ValueRemedy;

/// The options of buckets of S3. Secrets are among them for suggestions only: they are withheld.
pub const S3_KEYS: [&str; 17] = [
    "bucket",
    "region",
    "prefix",
    "manifests_prefix",
    "blobs_prefix",
    "name",
    "endpoint_url",
    "use_path_style",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "touch_refresh",
    "upload_parallelism",
    "disable_accept_encoding",
    "retry_mode",
    "retry_max_attempts",
    "scope",
];
/// The options of containers of Azure.
pub const AZURE_KEYS: [&str; 9] = [
    "account_url",
    "account_name",
    "container",
    "prefix",
    "manifests_prefix",
    "blobs_prefix",
    "name",
    "secret_access_key",
    "scope",
];
/// The options of the cache service of GitHub Actions.
pub const GITHUB_KEYS: [&str; 8] = ["scope", "token", "url", "url_v2", "version", "timeout", "repository", "ghtoken"];
/// Scope of a cache of GitHub Actions without `scope=`, as in BuildKit.
const GITHUB_SCOPE: &str = "buildkit";
/// Maximum duration of writing a cache of GitHub Actions, as in BuildKit.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Version of the entries of GitHub Actions.
const ENTRIES: &str = "|rbuild-cache-1";
/// Path below the prefix: the format of the documents.
const FORMAT: &str = "rbuild/v1/";
/// Age from which layers are touched, as in BuildKit.
const TOUCH_REFRESH: Duration = Duration::from_secs(24 * 3600);
/// Number of layers that are uploaded at once, as in BuildKit.
const PARALLELISM: usize = 4;

/// The options of a cache, and the variables that may state them.
pub struct ObjectOptions<'a> {
    pub option: &'a dyn Fn(&str) -> Option<&'a str>,
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Names of the caches.
    pub names: Vec<String>,
    /// Number of the login among those of the client.
    pub login: Option<usize>,
}

impl ObjectOptions<'_> {
    /// Returns the caches in a bucket of S3.
    pub fn of_s3(&self) -> Result<Vec<ObjectCache>, BadValue> {
        let missing = |what: &str| BadValue {
            problem: format!("`{what}` is missing"),
            hint: ValueRemedy::CacheBucketForm.into(),
        };
        let endpoint = self.given("endpoint_url", &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
        check_url("endpoint_url", endpoint.as_deref())?;
        let endpoint = endpoint.map(|url| without_query(&url).to_string());
        let region = self.given("region", &["AWS_REGION", "AWS_DEFAULT_REGION"]);
        let region = region.or_else(|| endpoint.as_ref().map(|_| "us-east-1".to_string()));
        let touch = self.given("touch_refresh", &[]).map(|text| duration("touch_refresh", &text)).transpose()?;
        let uploads = self.given("upload_parallelism", &[]).map(|text| parallelism(&text)).transpose()?;
        let style = self.given("use_path_style", &[]).map(|text| value::switch(&text)).transpose();
        let place = S3Bucket {
            bucket: self.given("bucket", &["AWS_BUCKET"]).ok_or_else(|| missing("bucket"))?,
            region: region.ok_or_else(|| missing("region"))?,
            endpoint,
            path_style: style.map_err(|e| BadValue { problem: format!("`use_path_style`: {}", e.problem), ..e })?,
            touch_refresh: touch.unwrap_or(TOUCH_REFRESH),
            parallelism: uploads.unwrap_or(PARALLELISM),
        };
        let prefix = self.given("prefix", &[]).unwrap_or_default();
        Ok(self.caches(&ObjectPlace::S3(place), &prefix))
    }

    /// Returns the caches in a container of Azure.
    pub fn of_azure(&self) -> Result<Vec<ObjectCache>, BadValue> {
        let hint = || ValueRemedy::CacheContainerForm.into();
        let url = self.given("account_url", &["BUILDKIT_AZURE_STORAGE_ACCOUNT_URL"]);
        let url = url.ok_or_else(|| BadValue { problem: "`account_url` is missing".into(), hint: hint() })?;
        check_url("account_url", Some(&url))?;
        let container = self.given("container", &["BUILDKIT_AZURE_STORAGE_CONTAINER"]);
        let place = AzureContainer {
            account_url: without_query(&url).trim_end_matches('/').to_string(),
            account_name: self.given("account_name", &["BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME"]),
            container: container.unwrap_or_else(|| "buildkit-cache".into()),
        };
        let prefix = self.given("prefix", &["BUILDKIT_AZURE_STORAGE_PREFIX"]).unwrap_or_default();
        Ok(self.caches(&ObjectPlace::Azure(place), &prefix))
    }

    /// Returns the caches of GitHub Actions with these scopes; `None` outside of its jobs.
    pub fn of_github(&self, scopes: &[String]) -> Result<Option<Vec<GithubCache>>, BadValue> {
        let url = self.given("url_v2", &["ACTIONS_RESULTS_URL"]);
        let is_old = self.given("version", &[]).is_some_and(|version| version == "1")
            || (url.is_none() && self.given("url", &["ACTIONS_CACHE_URL"]).is_some());
        if is_old {
            let problem = "version 1 of GitHub's cache service is not supported".to_string();
            return Err(BadValue { problem, hint: ValueRemedy::CacheServiceVersion.into() });
        }
        let (Some(url), Some(_)) = (url, self.login) else { return Ok(None) };
        let timeout = self.given("timeout", &[]).map(|text| duration("timeout", &text)).transpose()?;
        let place = ActionsPlace { url, version: BlobDigest::of(ENTRIES.as_bytes()).hex().to_string() };
        let usual = [GITHUB_SCOPE.to_string()];
        let scopes = if scopes.is_empty() { &usual[..] } else { scopes };
        let cache = |scope: &String| GithubCache {
            place: place.clone(),
            login: self.login,
            scope: scope.clone(),
            timeout: timeout.unwrap_or(TIMEOUT),
        };
        Ok(Some(scopes.iter().map(cache).collect()))
    }

    /// Returns the caches with all names at a place.
    fn caches(&self, place: &ObjectPlace, prefix: &str) -> Vec<ObjectCache> {
        let dir = |key: &str, usual: &str| {
            let own = self.given(key, &[]).unwrap_or_else(|| usual.to_string());
            format!("{prefix}{FORMAT}{}/", own.trim_matches('/'))
        };
        let (manifests, blobs) = (dir("manifests_prefix", "manifests"), dir("blobs_prefix", "blobs"));
        let cache = |name: &String| ObjectCache {
            place: place.clone(),
            login: self.login,
            name: name.clone(),
            manifests: manifests.clone(),
            blobs: blobs.clone(),
        };
        self.names.iter().map(cache).collect()
    }

    /// Returns the value of an option, or else that of the first variable that is set.
    fn given(&self, key: &str, variables: &[&str]) -> Option<String> {
        let own = (self.option)(key).filter(|value| !value.is_empty()).map(str::to_string);
        own.or_else(|| variables.iter().find_map(|name| (self.variable)(name).filter(|value| !value.is_empty())))
    }
}

/// Checks that the value of an option, if there is one, is a URL of HTTP.
fn check_url(key: &str, text: Option<&str>) -> Result<(), BadValue> {
    match text {
        Some(url) if !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) => {
            Err(BadValue { problem: format!("`{key}={url}`: not a URL"), hint: ValueRemedy::UrlForm.into() })
        }
        _ => Ok(()),
    }
}

/// Returns a URL without its query, which is a login or the mask of one.
fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

fn duration(key: &str, text: &str) -> Result<Duration, BadValue> {
    let bad = || BadValue {
        problem: format!("`{key}={text}`: not a duration"),
        hint: crate::ui::hints::VerbRemedy::DurationForm.into(),
    };
    value::duration_seconds(text).map(Duration::from_secs).ok_or_else(bad)
}

fn parallelism(text: &str) -> Result<usize, BadValue> {
    let number = text.parse().ok().filter(|number| (1..=64).contains(number));
    number.ok_or_else(|| BadValue {
        problem: format!("`upload_parallelism={text}`: not a number of uploads"),
        hint: ValueRemedy::CacheShardsRange { most: 64 }.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(azure: bool, options: &[(&str, &str)], variables: &[(&str, &str)]) -> Result<Vec<ObjectCache>, String> {
        let find = |list: &[(&str, &str)], key: &str| {
            list.iter().find(|(known, _)| *known == key).map(|(_, value)| value.to_string())
        };
        let leaked: Vec<(String, String)> = options.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let option = |key: &str| leaked.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
        let variable = |key: &str| find(variables, key);
        let options = ObjectOptions {
            option: &option,
            variable: &variable,
            names: vec!["main".into(), "x".into()],
            login: Some(3),
        };
        let caches = if azure { options.of_azure() } else { options.of_s3() };
        caches.map_err(|e| e.problem)
    }

    #[test]
    fn options_precede_variables() {
        let caches = parse(
            false,
            &[("bucket", "b"), ("prefix", "p/"), ("touch_refresh", "2h"), ("use_path_style", "true")],
            &[("AWS_BUCKET", "other"), ("AWS_REGION", "eu-west-1")],
        );
        let [cache, second] = &caches.unwrap()[..] else { panic!() };
        assert_eq!(cache.to_string(), "s3://b/p/rbuild/v1/manifests/main");
        assert_eq!((cache.blobs.as_str(), second.name.as_str(), cache.login), ("p/rbuild/v1/blobs/", "x", Some(3)));
        let ObjectPlace::S3(place) = &cache.place else { panic!() };
        assert_eq!((place.region.as_str(), place.path_style), ("eu-west-1", Some(true)));
        assert_eq!((place.touch_refresh.as_secs(), place.parallelism), (7200, PARALLELISM));
        let caches = parse(false, &[("bucket", "b"), ("endpoint_url", "http://h:1")], &[]).unwrap();
        assert!(matches!(&caches[0].place, ObjectPlace::S3(place) if place.region == "us-east-1"));
        let variables = [("BUILDKIT_AZURE_STORAGE_ACCOUNT_URL", "https://me.blob.core.windows.net/")];
        let caches = parse(true, &[("manifests_prefix", "m/")], &variables).unwrap();
        assert_eq!(caches[0].to_string(), "azblob://buildkit-cache/rbuild/v1/m/main");
    }

    #[test]
    fn missing_and_wrong_values_are_reported() {
        for (azure, options, want) in [
            (false, &[][..], "`bucket` is missing"),
            (false, &[("bucket", "b")], "`region` is missing"),
            (false, &[("bucket", "b"), ("region", "r"), ("touch_refresh", "x")], "`touch_refresh=x`: not a duration"),
            (false, &[("bucket", "b"), ("region", "r"), ("use_path_style", "x")], "`use_path_style`: unknown value"),
            (
                false,
                &[("bucket", "b"), ("region", "r"), ("upload_parallelism", "0")],
                "`upload_parallelism=0`: not a number of uploads",
            ),
            (true, &[], "`account_url` is missing"),
        ] {
            assert_eq!(parse(azure, options, &[]).unwrap_err(), want);
        }
    }
}
