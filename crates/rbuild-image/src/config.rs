//! The image configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{DiffId, Platform};

/// The image configuration document (OCI image-spec, config.md, with Docker's extensions). Unknown
/// keys are preserved in `rest`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// GOARCH of the image; that of this machine if the document states none.
    #[serde(default = "own_architecture", deserialize_with = "architecture")]
    pub architecture: String,
    /// GOOS of the image; `linux` if the document states none.
    #[serde(default = "linux", deserialize_with = "os")]
    pub os: String,
    /// Variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Creation time (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Name of the author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Defaults for containers of the image.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: RunConfig,
    /// Layers of the root file system.
    #[serde(default, deserialize_with = "null_is_default")]
    pub rootfs: RootFs,
    /// History, oldest entry first.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// Keys without a field of their own.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Execution parameters of containers (`config` in OCI image-spec, config.md).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// User and group of the process: `user[:group]`, by name or number; empty for root.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports as `port[/protocol]`. The values are empty objects.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Value>,
    /// Environment entries as `NAME=value`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// First arguments of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Arguments after the entrypoint, replaced by those of `docker run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Health check (a Docker extension).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthcheckConfig>,
    /// Directories on which volumes are mounted. The values are empty objects.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Value>,
    /// Absolute working directory; empty for `/`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels: names and values.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Signal that stops the container, by name or number.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// The command line is escaped already (Windows only).
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    /// ONBUILD triggers, as written (a Docker extension).
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// Shell of commands in shell form (a Docker extension); empty for the default.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Keys without a field of their own.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Health check of containers (a Docker extension). Times are in nanoseconds; 0 is the default of
/// the runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthcheckConfig {
    /// `NONE`, or `CMD` or `CMD-SHELL` and arguments; empty to inherit the check.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Nanoseconds between two checks.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Nanoseconds after which a check counts as failed.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Nanoseconds after the start during which failures do not count.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Nanoseconds between two checks during the start period.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Number of consecutive failures after which the container is unhealthy.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// Layers of an image, lowest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type", default = "layers")]
    pub kind: String,
    /// Digests of the uncompressed layers.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<DiffId>,
}

/// History entry of a layer, or of a change to the configuration (`empty_layer`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Creation time (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command that made the layer.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Name of the author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A comment; `buildkit.dockerfile.v0` in images built by BuildKit.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// The entry has no layer.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

fn null_is_default<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn own_architecture() -> String {
    Platform::host().arch
}

fn architecture<'de, D: serde::Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    Ok(stated(d)?.unwrap_or_else(own_architecture))
}

fn linux() -> String {
    "linux".into()
}

fn os<'de, D: serde::Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    Ok(stated(d)?.unwrap_or_else(linux))
}

/// Returns a text that is neither empty nor null.
fn stated<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(d)?.filter(|text| !text.is_empty()))
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn layers() -> String {
    "layers".to_string()
}

impl Default for RootFs {
    fn default() -> RootFs {
        RootFs { kind: layers(), diff_ids: Vec::new() }
    }
}

impl ImageConfig {
    /// Returns the configuration of an image without layers.
    pub fn empty(platform: &Platform) -> ImageConfig {
        ImageConfig {
            architecture: platform.arch.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
            created: None,
            author: None,
            config: RunConfig::default(),
            rootfs: RootFs::default(),
            history: Vec::new(),
            rest: Map::new(),
        }
    }

    /// Sets operating system, architecture and variant.
    pub fn set_platform(&mut self, platform: &Platform) {
        self.os = platform.os.clone();
        self.architecture = platform.arch.clone();
        self.variant = platform.variant.clone();
    }

    /// Returns the normalized platform.
    pub fn platform(&self) -> Platform {
        let text = match &self.variant {
            Some(v) if !v.is_empty() => format!("{}/{}/{v}", self.os, self.architecture),
            _ => format!("{}/{}", self.os, self.architecture),
        };
        text.parse().unwrap_or(Platform {
            os: self.os.clone(),
            arch: self.architecture.clone(),
            variant: self.variant.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_platform_has_that_of_the_machine() {
        for fields in ["", r#""os":"","architecture":"","#, r#""os":null,"architecture":null,"#] {
            let text = format!(r#"{{{fields}"rootfs":{{"type":"layers","diff_ids":[]}}}}"#);
            let config: ImageConfig = serde_json::from_str(&text).unwrap();
            assert_eq!(config.platform(), Platform::host(), "{text}");
        }
    }

    #[test]
    fn unknown_keys_and_nulls_survive_a_round_trip() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["x"],"Foo":{"a":1}},
            "rootfs":{"type":"layers","diff_ids":[]},"os.version":"1","moby.x":[1]}"#;
        let c: ImageConfig = serde_json::from_str(text).unwrap();
        let back = serde_json::to_value(&c).unwrap();
        assert_eq!(back["config"]["Foo"]["a"], 1);
        assert_eq!(back["moby.x"][0], 1);
        assert_eq!(back["os.version"], "1");
        assert!(back["config"].get("Env").is_none());
    }
}
