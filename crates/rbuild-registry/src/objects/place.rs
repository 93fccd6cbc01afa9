//! Places of objects, without their logins.

use std::time::Duration;

use crate::endpoint::without_port;
use crate::error::RemoteRepository;
use crate::proxy::is_loopback;
use crate::url;

/// The place of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectPlace {
    /// A bucket of S3.
    S3(S3Bucket),
    /// A container of Azure Blob Storage.
    Azure(AzureContainer),
}

/// A bucket of S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Bucket {
    /// Name of the bucket.
    pub bucket: String,
    /// Region, such as `eu-central-1`.
    pub region: String,
    /// URL of the server, if it is not one of Amazon.
    pub endpoint: Option<String>,
    /// True if the bucket is a part of the path, false if it is one of the host; `None` if that
    /// depends on the endpoint.
    pub path_style: Option<bool>,
    /// Age from which an object is touched.
    pub touch_refresh: Duration,
    /// Number of layers that are uploaded at once.
    pub parallelism: usize,
}

/// A container of Azure Blob Storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureContainer {
    /// URL of the account, without a query.
    pub account_url: String,
    /// Name of the account, if it is not the first part of the host.
    pub account_name: Option<String>,
    /// Name of the container.
    pub container: String,
}

impl ObjectPlace {
    /// Returns the name of the bucket or the container.
    pub fn bucket(&self) -> &str {
        match self {
            ObjectPlace::S3(place) => &place.bucket,
            ObjectPlace::Azure(place) => &place.container,
        }
    }

    /// Returns the URL below which the objects are; `None` if the address is not a URL.
    pub(crate) fn base(&self) -> Option<String> {
        match self {
            ObjectPlace::S3(place) => place.base(),
            ObjectPlace::Azure(AzureContainer { account_url, container, .. }) => {
                let url = account_url.trim_end_matches('/');
                url::split(url).map(|_| format!("{}/{}", without_default_port(url), encode_path(container)))
            }
        }
    }

    /// Returns the name of the place in messages.
    pub(crate) fn place(&self, host: &str) -> RemoteRepository {
        RemoteRepository { registry: host.to_string(), repository: self.bucket().to_string() }
    }
}

impl S3Bucket {
    fn base(&self) -> Option<String> {
        let S3Bucket { bucket, region, endpoint, path_style, .. } = self;
        let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
        let own = || format!("https://s3.{region}.amazonaws.com{suffix}");
        let endpoint = endpoint.clone().unwrap_or_else(own);
        let endpoint = without_default_port(endpoint.trim_end_matches('/'));
        let (scheme, host, rest) = url::split(&endpoint)?;
        let name = without_port(host);
        let is_address = is_loopback(name) || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
        // Certificates for all buckets do not apply to names with dots.
        let is_path = path_style.unwrap_or(is_address || bucket.contains('.'));
        let bucket = url::encode(bucket);
        Some(if is_path {
            format!("{scheme}://{host}{rest}/{bucket}")
        } else {
            format!("{scheme}://{bucket}.{host}{rest}")
        })
    }
}

/// Removes the port of a URL if it is that of the scheme.
fn without_default_port(url: &str) -> String {
    match url::split(url) {
        Some((scheme, host, rest)) => {
            let port = if scheme == "https" { ":443" } else { ":80" };
            format!("{scheme}://{}{rest}", host.strip_suffix(port).unwrap_or(host))
        }
        None => url.to_string(),
    }
}

/// Encodes the path of an object.
pub(crate) fn encode_path(path: &str) -> String {
    path.split('/').map(url::encode).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_the_host_or_in_the_path() {
        for (bucket, region, endpoint, path_style, want) in [
            ("b", "eu-west-1", None, None, "https://b.s3.eu-west-1.amazonaws.com"),
            ("b.c", "eu-west-1", None, None, "https://s3.eu-west-1.amazonaws.com/b.c"),
            ("b", "cn-north-1", None, None, "https://b.s3.cn-north-1.amazonaws.com.cn"),
            ("b", "x", Some("http://127.0.0.1:9000/"), None, "http://127.0.0.1:9000/b"),
            ("b", "x", Some("http://[::1]:9000"), None, "http://[::1]:9000/b"),
            ("b", "x", Some("https://minio.io:443"), None, "https://b.minio.io"),
            ("b", "x", Some("https://minio.io/sub"), Some(true), "https://minio.io/sub/b"),
            ("b", "x", Some("http://localhost:80"), Some(false), "http://b.localhost"),
        ] {
            let place = S3Bucket {
                bucket: bucket.into(),
                region: region.into(),
                endpoint: endpoint.map(str::to_string),
                path_style,
                touch_refresh: Duration::ZERO,
                parallelism: 4,
            };
            assert_eq!(ObjectPlace::S3(place).base().as_deref(), Some(want));
        }
        let azure = |url: &str| {
            let (account_url, container) = (url.to_string(), "c".to_string());
            ObjectPlace::Azure(AzureContainer { account_url, account_name: None, container }).base()
        };
        assert_eq!(azure("https://me.blob.core.windows.net/").as_deref(), Some("https://me.blob.core.windows.net/c"));
        assert_eq!(azure("me.blob.core.windows.net"), None);
        assert_eq!(encode_path("a b/sha256:0"), "a%20b/sha256%3A0");
    }
}
