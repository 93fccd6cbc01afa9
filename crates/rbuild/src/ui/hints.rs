//! Words of hints: remedies of libraries as actions on this command line.

use rbuild_remedy::{RegistryAction, Remedy, SessionLimit};

use rbuild_linux::quoted;

use crate::ui::plain::plain;

const RESTORE_STORE: &str =
    "copy it again as root with `cp -a` or `rsync -aHXU`, or empty the cache with `rbuild prune -a`";
const REPAIR_STORE: &str =
    "run `rbuild fsck --repair` to remove damaged entries, then load, pull or build the image again";
const UNMASK_PROC: &str =
    "start the container with --security-opt systempaths=unconfined, or in Kubernetes with procMount: Unmasked";
const UNCONFINE_SECCOMP: &str =
    "start the container with --security-opt seccomp=unconfined (Kubernetes: seccompProfile type Unconfined)";
const CHECK_SUB_IDS: &str = "check that newuidmap and newgidmap are set-uid root, and /etc/subuid and /etc/subgid \
     grant what `rbuild doctor` shows";

/// Returns the hint for a remedy: one imperative, without a full stop.
pub fn words(remedy: &Remedy) -> String {
    match remedy {
        Remedy::Text(text) => text.clone(),
        Remedy::DidYouMean { word } => did_you_mean(word),
        Remedy::UseOneOf { words } => match &words[..] {
            [] => String::new(),
            [word] => format!("use `{word}`"),
            [others @ .., last] => format!("use {} or {last}", others.join(", ")),
        },
        Remedy::TimeOfCommit => "use the time of a commit in seconds, as printed by `git log -1 --format=%ct`".into(),
        Remedy::FreeSpace => "free some space; `rbuild prune -a` empties the build cache".into(),
        Remedy::FreeSpaceAt { place } => {
            format!("free some space on the disk of {}, or use another disk", quoted(place))
        }
        Remedy::FreeOutput => "free some space on the disk of the output, or redirect it to another disk".into(),
        Remedy::OtherStore => "choose a directory that you can write to, with --root DIR or RBUILD_ROOT".into(),
        Remedy::OwnStore => {
            "correct the owner and the modes of the store's files, or use another one: --root DIR".into()
        }
        Remedy::NewerProgram => "use a newer rbuild, or another directory with --root DIR".into(),
        Remedy::RemoveFormat { file } => {
            format!("remove {}, which is then written again, and run `rbuild fsck --repair`", quoted(file))
        }
        Remedy::RestoreStore => RESTORE_STORE.into(),
        Remedy::ReplaceImage => "remove the image, and load or pull it again from another source".into(),
        Remedy::RepairStore => REPAIR_STORE.into(),
        Remedy::EndLockHolder { lock } => format!(
            "end that program (`fuser {lock}` in the store names it), or wait longer with RBUILD_LOCK_TIMEOUT=SECONDS"
        ),
        Remedy::ObtainImage { name } => {
            format!(
                "run `rbuild pull {name}`, or bring it in with `rbuild import FILE {name}` or `rbuild load -i FILE`"
            )
        }
        Remedy::WriteWholeId { id } => format!("write the whole ID: {id}"),
        Remedy::CorrectPath { root } => format!("correct the path; it is relative to the root of {root}"),
        Remedy::OtherOutput { obstacle } => {
            format!("remove that {obstacle}, or choose another output directory")
        }
        Remedy::OtherTarget => "mount it on another target".into(),
        Remedy::ListImages => "run `rbuild images --no-trunc --digests` to list the images".into(),
        Remedy::ListFiles => "use an absolute path; `rbuild cp IMAGE:/ - | tar -t` lists the files".into(),
        Remedy::FreeImage { container } => {
            format!("remove the container with `rbuild rm {container}`, or only the image's name with -f")
        }
        Remedy::UntagEach => "remove them one by one, or all with -f".into(),
        Remedy::RemoveContainer { name } => format!("remove it with `rbuild rm {name}`, or use another name"),
        Remedy::GiveCommand => "add a command: rbuild run IMAGE COMMAND".into(),
        Remedy::LoadArchive => "run `rbuild load -i FILE` to load the image in it".into(),
        Remedy::ImportFiles => "run `rbuild import FILE NAME` if it is a root file system".into(),
        Remedy::TransferAgain => "write or transfer the archive again".into(),
        Remedy::LoadBase => "load the base image first; the archive was saved without its layers".into(),
        Remedy::SelectPlatform { platform } => {
            format!("select an available platform, for example --platform {platform}")
        }
        Remedy::GrantIds { file } => {
            format!("grant more IDs in {file}, or use --isolation=single-id, which records owners")
        }
        Remedy::LowerId { most } => format!("use an ID of at most {most}"),
        Remedy::RaiseSessionLimit { limit: SessionLimit::Files } => "raise the limit with `ulimit -n`".into(),
        Remedy::RaiseSessionLimit { limit: SessionLimit::Processes } => {
            "raise the limit of processes: `ulimit -u`, or the container's pids limit".into()
        }
        Remedy::CheckMemory => "check dmesg; the kernel kills processes when memory runs out".into(),
        Remedy::CheckNetwork => {
            "check the network, the host name and the proxy (http_proxy, https_proxy, no_proxy)".into()
        }
        Remedy::RaiseLimit { name } => format!("raise the limit with --limit {name}=N if you trust the archive"),
        Remedy::InspectFailure => "inspect the container with --on-error shell".into(),
        Remedy::RaiseUlimits { limits } => format!("raise the limits of --ulimit: {limits}"),
        Remedy::SetArgument => "set a default on the ARG before FROM, or pass --build-arg NAME=VALUE".into(),
        Remedy::Allow { entitlement } => format!("pass --allow {entitlement} if you trust the Dockerfile"),
        Remedy::KeepSecretOut => {
            "read it from its mount in each command, or pass --allow secret-in-image to keep it in the image".into()
        }
        Remedy::PassSecret { id } => format!("pass --secret id={id},src=FILE or --secret id={id},env=NAME"),
        Remedy::PassAgent { id } => format!("pass --ssh {id} or --ssh {id}=SOCKET-OR-KEY"),
        Remedy::PassMissing { secrets, agents } => missing_words(secrets, agents),
        Remedy::PassContext => "pass a context directory".into(),
        Remedy::OrSingleId { action } => format!("{action}, or build without sub-IDs: --isolation=single-id"),
        Remedy::OrOtherNetwork { action } => format!("{action}, or use --network host or none"),
        Remedy::OmitNetwork => "omit --network".into(),
        Remedy::ReadOnlyVolume => "add :ro to the --volume".into(),
        Remedy::PermitNamespaces { setting } => format!("permit user namespaces: sudo sysctl -w {setting}"),
        Remedy::UnmaskProc => UNMASK_PROC.into(),
        Remedy::UnconfineSeccomp => UNCONFINE_SECCOMP.into(),
        Remedy::FindDenial => {
            "permit it in the security module or the seccomp profile, and check with `rbuild doctor`".into()
        }
        Remedy::CheckSubIds => CHECK_SUB_IDS.into(),
        Remedy::MountProc => "mount it: mount -t proc proc /proc (before a chroot: mount --bind /proc DIR/proc)".into(),
        Remedy::UseStoredImage { first } => {
            let stored = "use the stored image with --pull=missing";
            first.as_ref().map_or(stored.into(), |first| format!("{first}, or {stored}"))
        }
        Remedy::Registry { registry, action } => registry_words(registry, *action),
    }
}

fn missing_words(secrets: &[String], agents: &[String]) -> String {
    let secrets = secrets.iter().map(|id| format!("secret `{id}` (--secret id={id},src=FILE)"));
    let agents = agents.iter().map(|id| format!("SSH agent `{id}` (--ssh {id})"));
    format!("pass the missing secrets and agents: {}", secrets.chain(agents).collect::<Vec<_>>().join(", "))
}

fn registry_words(registry: &str, action: RegistryAction) -> String {
    match action {
        RegistryAction::LogIn => format!("check the name, or log in with `rbuild login {registry}`"),
        RegistryAction::CheckLogin => {
            format!("check the permissions of this login, or log in as another user with `rbuild login {registry}`")
        }
        RegistryAction::RaiseRateLimit => {
            format!("log in with `rbuild login {registry}` for a higher limit, or set a mirror in registries.conf")
        }
        RegistryAction::TrustAuthority => format!(
            "put its authority's certificate into /etc/containers/certs.d/{registry}/ca.crt, or pass --tls-verify=false"
        ),
        RegistryAction::AllowPlainHttp => {
            format!(
                "pass --tls-verify=false for plain HTTP, or set `insecure = true` for {registry} in registries.conf"
            )
        }
    }
}

/// Returns the hint for a misspelled word.
pub fn did_you_mean(word: &str) -> String {
    format!("did you mean `{word}`?")
}

/// Suggests the most similar of the known words, or else all of them.
pub fn suggestion(word: &str, known: &[&str]) -> String {
    match rbuild_dockerfile::closest(word, known.iter().copied()) {
        Some(close) => did_you_mean(close),
        None => words(&Remedy::UseOneOf { words: known.iter().map(|known| known.to_string()).collect() }),
    }
}

/// Formats a hint as the line below its message.
pub fn line(hint: &str, colours: bool) -> String {
    let (on, off) = if colours { ("\x1b[1;36m", "\x1b[0m") } else { ("", "") };
    format!("{on}hint{off}: {}\n", plain(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One remedy of each kind.
    fn all() -> Vec<Remedy> {
        [
            "use ADD".into(),
            Remedy::PassMissing { secrets: vec!["token".into()], agents: vec!["default".into()] },
            Remedy::did_you_mean("alpine"),
            Remedy::UseOneOf { words: vec!["a".into(), "b".into()] },
            Remedy::TimeOfCommit,
            Remedy::FreeSpace,
            Remedy::FreeSpaceAt { place: "/mnt".into() },
            Remedy::FreeOutput,
            Remedy::OtherStore,
            Remedy::OwnStore,
            Remedy::NewerProgram,
            Remedy::RemoveFormat { file: "/s/format.json".into() },
            Remedy::RestoreStore,
            Remedy::ReplaceImage,
            Remedy::RepairStore,
            Remedy::EndLockHolder { lock: "lock".into() },
            Remedy::ObtainImage { name: "alpine".into() },
            Remedy::WriteWholeId { id: "sha256:0".into() },
            Remedy::CorrectPath { root: "the build context".into() },
            Remedy::OtherOutput { obstacle: "device" },
            Remedy::OtherTarget,
            Remedy::ListImages,
            Remedy::ListFiles,
            Remedy::FreeImage { container: "web".into() },
            Remedy::UntagEach,
            Remedy::RemoveContainer { name: "web".into() },
            Remedy::GiveCommand,
            Remedy::LoadArchive,
            Remedy::ImportFiles,
            Remedy::TransferAgain,
            Remedy::LoadBase,
            Remedy::SelectPlatform { platform: "linux/arm64".into() },
            Remedy::GrantIds { file: "/etc/subuid".into() },
            Remedy::LowerId { most: 7 },
            Remedy::RaiseSessionLimit { limit: SessionLimit::Files },
            Remedy::CheckMemory,
            Remedy::CheckNetwork,
            Remedy::RaiseLimit { name: "ratio".into() },
            Remedy::InspectFailure,
            Remedy::RaiseUlimits { limits: "data=0".into() },
            Remedy::SetArgument,
            Remedy::Allow { entitlement: "network.host" },
            Remedy::KeepSecretOut,
            Remedy::PassSecret { id: "token".into() },
            Remedy::PassAgent { id: "default".into() },
            Remedy::PassContext,
            Remedy::UseStoredImage { first: Some("check the network".into()) },
            Remedy::OrSingleId { action: "mount it without nosuid".into() },
            Remedy::OrOtherNetwork { action: "install pasta".into() },
            Remedy::OmitNetwork,
            Remedy::ReadOnlyVolume,
            Remedy::PermitNamespaces { setting: "user.max_user_namespaces=15000" },
            Remedy::UnmaskProc,
            Remedy::UnconfineSeccomp,
            Remedy::FindDenial,
            Remedy::CheckSubIds,
            Remedy::MountProc,
        ]
        .into_iter()
        .chain(RegistryAction::ALL.map(|action| Remedy::Registry { registry: "a.io".into(), action }))
        .collect()
    }

    #[test]
    fn every_remedy_is_worded_as_a_hint() {
        let kinds: std::collections::HashSet<_> = all().iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), Remedy::KINDS, "a kind of remedy is not tested");
        let mut table = Vec::new();
        for remedy in all() {
            let words = words(&remedy);
            table.push(words.clone());
            assert!(words.starts_with(|c: char| c.is_lowercase()), "{words}");
            assert!(!words.ends_with('.') && !words.contains('\n') && words.len() < 120, "{words}");
        }
        rbuild_testkit::assert_recorded!("hints", table.join("\n"));
    }
}
