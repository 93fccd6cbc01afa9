//! Digests of the vertices of BuildKit for steps, by which its caches are searched.
//!
//! A vertex is hashed as the JSON that Go makes of it: no spaces, `<`, `>` and `&` escaped, empty
//! fields left out (CacheMap in solver/llbsolver/ops of BuildKit).

use rbuild_image::{BlobDigest, DiffId, ManifestDigest, Platform};
use rbuild_paths::{in_root, is_pattern};
use rbuild_plan::{CopyStep, NetworkMode, RunStep, SecurityMode, WorkdirStep};
use rbuild_registry::embeddable;
use serde::Serialize;

/// PATH of commands whose environment has none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Host name of commands, which is not hashed.
const HOSTNAME: &str = "buildkitsandbox";
/// Number of the host's network in the protocol of BuildKit.
const HOST_NETWORK: u32 = 1;
/// Number of the network `none`.
const NO_NETWORK: u32 = 2;

/// Returns the text that Go makes of a value.
fn go_json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    text.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn of_text(text: impl AsRef<[u8]>) -> BlobDigest {
    BlobDigest::of(text.as_ref())
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ImageText {
    digest: String,
    #[serde(rename = "OS")]
    os: String,
    arch: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

/// Returns the digests of an image: by its manifest, and by its layers.
pub(crate) fn image(manifest: &ManifestDigest, platform: &Platform, diff_ids: &[DiffId]) -> Vec<BlobDigest> {
    let Platform { os, arch, variant } = platform.clone();
    let text = go_json(&ImageText { digest: manifest.to_string(), os, arch, variant });
    let by_manifest = of_text(format!("buildkit.source.v0:{}", of_text(text)));
    let by_layers = chain_id(diff_ids).map(|chain| of_text(format!("buildkit.source.v0:{chain}")));
    [Some(by_manifest), by_layers].into_iter().flatten().collect()
}

/// Returns the ChainID of layers (image-spec, config.md).
fn chain_id(diff_ids: &[DiffId]) -> Option<String> {
    let (first, others) = diff_ids.split_first()?;
    Some(others.iter().fold(first.to_string(), |chain, next| of_text(format!("{chain} {next}")).to_string()))
}

#[derive(Serialize)]
struct ExecText {
    meta: MetaText,
    #[serde(skip_serializing_if = "is_zero")]
    network: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct MetaText {
    args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    cwd: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(rename = "removeMountStubsRecursive", skip_serializing_if = "std::ops::Not::not")]
    removes_stubs: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RunText<'a> {
    r#type: &'static str,
    exec: ExecText,
    #[serde(rename = "OS")]
    os: &'a str,
    arch: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
}

/// Returns the digests of a command, for several versions of BuildKit; none for a command with
/// mounts or other settings.
pub(crate) fn run(step: &RunStep) -> Vec<BlobDigest> {
    let RunStep { platform, args, env, cwd, user, network, security, hostname, hosts, .. } = step;
    let RunStep { mounts, secrets, agents, shm_size, ulimits, script, .. } = step;
    let is_plain = mounts.is_empty()
        && secrets.is_empty()
        && agents.is_empty()
        && hosts.is_empty()
        && ulimits.is_empty()
        && shm_size.is_none()
        && script.is_none()
        && hostname == HOSTNAME
        && *security == SecurityMode::Sandbox;
    if !is_plain {
        return Vec::new();
    }
    let mut env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(PATH.into());
    }
    // Builds without --network have the network of the builder, and no number.
    let networks: &[u32] = match network {
        NetworkMode::Host => &[0, HOST_NETWORK],
        NetworkMode::Isolated => &[0],
        NetworkMode::None => &[NO_NETWORK],
    };
    let text = |removes_stubs: bool, network: u32| {
        let (args, env, cwd, user) = (args.clone(), env.clone(), cwd.clone(), user.clone());
        let exec = ExecText { meta: MetaText { args, env, cwd, user, removes_stubs }, network };
        let Platform { os, arch, variant } = platform;
        go_json(&RunText { r#type: "buildkit.exec.v0", exec, os, arch, variant: variant.as_deref() })
    };
    let forms = networks.iter().flat_map(|network| [true, false].map(|removes| of_text(text(removes, *network))));
    forms.collect()
}

/// Returns the selector of the whole root file system of a command.
pub(crate) fn root_selector() -> BlobDigest {
    of_text("/")
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct FileText {
    r#type: &'static str,
    actions: Vec<String>,
}

fn file(actions: &[String]) -> BlobDigest {
    let actions = actions.iter().map(|action| embeddable(action.as_bytes())).collect();
    of_text(go_json(&FileText { r#type: "buildkit.file.v0", actions }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MkdirText<'a> {
    path: &'a str,
    mode: u32,
    make_parents: bool,
    timestamp: i64,
}

/// Returns the digest of WORKDIR; none if its directory has another owner or a fixed time.
pub(crate) fn workdir(step: &WorkdirStep) -> Vec<BlobDigest> {
    let WorkdirStep { path, user, time } = step;
    if !user.is_empty() || time.is_some() {
        return Vec::new();
    }
    vec![file(&[go_json(&MkdirText { path, mode: 0o755, make_parents: true, timestamp: -1 })])]
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CopyText<'a> {
    src: &'a str,
    dest: &'a str,
    mode: i32,
    follow_symlink: bool,
    dir_copy_contents: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    attempt_unpack_docker_compatibility: bool,
    create_dest_path: bool,
    allow_wildcard: bool,
    allow_empty_wildcard: bool,
    timestamp: i64,
}

/// A copy in the form in which BuildKit hashes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CopyKeys {
    pub digests: Vec<BlobDigest>,
    /// Stands for the sources, if they are read from a stage.
    pub selector: BlobDigest,
    /// Positions of the sources whose content is hashed, in the order of their paths.
    pub hashed: Vec<usize>,
}

/// Returns the digests of a copy. Returns `None` for one with options, patterns, here-documents or
/// downloads.
pub(crate) fn copy(step: &CopyStep, has_fixed_times: bool) -> Option<CopyKeys> {
    let CopyStep { sources, inline, dest, dest_is_dir, chown, chmod, exclude, parents, link, unpack, .. } = step;
    let has_options = chown.is_some() || chmod.is_some() || !exclude.is_empty() || *parents || *link || has_fixed_times;
    if has_options || !inline.is_empty() || sources.is_empty() {
        return None;
    }
    let mut paths = Vec::new();
    for source in sources {
        let text = source.pattern()?.text();
        if is_pattern(text) {
            return None;
        }
        paths.push(format!("/{}", in_root(text).join("/")));
    }
    let dests = match (dest_is_dir, dest.as_str()) {
        (false, dest) => vec![dest.to_string()],
        (true, "/") => vec!["/".into(), "/.".into()],
        (true, dest) => vec![format!("{dest}/"), format!("{dest}/.")],
    };
    let digest = |dest: &String| {
        let action = |path: &String| {
            let src = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/");
            go_json(&CopyText {
                src,
                dest,
                mode: -1,
                follow_symlink: true,
                dir_copy_contents: true,
                attempt_unpack_docker_compatibility: *unpack,
                create_dest_path: true,
                allow_wildcard: true,
                allow_empty_wildcard: true,
                timestamp: -1,
            })
        };
        file(&paths.iter().map(action).collect::<Vec<_>>())
    };
    let mut sorted: Vec<&str> = paths.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.reverse();
    let selector = of_text(sorted.join("\0"));
    // Paths below others, and repeated ones, are hashed once.
    let is_below = |path: &str, other: &str| {
        path != other && path.starts_with(&if other.ends_with('/') { other.to_string() } else { format!("{other}/") })
    };
    let mut hashed: Vec<usize> = (0..paths.len()).collect();
    hashed.retain(|at| !paths.iter().any(|other| is_below(&paths[*at], other)));
    hashed.sort_by(|a, b| paths[*a].cmp(&paths[*b]));
    hashed.dedup_by(|a, b| paths[*a] == paths[*b]);
    Some(CopyKeys { digests: dests.iter().map(digest).collect(), selector, hashed })
}

/// Returns the digest of the content of several sources.
pub(crate) fn content(sources: &[BlobDigest]) -> BlobDigest {
    of_text(sources.iter().map(BlobDigest::to_string).collect::<Vec<_>>().join("\0"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rbuild_plan::{Parameters, Plan, plan};

    use super::*;

    /// Records that docker 20.10.24 made of `FROM`, `COPY a /a` and `RUN echo hi > /b`.
    #[test]
    fn digests_are_those_of_buildkit() {
        let record = |vertex: &BlobDigest, output: &str| of_text(format!("{vertex}@{output}")).to_string();
        let base: ManifestDigest =
            "sha256:1307a6e4012c93a082062cf29d2b0a5cc3fbb32eb3e65915c4361d932cb00d9e".parse().unwrap();
        let layer: DiffId = "sha256:b210c496b99055f6ba414785c47d29b961f1da63d28d84556706346eb7a6d13e".parse().unwrap();
        let platform: Platform = "linux/amd64".parse().unwrap();
        let found = image(&base, &platform, &[layer]).iter().map(|d| record(d, "0")).collect::<Vec<_>>();
        let want = [
            "sha256:cbc02986e3d3aa60fe76c8586c05bd15181ef021800251af9d22f20b0b0e7ae6",
            "sha256:d55fb4e357349ba3c87eaa7c6b2f6fd811230c303d2412d2eb2b7ae463174e89",
        ];
        assert!(want.iter().all(|want| found.contains(&want.to_string())), "{found:?}");
        let parsed = rbuild_dockerfile::parse(b"FROM scratch\nCOPY a /a\nRUN echo hi > /b\n").unwrap();
        let parameters = Parameters::new(platform.clone(), platform.clone());
        let Ok(Plan::Graph(graph)) = plan(&parsed, &parameters, &HashMap::new()) else { panic!() };
        let mut found = Vec::new();
        for vertex in &graph.vertices {
            match &vertex.step {
                rbuild_plan::Step::Copy(step) => {
                    let keys = copy(step, false).unwrap();
                    assert_eq!((keys.digests.len(), &keys.hashed[..]), (1, &[0][..]));
                    found.push(record(&keys.digests[0], "0"));
                }
                rbuild_plan::Step::Run(step) => found.extend(run(step).iter().map(|d| record(d, "0"))),
                _ => {}
            }
        }
        for want in [
            "sha256:00b3525dfd2a93899fdfa1d482df9f7a38aa94632a1520156dc247bb031bc164",
            "sha256:dc7d7cc079f41522062a25c6113ae0a0ef550a9b84592c3282f2c410de3fc41d",
        ] {
            assert!(found.contains(&want.to_string()), "{found:?}");
        }
        let file = of_text("namemode420uid0gid0size2typeflag0linknameunamegnamedevmajor0devminor0a\n");
        let want = "sha256:d9bbc07d27ae5f69fef43f29e6b42b3cb97b88c514516b9e4166bf30bc1a355e";
        assert_eq!(record(&content(&[file]), "-1"), want);
    }
}
