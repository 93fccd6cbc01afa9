//! Platforms and their normalization.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Descriptor;

/// Operating system, architecture and variant. Parsing normalizes aliases (`x86_64` to `amd64`).
///
/// ```
/// use rbuild_image::Platform;
///
/// let platform: Platform = "linux/aarch64".parse()?;
/// assert_eq!(platform.to_string(), "linux/arm64");
/// # Ok::<(), rbuild_image::PlatformError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// GOOS.
    pub os: String,
    /// GOARCH.
    pub arch: String,
    /// Variant of the architecture, for example `v7` of `arm`.
    pub variant: Option<String>,
}

impl Platform {
    /// Returns the platform that this program was built for.
    pub fn host() -> Platform {
        let (arch, variant) = normal_arch(std::env::consts::ARCH, None);
        Platform { os: "linux".into(), arch, variant }
    }

    /// Returns the normalized platform of a descriptor, if it has one.
    pub fn of(d: &Descriptor) -> Option<Platform> {
        let named = d.platform().as_ref()?;
        let (arch, variant) = normal_arch(&named.architecture().to_string(), named.variant().as_deref());
        Some(Platform { os: normal_os(&named.os().to_string()), arch, variant })
    }

    /// Returns true if an image of platform `other` matches this platform. A missing variant on
    /// either side matches any.
    pub fn accepts(&self, other: &Platform) -> bool {
        let variants = self.variant.as_ref().zip(other.variant.as_ref());
        self.runs(other) && variants.is_none_or(|(own, other)| own == other)
    }

    /// Returns true if this platform runs programs of `other` without an emulator.
    pub fn runs(&self, other: &Platform) -> bool {
        self.os == other.os && self.arch == other.arch
    }
}

/// Operating systems that are accepted without an architecture.
const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];
/// Architectures by their Go names. They are accepted without an operating system.
pub const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

fn normal_os(os: &str) -> String {
    match os.to_lowercase().as_str() {
        "macos" => "darwin".into(),
        os => os.into(),
    }
}

fn normal_arch(arch: &str, variant: Option<&str>) -> (String, Option<String>) {
    let (arch, variant) = match (arch.to_lowercase().as_str(), variant) {
        ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v.filter(|v| *v != "v1")),
        ("aarch64" | "arm64", v) => ("arm64", v.filter(|v| *v != "v8" && *v != "8")),
        ("i386" | "i686" | "x86" | "386", _) => ("386", None),
        ("armhf", _) => ("arm", Some("v7")),
        ("armel", _) => ("arm", Some("v6")),
        ("arm", v) => ("arm", Some(v.unwrap_or("v7"))),
        (other, v) => return (other.to_string(), v.map(str::to_string)),
    };
    (arch.to_string(), variant.map(str::to_string))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)?;
        self.variant.as_ref().map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

/// A text that is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// A single word that is neither an operating system nor an architecture.
    #[error("unknown platform `{0}`: neither an operating system nor an architecture")]
    Unknown(String),
    /// A text that is not of the form `os/arch[/variant]`.
    #[error("invalid platform `{0}`: expected os/arch[/variant]")]
    Invalid(String),
}

impl FromStr for Platform {
    type Err = PlatformError;
    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let parts: Vec<&str> = text.trim().split('/').collect();
        let host = Platform::host();
        let (os, arch, variant) = match parts[..] {
            // A single word is an operating system or an architecture; the host provides the other.
            [word] if SYSTEMS.contains(&normal_os(word).as_str()) => {
                (word, host.arch.as_str(), host.variant.as_deref())
            }
            [word] if ARCHITECTURES.contains(&normal_arch(word, None).0.as_str()) => (host.os.as_str(), word, None),
            [os, arch] => (os, arch, None),
            [os, arch, variant] => (os, arch, Some(variant)),
            [word] => {
                return Err(PlatformError::Unknown(word.to_string()));
            }
            _ => return Err(PlatformError::Invalid(text.to_string())),
        };
        let word = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if ![os, arch].into_iter().chain(variant).all(word) {
            return Err(PlatformError::Invalid(text.to_string()));
        }
        let (arch, variant) = normal_arch(arch, variant);
        Ok(Platform { os: normal_os(os), arch, variant })
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn platforms_are_normalized() {
        for (text, want) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("Linux/armhf", "linux/arm/v7"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), want);
        }
        let host = Platform::host();
        assert_eq!("linux".parse::<Platform>().unwrap(), host);
        assert_eq!("Windows".parse::<Platform>().unwrap().to_string(), format!("windows/{}", host.arch));
        assert_eq!("aarch64".parse::<Platform>().unwrap().to_string(), "linux/arm64");
        assert_eq!("armhf".parse::<Platform>().unwrap().to_string(), "linux/arm/v7");
    }

    #[test]
    fn invalid_platforms_are_rejected_as_recorded() {
        let errors = ["nothing", "", "linux/", "linux/arm/v7/x", "linux/a b"].map(|text| text.parse::<Platform>());
        let table =
            variants!(PlatformError { Unknown, Invalid }).table(&errors.map(Result::unwrap_err), |e| e, no_remedy);
        assert_recorded!("PlatformError", table);
    }
}
