use std::fmt;
use std::str::FromStr;

/// Operating system, architecture and variant, in the words of GOOS and GOARCH.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    pub os: String,
    pub arch: String,
    pub variant: Option<String>,
}

impl Platform {
    /// What this program was built for.
    pub fn host() -> Platform {
        let (arch, variant) = normal_arch(std::env::consts::ARCH, None);
        Platform { os: "linux".into(), arch, variant }
    }

    /// Whether programs of `other` run here without help.
    pub fn runs(&self, other: &Platform) -> bool {
        self.os == other.os && self.arch == other.arch
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

impl FromStr for Platform {
    type Err = String;
    fn from_str(text: &str) -> Result<Platform, String> {
        let parts: Vec<&str> = text.trim().split('/').collect();
        let (os, arch, variant) = match parts[..] {
            [os, arch] => (os, arch, None),
            [os, arch, variant] => (os, arch, Some(variant)),
            _ => return Err(format!("`{text}` is not a platform of the form os/arch[/variant]")),
        };
        let word = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if ![os, arch].into_iter().chain(variant).all(word) {
            return Err(format!("`{text}` is not a platform of the form os/arch[/variant]"));
        }
        let (arch, variant) = normal_arch(arch, variant);
        Ok(Platform { os: os.to_lowercase(), arch, variant })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_normalised() {
        for (text, want) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("Linux/armhf", "linux/arm/v7"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), want);
        }
        assert!("linux".parse::<Platform>().is_err());
        assert!("linux/".parse::<Platform>().is_err());
    }
}
