//! Messages about values of flags.

use std::fmt::Debug;
use std::path::Path;

use nix::errno::Errno;
use rbuild_layer::Limits;
use rbuild_linux::DestinationError;
use rbuild_plan::ContainerMount;
use rbuild_testkit::{Scratch, assert_recorded};

use crate::exit::Failure;
use crate::input::value::BadValue;
use crate::input::{flags, mounts, output, request, value};

/// Formats the failure of a parser.
fn refused<T: Debug>(value: &str, parsed: Result<T, Failure>) -> String {
    let failure = parsed.expect_err(value);
    format!("{}\n  hint: {}\n", failure.message, failure.help.map_or("none".into(), |help| help.to_string()))
}

/// Parses each value, and formats the failures.
fn all<T: Debug>(values: &[&str], parse: impl Fn(&str) -> Result<T, Failure>) -> String {
    values.iter().map(|value| refused(value, parse(value))).collect()
}

/// Like [`all`], for values of one setting.
fn values<T: Debug>(setting: &str, values: &[&str], parse: impl Fn(&str) -> Result<T, BadValue>) -> String {
    all(values, |value| parse(value).map_err(|bad| bad.of(format!("{setting} {value}"))))
}

#[test]
fn messages_about_values_of_flags_are_as_recorded() {
    let text = [
        values("--network", &["hots", "isolatd", "nne", "bridge"], value::network),
        all(&["security.insecur", "network-host", "everything"], |text| flags::allowed(&[text.to_string()]).map(drop)),
        values("--isolation", &["usernss", "chrot", "singleid", "docker"], value::isolation),
        values("--context-modes", &["gti", "svn"], value::context_modes),
        values("--pull", &["alwys", "ture", "sometimes"], value::pull),
        values("--restart", &["alwys", "on-failure:x", "always:3"], value::restart),
        values("--jobs", &["0", "x"], value::jobs),
        values("--limit", &["entires=5", "x=1", "bytes=x", "bytes"], |text| value::limit(Limits::default(), text)),
        all(&["shel", "fial", "retry"], |text| request::shell_on_error(Some(text))),
        all(&["step", "layers", "tru"], |text| request::squash(Some(text)).map(drop)),
        all(&["=1", ""], |text| request::pair("--label", text)),
        all(&["id=a,srce=b", "id=a,type=fiel", "id=a,type=x", "id=a,mode=7", "src=b", "id", "\"id"], flags::secret),
        all(&["linux/", "amd46", "linux/a/b/c", "linux/amd64,,", ""], |text| {
            flags::platforms(&[text.to_string()], None)
        }),
        all(&["db", "=1", "db:x"], flags::host),
        all(&["nofiel=1", "x=1", "nofile", "nofile=a", "nofile=2:1", "nofile=9:3"], |text| {
            flags::ulimit(text).map(drop)
        }),
        all(&["a", "a:b", "a:/b:rx", "nosuch:/b", "./nosuch:/b"], |text| mounts::volume(text).map(drop)),
        all(&["a", "/dev/zero:/x:q", "/nosuch", "/proc/version"], |text| mounts::device(text).map(drop)),
        all(&["a", "ab:c", "ab:/c:rx", "ab:/", "./nosuch:/b"], |text| mounts::container_volume(text, "id").map(drop)),
        all(
            &[
                "type=bind,sorce=a,target=/b",
                "type=npipe,target=/b",
                "type=volume,source=./a,target=/b",
                "source=data",
                "target=/b,tmpfs-size=1m",
                "type=bind,source=a",
                "type=bind,source=.,target=/b,readonly=yes",
                "TYPE=bind,source,target=/b",
                "type=bind,source=no:such,target=/b",
            ],
            |text| mounts::mount(text, "id").map(drop),
        ),
        all(&["index:a=b", "a", "x:a=b"], flags::annotation),
        all(&["0", "64x"], |text| flags::size("--shm-size", text)),
        all(
            &[
                "type=locl,dest=x",
                "type=local,dset=x",
                "dest=x",
                "type=oci,push=true",
                "type=oci,dest=x,oci-mediatypes=false",
                "type=oci,dest=x,mode=merge",
                "type=oci,dest=x,compression-level=best",
                "type=oci,dest",
            ],
            |text| output::parse(text).map(drop),
        ),
    ];
    assert_recorded!("flags", text.join("\n"));
}

/// A mount that is to be read-only must never be writable because of the spelling of its value.
#[test]
fn a_mount_is_read_only_by_any_true_value() {
    let mount = |option: &str| match mounts::mount(&format!("Type=bind,Source=/,target=/x{option}"), "id")? {
        ContainerMount::Bind(volume) => Ok::<_, Failure>(volume.read_only),
        ContainerMount::Tmpfs(_) | ContainerMount::Named(_) => unreachable!("the mount is a bind"),
    };
    for option in ["readonly", "ro", "READONLY=TRUE", "readonly=True", "ro=t", "ro=T", "ro=1", "ro=true"] {
        assert!(matches!(mount(&format!(",{option}")), Ok(true)), "{option}");
    }
    for option in ["", ",readonly=false", ",ro=0", ",ro=F"] {
        assert!(matches!(mount(option), Ok(false)), "{option}");
    }
    for value in ["yes", "on", "2", "", "tRUE"] {
        assert!(mount(&format!(",readonly={value}")).is_err(), "{value}");
    }
}

#[test]
fn messages_about_the_command_line_mask_secrets_of_variables() {
    let path = std::env::var("PATH").unwrap();
    for given in ["type=env,id=a,src=PATH", "id=a,env=PATH", "id=PATH", "Type=env,ID=a,Source=PATH"] {
        let line = ["build".into(), "--secret".into(), given.into()];
        let masked = flags::secrets_of_line(&line).mask(format!("x {path} y"));
        assert!(!masked.contains(&path), "{given}: {masked}");
    }
}

/// Values that depend on files or on this machine.
#[test]
fn messages_about_files_of_flags_are_as_recorded() {
    let scratch = Scratch::new();
    let socket = std::os::unix::net::UnixListener::bind(scratch.join("agent")).unwrap();
    std::fs::write(scratch.join("key"), "no key").unwrap();
    std::fs::write(scratch.join("big"), vec![b'x'; 1 << 20]).unwrap();
    let dir = scratch.to_string_lossy().into_owned();
    let agents = ["a={dir}/agent,{dir}/key", "a={dir}/key", "a={dir}/nosuch"].map(|text| text.replace("{dir}", &dir));
    let secrets = ["id=a,src={dir}", "id=a,src={dir}/nosuch", "id=a,src={dir}/big", "id=a,env=RBUILD_NO_SUCH_VARIABLE"];
    let most = rbuild_linux::resource_limits::hard_limit(rbuild_plan::Resource::Nofile).unwrap();
    let text = [
        agents.iter().map(|text| refused(text, flags::agent(text).map(drop))).collect::<String>(),
        secrets.map(|text| text.replace("{dir}", &dir)).iter().map(|text| refused(text, flags::secret(text))).collect(),
        all(&["nofile=1:18446744073709551614"], |text| flags::ulimit(text).map(drop))
            .replace(&most.to_string(), "[limit]"),
    ];
    drop(socket);
    assert_recorded!("flag-files", text.join("\n").replace(&dir, "[dir]"));
}

#[test]
fn a_lost_working_directory_is_reported_as_recorded() {
    let e = std::io::Error::from_raw_os_error(Errno::ENOENT as i32);
    assert_recorded!("working-directory", request::no_working_directory(e).text());
}

#[test]
fn refused_destinations_are_as_recorded() {
    let dir = || Path::new("/nosuch/a").to_path_buf();
    let io = |errno: Errno| std::io::Error::from_raw_os_error(errno as i32);
    let kernel = |errno| DestinationError::Kernel(rbuild_linux::Error::new("open", dir(), io(errno)));
    let refused = |(path, e)| output::refused("the output", Path::new(path), e).text();
    let text = [
        ("/nosuch/a/out", DestinationError::NotWritable("/".into(), rustix::io::Errno::ACCESS)),
        ("/out", DestinationError::NotWritable("/".into(), rustix::io::Errno::ROFS)),
        ("/out", DestinationError::IsDirectory("/out".into())),
        ("/out/", DestinationError::EndsWithSlash("/out/".into())),
        ("/out", DestinationError::NotDirectory("/out".into())),
        ("/dev/fd/0", DestinationError::NotForWriting("/dev/fd/0".into())),
        ("/out", DestinationError::Socket("/out".into())),
        ("/out", DestinationError::LinkLoop("/out".into())),
        ("/out", kernel(Errno::ENOSPC)),
        ("/out", kernel(Errno::EACCES)),
        ("/out", kernel(Errno::EIO)),
    ]
    .map(refused);
    // The other end of a new pseudoterminal.
    let terminal = output::archive(Path::new("/dev/ptmx")).map(drop).unwrap_err().text();
    assert_recorded!("destinations", text.concat() + &terminal);
}
