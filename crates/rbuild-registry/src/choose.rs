//! Selection of an image for a platform, by the rules of containerd's `platforms`.

use rbuild_image::{Descriptor, ImageIndex, Platform, leads_to_images};

/// The entry of an index for a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlatformMatch {
    /// A manifest, or a nested index.
    Entry(Descriptor),
    /// No entry matches. Contains the available platforms.
    None(Vec<String>),
}

/// Chooses the entry of an index that serves a platform best.
pub fn choose(index: &ImageIndex, wanted: &Platform) -> PlatformMatch {
    let entries: Vec<&Descriptor> = index.manifests().iter().filter(|entry| leads_to_images(entry)).collect();
    let ranked = entries.iter().filter_map(|entry| {
        let needs_features = entry.platform().as_ref()?.os_features().as_ref().is_some_and(|list| !list.is_empty());
        let rank = rank(wanted, &Platform::of(entry)?)?;
        (!needs_features).then_some((rank, *entry))
    });
    // Among equal ranks, the first entry.
    if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
        return PlatformMatch::Entry(best.clone());
    }
    if let [only] = entries[..]
        && only.platform().is_none()
    {
        return PlatformMatch::Entry(only.clone());
    }
    let mut others: Vec<String> = entries.iter().filter_map(|entry| Some(Platform::of(entry)?.to_string())).collect();
    others.sort();
    others.dedup();
    PlatformMatch::None(others)
}

/// Returns the entries of an index that are images or nested indexes, without attestations and
/// other artifacts.
pub fn image_entries(index: &ImageIndex) -> Vec<Descriptor> {
    index.manifests().iter().filter(|entry| leads_to_images(entry)).cloned().collect()
}

/// Returns the rank of a platform among those that run on `wanted`; 0 is the best. `None` if it
/// does not run there.
fn rank(wanted: &Platform, found: &Platform) -> Option<usize> {
    if wanted.os != found.os {
        return None;
    }
    let found = (found.arch.as_str(), found.variant.as_deref().unwrap_or(""));
    candidates(wanted).iter().position(|(arch, variant)| (*arch, variant.as_str()) == found)
}

/// Returns the architectures and variants that run on a platform. Variants are in the normal form:
/// empty for v1 of amd64 and v8 of arm64.
fn candidates(wanted: &Platform) -> Vec<(&str, String)> {
    let number = |variant: &str| variant.trim_start_matches('v').parse::<u32>().ok();
    let arm = |most: u32| (5..=most).rev().map(|n| ("arm", format!("v{n}")));
    let variant = wanted.variant.as_deref().unwrap_or("");
    match (wanted.arch.as_str(), variant) {
        ("amd64", variant) => {
            let highest = number(variant).unwrap_or(1).min(16);
            let higher = (2..=highest).rev().map(|n| ("amd64", format!("v{n}")));
            higher.chain([("amd64", String::new()), ("386", String::new())]).collect()
        }
        ("arm64", variant) => arm64(variant).into_iter().map(|variant| ("arm64", variant)).chain(arm(8)).collect(),
        ("arm", variant) => arm(number(variant).unwrap_or(7).min(16)).collect(),
        (arch, variant) => vec![(arch, variant.to_string())],
    }
}

/// Returns the variants of arm64 that run on one of them. v9.N includes v8.(N+5).
fn arm64(variant: &str) -> Vec<String> {
    let (major, minor) =
        variant.trim_start_matches('v').split_once('.').unwrap_or((variant.trim_start_matches('v'), "0"));
    let minor = minor.parse::<u32>().unwrap_or(0).min(9);
    let (nines, eights) = match major {
        "9" => (Some(minor), (minor + 5).min(9)),
        _ => (None, minor),
    };
    let name = |major: u32, minor: u32| match (major, minor) {
        (8, 0) => String::new(),
        (major, 0) => format!("v{major}"),
        (major, minor) => format!("v{major}.{minor}"),
    };
    let nines = nines.into_iter().flat_map(|most| (0..=most).rev()).map(|minor| name(9, minor));
    nines.chain((0..=eights).rev().map(|minor| name(8, minor))).collect()
}

#[cfg(test)]
mod tests {
    use rbuild_image::parse_index;

    use super::*;

    /// An index of these platforms; `-` is an entry without one.
    fn index(platforms: &[&str]) -> ImageIndex {
        let entries = platforms.iter().enumerate().map(|(i, text)| {
            let parts: Vec<&str> = text.split('/').collect();
            let platform = match parts[..] {
                [os, arch] => format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#),
                [os, arch, variant] => {
                    format!(r#","platform":{{"os":"{os}","architecture":"{arch}","variant":"{variant}"}}"#)
                }
                _ => String::new(),
            };
            let kind = "application/vnd.oci.image.manifest.v1+json";
            format!(r#"{{"mediaType":"{kind}","digest":"sha256:{i:064}","size":1{platform}}}"#)
        });
        let list = entries.collect::<Vec<_>>().join(",");
        parse_index(format!(r#"{{"schemaVersion":2,"manifests":[{list}]}}"#).as_bytes()).unwrap()
    }

    fn chosen(wanted: &str, platforms: &[&str]) -> Option<usize> {
        match choose(&index(platforms), &wanted.parse().unwrap()) {
            PlatformMatch::Entry(entry) => entry.digest().digest().parse().ok(),
            PlatformMatch::None(_) => None,
        }
    }

    #[test]
    fn the_best_platform_is_chosen() {
        for (wanted, platforms, want) in [
            ("linux/amd64", &["linux/arm64", "linux/amd64"][..], Some(1)),
            ("linux/amd64", &["linux/386", "windows/amd64"], Some(0)),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], Some(1)),
            ("linux/amd64", &["linux/amd64/v2"], None),
            ("linux/amd64", &["linux/x86_64/v1"], Some(0)),
            ("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"], Some(1)),
            ("linux/arm64", &["linux/arm/v6", "linux/arm/v7"], Some(1)),
            ("linux/arm64/v9", &["linux/arm64", "linux/arm64/v8.5", "linux/arm64/v8.6"], Some(1)),
            ("linux/arm/v6", &["linux/arm/v7", "linux/arm/v5"], Some(1)),
            ("linux/arm", &["linux/arm/v5", "linux/arm"], Some(1)),
            ("linux/riscv64", &["linux/amd64"], None),
            ("linux/amd64", &["linux/amd64", "linux/amd64"], Some(0)),
            ("linux/amd64", &["unknown/unknown", "-"], Some(1)),
            ("linux/amd64", &["-", "-"], None),
        ] {
            assert_eq!(chosen(wanted, platforms), want, "{wanted} of {platforms:?}");
        }
        let others =
            choose(&index(&["linux/s390x", "linux/arm64", "unknown/unknown"]), &"linux/amd64".parse().unwrap());
        assert_eq!(others, PlatformMatch::None(vec!["linux/arm64".into(), "linux/s390x".into()]));
    }
}
