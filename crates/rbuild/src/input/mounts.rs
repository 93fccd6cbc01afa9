//! Mounts of containers: `--volume`, `--mount` and `--tmpfs`.

use std::io;
use std::os::unix::fs::FileTypeExt;

use rbuild_image::BlobDigest;
use rbuild_plan::{ContainerMount, NamedVolume, TmpfsMount, TmpfsOptions, Volume, VolumeOrigin};

use crate::exit::Failure;
use crate::input::flags::reason;
use crate::input::{output, value};
use crate::ui::hints::{self, ValueRemedy};

/// Returns true for names that a volume can have. As in docker, they have at least two characters.
pub fn is_volume_name(name: &str) -> bool {
    name.len() > 1
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// Returns a name for an anonymous volume, made from a text that no other one has.
pub fn generated_name(salt: &str) -> String {
    BlobDigest::of(salt.as_bytes()).hex()
}

/// Returns an anonymous volume for a path that the image of a container declares as one.
/// `container` is the ID of the container.
pub fn image_volume(target: String, container: &str) -> ContainerMount {
    let name = generated_name(&format!("{container} {target}"));
    ContainerMount::Named(NamedVolume { name, target, read_only: false, origin: VolumeOrigin::Image })
}

/// Parses `[SOURCE:]TARGET[:ro|rw]` of a container: as in docker, a source without a slash is the
/// name of a volume, and without a source, the volume is anonymous. `container` is the ID of the
/// container.
pub fn container_volume(text: &str, container: &str) -> Result<ContainerMount, Failure> {
    let bad = |problem: String| Failure::usage(format!("--volume {text}: {problem}"));
    let named = |name: String, target: &str, read_only, origin| {
        check_target(bad, target)?;
        Ok(ContainerMount::Named(NamedVolume { name, target: target.into(), read_only, origin }))
    };
    match text.split_once(':') {
        None if text.starts_with('/') => {
            named(generated_name(&format!("{container} {text}")), text, false, VolumeOrigin::Path)
        }
        Some((name, rest)) if is_volume_name(name) => {
            let (target, options) = rest.split_once(':').unwrap_or((rest, ""));
            named(name.to_string(), target, read_only(bad, options)?, VolumeOrigin::Given)
        }
        _ => volume(text).map(ContainerMount::Bind),
    }
}

/// Parses `SOURCE:TARGET[:ro|rw]`.
pub fn volume(text: &str) -> Result<Volume, Failure> {
    let bad = |problem: String| Failure::usage(format!("--volume {text}: {problem}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => {
            return Err(bad("not of the form SOURCE:TARGET[:ro]".into()).help(ValueRemedy::VolumeForm));
        }
    };
    bind(bad, source, target, read_only(bad, options)?)
}

/// Parses the options of a volume. Returns true if it is read-only.
fn read_only(bad: impl Fn(String) -> Failure, options: &str) -> Result<bool, Failure> {
    let mut read_only = false;
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            // SELinux labels are accepted, but files are not relabeled.
            "z" | "Z" => {}
            other => return Err(bad(format!("unknown option `{other}`")).help(hints::use_one_of(&["ro", "rw"]))),
        }
    }
    Ok(read_only)
}

/// Fails unless a target is an absolute path of something in the container.
fn check_target(bad: impl Fn(String) -> Failure, target: &str) -> Result<(), Failure> {
    if !target.starts_with('/') || target.trim_matches('/').is_empty() {
        return Err(bad("the target is not an absolute path below /".into()));
    }
    Ok(())
}

/// Returns a volume with the real path of its source.
fn bind(bad: impl Fn(String) -> Failure, source: &str, target: &str, read_only: bool) -> Result<Volume, Failure> {
    check_target(&bad, target)?;
    let path = std::fs::canonicalize(source).map_err(|e| {
        let failure = bad(format!("cannot open `{source}`: {}", reason(&e)));
        if e.kind() != io::ErrorKind::NotFound {
            return failure;
        }
        if source.contains('/') {
            failure.help(ValueRemedy::CreateSource)
        } else {
            failure.help(ValueRemedy::PassDirectory { name: source.into() })
        }
    })?;
    Ok(Volume { source: path, target: target.to_string(), read_only })
}

/// Device nodes that every container has.
const OWN_DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Parses `PATH[:TARGET[:PERMISSIONS]]` of a device, or of a directory of devices. As without
/// privileges under podman, it is mounted, and the permissions of this user apply. Returns `None`
/// for a device that every container has.
pub fn device(text: &str) -> Result<Option<ContainerMount>, Failure> {
    let bad = |problem: String| Failure::usage(format!("--device {text}: {problem}"));
    let parts: Vec<&str> = text.split(':').collect();
    let is_permissions = |part: &str| !part.is_empty() && part.chars().all(|c| "rwm".contains(c));
    let (source, target, permissions) = match parts[..] {
        [source] => (source, source, "rwm"),
        [source, permissions] if is_permissions(permissions) => (source, source, permissions),
        [source, target] => (source, target, "rwm"),
        [source, target, permissions] if is_permissions(permissions) => (source, target, permissions),
        _ => return Err(bad("not of the form PATH[:TARGET[:rwm]]".into()).help(ValueRemedy::DeviceForm)),
    };
    if source == target && OWN_DEVICES.contains(&source) {
        return Ok(None);
    }
    let kind = std::fs::metadata(source).map(|found| found.file_type());
    if kind.is_ok_and(|kind| !kind.is_char_device() && !kind.is_block_device() && !kind.is_dir()) {
        return Err(bad(format!("`{source}` is not a device")).help(ValueRemedy::MountFile));
    }
    bind(bad, source, target, !permissions.contains('w')).map(|volume| Some(ContainerMount::Bind(volume)))
}

/// Properties of a tmpfs on the command line. As in docker, programs in it are not executed unless
/// an option permits it.
const TMPFS: TmpfsOptions = TmpfsOptions { size: None, mode: None, no_programs: true };

/// Parses a mode in octal digits.
fn mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)
}

/// Parses the fields of `--mount`.
pub fn mount(text: &str, container: &str) -> Result<ContainerMount, Failure> {
    let bad = |problem: String| Failure::usage(format!("--mount {text}: {problem}"));
    let (mut source, mut target, mut read_only, mut kind) = (None, None, false, "volume".to_string());
    let mut options = TMPFS;
    for field in output::csv_fields(text).map_err(|e| bad(e.to_string()))? {
        let (key, value) = field.split_once('=').map_or((&field[..], None), |(key, value)| (key, Some(value)));
        let needed = || value.map(str::to_string).ok_or_else(|| bad(format!("`{key}` needs a value")));
        match key.to_lowercase().as_str() {
            "type" => kind = needed()?.to_lowercase(),
            "source" | "src" => source = Some(needed()?),
            "target" | "dst" | "destination" => target = Some(needed()?),
            "readonly" | "ro" => {
                let switch = |value| value::switch(value).map_err(|bad| bad.of(format!("--mount {text}: `{field}`")));
                read_only = value.map_or(Ok(true), switch)?;
            }
            "tmpfs-size" => {
                let size = value::size(&needed()?).map_err(|bad| bad.of(format!("--mount {text}: `{field}`")));
                options.size = Some(size?);
            }
            "tmpfs-mode" => {
                let unknown = || bad(format!("`{field}` is not a mode")).help(ValueRemedy::ModeForm);
                options.mode = Some(mode(&needed()?).ok_or_else(unknown)?);
            }
            "bind-propagation" => {}
            _ => {
                let known = ["type", "source", "target", "readonly", "tmpfs-size", "tmpfs-mode"];
                return Err(value::unknown_option(key, &known).of(format!("--mount {text}")));
            }
        }
    }
    match (kind.as_str(), source, target) {
        ("bind", Some(source), Some(target)) => {
            if options != TMPFS {
                return Err(bad("only a mount of type tmpfs has a size and a mode".into()).help(ValueRemedy::TmpfsForm));
            }
            bind(bad, &source, &target, read_only).map(ContainerMount::Bind)
        }
        ("bind", ..) => Err(bad("the source or the target is missing".into()).help(ValueRemedy::MountForm)),
        ("volume", source, Some(target)) => {
            if options != TMPFS {
                return Err(bad("only a mount of type tmpfs has a size and a mode".into()).help(ValueRemedy::TmpfsForm));
            }
            check_target(bad, &target)?;
            let origin = if source.is_none() { VolumeOrigin::Mount } else { VolumeOrigin::Given };
            let name = source.unwrap_or_else(|| generated_name(&format!("{container} {target}")));
            if !is_volume_name(&name) {
                return Err(bad(format!("`{name}` is not the name of a volume")).help(ValueRemedy::VolumeName));
            }
            Ok(ContainerMount::Named(NamedVolume { name, target, read_only, origin }))
        }
        ("volume", _, None) => Err(bad("the target is missing".into()).help(ValueRemedy::MountForm)),
        ("tmpfs", None, Some(target)) => {
            check_target(bad, &target)?;
            Ok(ContainerMount::Tmpfs(TmpfsMount { target, options, read_only }))
        }
        ("tmpfs", Some(_), _) => Err(bad("a mount of type tmpfs has no source".into()).help(ValueRemedy::TmpfsForm)),
        ("tmpfs", None, None) => Err(bad("the target is missing".into()).help(ValueRemedy::TmpfsForm)),
        (kind, ..) => Err(bad(format!("mounts of type {kind} are not supported")).help(ValueRemedy::BindDirectory)),
    }
}

/// Parses `TARGET[:OPTION,...]`, with the options of tmpfs(5) and mount(8) that docker documents.
pub fn tmpfs(text: &str) -> Result<ContainerMount, Failure> {
    let bad = |problem: String| Failure::usage(format!("--tmpfs {text}: {problem}"));
    let (target, list) = text.split_once(':').unwrap_or((text, ""));
    check_target(bad, target)?;
    let (mut options, mut read_only) = (TMPFS, false);
    for option in list.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => read_only = true,
            ("rw", "") => read_only = false,
            ("exec", "") => options.no_programs = false,
            ("noexec", "") => options.no_programs = true,
            // They always apply.
            ("nosuid" | "nodev", "") => {}
            ("size", size) => {
                options.size = Some(value::size(size).map_err(|bad| bad.of(format!("--tmpfs {text}: `{option}`")))?);
            }
            ("mode", digits) => {
                let unknown = || bad(format!("`{option}` is not a mode")).help(ValueRemedy::ModeForm);
                options.mode = Some(mode(digits).ok_or_else(unknown)?);
            }
            (name, _) => {
                let known = ["ro", "rw", "exec", "noexec", "nosuid", "nodev", "size", "mode"];
                return Err(value::unknown_option(name, &known).of(format!("--tmpfs {text}")));
            }
        }
    }
    Ok(ContainerMount::Tmpfs(TmpfsMount { target: target.to_string(), options, read_only }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_mounted_as_files() {
        let parsed = |text| match device(text).unwrap() {
            Some(ContainerMount::Bind(Volume { target, read_only, .. })) => (target, read_only),
            other => (format!("{other:?}"), false),
        };
        assert_eq!(parsed("/dev/zero:/dev/one"), ("/dev/one".into(), false));
        assert_eq!(parsed("/dev/zero:/dev/one:r"), ("/dev/one".into(), true));
        assert_eq!(parsed("/dev"), ("/dev".into(), false));
        assert_eq!([parsed("/dev/null"), parsed("/dev/null:rwm")].map(|found| found.0), ["None", "None"]);
    }

    #[test]
    fn sources_without_a_slash_are_names_of_volumes() {
        let parsed = |text| match container_volume(text, "id").unwrap() {
            ContainerMount::Named(NamedVolume { name, target, read_only, origin }) => {
                (if origin == VolumeOrigin::Path { name.len().to_string() } else { name }, target, read_only)
            }
            other => (format!("{other:?}"), String::new(), false),
        };
        assert_eq!(parsed("data:/d"), ("data".into(), "/d".into(), false));
        assert_eq!(parsed("d.1:/d:ro,z"), ("d.1".into(), "/d".into(), true));
        assert_eq!(parsed("/d"), ("64".into(), "/d".into(), false));
        assert!(parsed("/:/d").0.starts_with("Bind") && parsed(".:/d").0.starts_with("Bind"));
        let mounted = mount("source=data,target=/d", "id").unwrap();
        assert_eq!(mounted.volume(), Some("data"));
        assert_ne!(container_volume("/d", "a").unwrap(), container_volume("/d", "b").unwrap());
    }

    #[test]
    fn mounts_in_memory_have_the_options_of_docker() {
        let tmpfs_of = |mount: ContainerMount| match mount {
            ContainerMount::Tmpfs(TmpfsMount { target, options, read_only }) => (target, options, read_only),
            ContainerMount::Bind(_) | ContainerMount::Named(_) => unreachable!("the mount is a tmpfs"),
        };
        let options = |size, mode, no_programs| TmpfsOptions { size, mode, no_programs };
        for (text, expected, is_read_only) in [
            ("/t", TMPFS, false),
            ("/t:rw,noexec,nosuid,nodev", TMPFS, false),
            ("/t:ro,exec,size=64k,mode=0700", options(Some(64 << 10), Some(0o700), false), true),
        ] {
            let (target, found, read_only) = tmpfs_of(tmpfs(text).unwrap());
            assert_eq!((target.as_str(), found, read_only), ("/t", expected, is_read_only), "{text}");
        }
        let (target, found, read_only) =
            tmpfs_of(mount("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770,readonly", "id").unwrap());
        assert_eq!((target.as_str(), found, read_only), ("/t", options(Some(1 << 20), Some(0o1770), true), true));
        let wrong = ["t", "/", "/t:size=x", "/t:size=0", "/t:mode=9", "/t:mode=17777", "/t:uid=5", "/t:nosui"];
        let wrong = wrong.iter().map(|text| tmpfs(text).map(drop));
        let mounts = [
            "type=tmpfs",
            "type=tmpfs,source=/a,target=/t",
            "type=tmpfs,target=t",
            "type=tmpfs,target=/t,tmpfs-mode=x",
            "type=bind,source=/,target=/t,tmpfs-size=1m",
        ];
        let wrong = wrong.chain(mounts.iter().map(|text| mount(text, "id").map(drop)));
        rbuild_testkit::assert_recorded!("tmpfs", wrong.map(|text| text.unwrap_err().text()).collect::<String>());
    }
}
