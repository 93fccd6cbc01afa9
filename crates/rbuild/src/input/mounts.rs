//! Mounts of containers: `--volume`, `--mount` and `--tmpfs`.

use std::io;

use rbuild_plan::{ContainerMount, TmpfsMount, TmpfsOptions, Volume};

use crate::exit::Failure;
use crate::input::flags::reason;
use crate::input::{output, value};
use crate::ui::hints::{self, ValueRemedy};

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
    bind(bad, source, target, read_only)
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

/// Properties of a tmpfs on the command line. As in docker, programs in it are not executed unless
/// an option permits it.
const TMPFS: TmpfsOptions = TmpfsOptions { size: None, mode: None, no_programs: true };

/// Parses a mode in octal digits.
fn mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)
}

/// Parses the fields of `--mount`.
pub fn mount(text: &str) -> Result<ContainerMount, Failure> {
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
    fn mounts_in_memory_have_the_options_of_docker() {
        let tmpfs_of = |mount: ContainerMount| match mount {
            ContainerMount::Tmpfs(TmpfsMount { target, options, read_only }) => (target, options, read_only),
            ContainerMount::Bind(_) => unreachable!("the mount is a tmpfs"),
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
            tmpfs_of(mount("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770,readonly").unwrap());
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
        let wrong = wrong.chain(mounts.iter().map(|text| mount(text).map(drop)));
        rbuild_testkit::assert_recorded!("tmpfs", wrong.map(|text| text.unwrap_err().text()).collect::<String>());
    }
}
