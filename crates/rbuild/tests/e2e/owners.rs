//! Recorded owners and devices: only records written by rbuild are valid, regardless of attributes
//! that commands, contexts and images set.

use std::collections::BTreeMap;

use crate::lab::{Lab, base, exists};

/// System calls on extended attributes, by their numbers on x86_64: `set FILE NAME VALUE`, `get
/// FILE NAME`, `remove FILE NAME`, `list FILE`, and `steal FROM TO`, which copies all attributes of
/// a file to another.
const ATTR: &str = r#"
use strict;
my ($what, @of) = @ARGV;
sub list { my ($file) = @_; my $names = "\0" x 65536; my $n = syscall(194, $file, $names, 65536); split /\0/, substr($names, 0, $n > 0 ? $n : 0) }
sub get { my ($file, $name) = @_; my $value = "\0" x 65536; my $n = syscall(191, $file, $name, $value, 65536); $n < 0 ? undef : substr($value, 0, $n) }
sub set { my ($file, $name, $value) = @_; syscall(188, $file, $name, $value, length $value, 0) == 0 or die "$file: $!" }
if ($what eq "set") { set(@of) }
if ($what eq "get") { my $value = get(@of); print defined $value ? $value : "none", "\n" }
if ($what eq "remove") { my ($file, $name) = @of; syscall(197, $file, $name) }
if ($what eq "list") { print join(" ", list($of[0])), "\n" }
if ($what eq "steal") { set($of[1], $_, get($of[0], $_)) for grep { /^user/ } list($of[0]) }
"#;

fn debian() -> Lab {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("attr.pl", ATTR);
    lab
}

/// Returns type, mode, owner and extended attributes of the files of a tar, by name.
fn files(tar: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(tar);
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut attributes = String::new();
        for record in entry.pax_extensions().unwrap().into_iter().flatten().flatten() {
            if let Some(name) = record.key().unwrap().strip_prefix("SCHILY.xattr.") {
                attributes += &format!(" {name}={}", String::from_utf8_lossy(record.value_bytes()));
            }
        }
        let h = entry.header();
        let device = match (h.device_major(), h.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) if (major, minor) != (0, 0) => format!(" {major}:{minor}"),
            _ => String::new(),
        };
        let kind = format!("{:?}", h.entry_type());
        let line =
            format!("{kind} {:o} {}:{}{device}{attributes}", h.mode().unwrap(), h.uid().unwrap(), h.gid().unwrap());
        found.insert(path, line);
    }
    found
}

/// Builds, and returns the files of the whole result and of its topmost layer.
#[track_caller]
fn built(lab: &Lab, dockerfile: &str) -> [BTreeMap<String, String>; 2] {
    let tar = lab.path("all.tar");
    let dest = format!("type=tar,dest={}", tar.display());
    lab.build(dockerfile, &["-t", "x", "-o", &dest, "-o", "type=image"]).ok();
    [files(&std::fs::read(&tar).unwrap()), files(&lab.top_layer_tar("x"))]
}

const FORGED: &str = r#"FROM debian AS forged
COPY attr.pl /
USER 1000:1000
RUN cd /tmp && touch disk plain copy && cp /bin/true root && chmod 4755 root && mkdir dir && \
    perl /attr.pl set disk user.rbuild.owner 0:0:b:8:0 && perl /attr.pl set root user.rbuild.owner 0:0 && \
    perl /attr.pl set dir user.rbuild.owner 0:0 && perl /attr.pl steal disk copy && \
    test "$(perl /attr.pl get disk user.rbuild.owner)" = 0:0:b:8:0 && test "$(perl /attr.pl list root)" = user.rbuild.owner && \
    test "$(stat -c '%F %u' disk root)" = "$(printf 'regular empty file 1000\nregular file 1000')" && \
    test -z "$(perl /attr.pl list plain)" && chmod 4711 plain && perl /attr.pl remove plain user.rbuild.owner && \
    ln -s x link && mkfifo fifo && touch -h -a -d @8589934592.000000033 link && touch -a -d @8589934592.000000033 fifo && \
    touch -h -m -d @1000000000 link && test "$(stat -c %Y link)" = 1000000000
"#;

#[test]
fn forged_owner_attributes_are_ordinary_data() {
    let lab = debian();
    let own = "1000:1000";
    for (dockerfile, above) in [
        (FORGED.replace(" AS forged", ""), "tmp/"),
        (format!("{FORGED}FROM scratch\nCOPY --from=forged /tmp/ /put/\n"), "put/"),
        (
            format!(
                "{FORGED}FROM debian\nRUN --mount=from=forged,target=/f cp -a --no-preserve=ownership /f/tmp /put && chown -Rh 1000:1000 /put\n"
            ),
            "put/",
        ),
    ] {
        for found in built(&lab, &dockerfile) {
            let of = |name: &str| found.get(&format!("{above}{name}")).map_or("nothing", String::as_str).to_string();
            assert_eq!(of("disk"), format!("Regular 644 {own} user.rbuild.owner=0:0:b:8:0"), "{dockerfile}");
            assert_eq!(of("copy"), format!("Regular 644 {own} user.rbuild.owner=0:0:b:8:0"));
            assert_eq!(of("dir/"), format!("Directory 755 {own} user.rbuild.owner=0:0"));
            assert!(of("root").ends_with(&format!(" {own} user.rbuild.owner=0:0")), "{}", of("root"));
            assert!(of("plain").ends_with(&format!(" {own}")), "{}", of("plain"));
            assert_eq!(of("link"), format!("Symlink 777 {own}"));
            assert_eq!(of("fifo"), format!("Fifo 644 {own}"));
        }
    }
}

/// Creates an image with two devices: one that every user may read and write, and one that only
/// root may.
fn with_devices(lab: &Lab) {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, kind, numbers, mode) in
        [("null", tar::EntryType::Char, (1, 3), 0o666), ("disk", tar::EntryType::Block, (8, 0), 0o640)]
    {
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("nodes/{name}")).unwrap();
        header.set_entry_type(kind);
        header.set_device_major(numbers.0).unwrap();
        header.set_device_minor(numbers.1).unwrap();
        header.set_mode(mode);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(6);
        header.set_mtime(5);
        header.set_cksum();
        archive.append(&header, &[][..]).unwrap();
    }
    lab.write("nodes.tar", archive.into_inner().unwrap());
    lab.build("FROM debian\nCOPY attr.pl /\nADD nodes.tar /\nRUN touch /open && chmod 666 /open\n", &["-t", "devices"])
        .ok();
}

#[test]
fn copying_a_stand_in_does_not_create_a_device() {
    let lab = debian();
    with_devices(&lab);
    // Where devices can be created, there is nothing to copy.
    let steal = |n: u32| {
        format!(
            "touch /tmp/f{n} /tmp/d{n}; for d in disk null; do perl /attr.pl steal /nodes/$d /tmp/f{n}; done; perl /attr.pl steal /nodes/null /open; true"
        )
    };
    let dockerfile = format!("FROM devices\nUSER 1000:1000\nRUN {}\nUSER 0\nRUN {}\n", steal(1), steal(2));
    let [all, top] = built(&lab, &dockerfile);
    assert_eq!(all["nodes/null"], "Char 666 0:6 1:3");
    assert_eq!(all["nodes/disk"], "Block 640 0:6 8:0");
    for found in [&all, &top] {
        // The file is unchanged where there is nothing to copy.
        assert!(found.get("open").is_none_or(|file| file == "Regular 666 0:0"), "{:?}", found.get("open"));
        assert_eq!(found["tmp/f2"], "Regular 644 0:0");
    }
    assert_eq!(all["tmp/f1"], "Regular 644 1000:1000");
}

#[test]
fn devices_stay_devices_when_commands_change_them() {
    let lab = debian();
    with_devices(&lab);
    let [all, top] = built(&lab, "FROM devices\nRUN chmod 600 /nodes/null && chown 0:4 /nodes/disk && touch /nodes\n");
    for found in [all, top] {
        assert_eq!(found["nodes/null"], "Char 600 0:6 1:3");
        assert_eq!(found["nodes/disk"], "Block 640 0:4 8:0");
    }
}

#[test]
fn owner_attributes_of_context_files_are_ignored() {
    let lab = debian();
    lab.sh("touch disk && perl attr.pl set disk user.rbuild.owner 0:0:b:8:0").ok();
    for dockerfile in ["FROM debian\nCOPY disk /\n", "FROM debian\nADD --chown=5:6 disk /\nRUN touch /x\n"] {
        let [all, _] = built(&lab, dockerfile);
        assert!(all["disk"].starts_with("Regular ") && all["disk"].ends_with("=0:0:b:8:0"), "{}", all["disk"]);
    }
}

#[test]
fn a_store_copied_without_owners_or_attributes_is_rejected() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\nRUN echo x > /x && chown 33:50 /x && ln -s x /l && chown -h 33:50 /l\n";
    lab.build(dockerfile, &["-t", "x"]).ok();
    let more = format!("{dockerfile}RUN ls -ln /x /l\n");
    lab.write("Dockerfile", &more);
    let single = std::env::var("RBUILD_ISOLATION").is_ok_and(|mode| mode == "single-id");
    let is_root = nix::unistd::geteuid().is_root();
    let mut copies = vec![
        ("cp -r $RBUILD_ROOT copy", "owners"),
        ("mkdir copy && tar -C $RBUILD_ROOT -c . | tar -C copy --no-same-owner -x", "owners"),
    ];
    if is_root {
        copies.push(("mkdir copy && tar -C $RBUILD_ROOT -c . | tar -C copy -x", "extended attributes"));
    }
    if single {
        copies.push((
            "mkdir copy && tar --xattrs -C $RBUILD_ROOT -c . | tar --xattrs --xattrs-include=* -C copy -x",
            "owners of links",
        ));
    }
    for (copy, lost) in copies {
        // Files of sub-IDs are not readable for every user.
        let script = format!("rm -rf copy; set -o noglob; {{ {copy}; }} 2>/dev/null; RBUILD_ROOT=$PWD/copy $RB build");
        let message = format!("have lost their {lost}: they were copied without them");
        lab.sh(&script).fails(1, &[&message, "cp -a", "rbuild prune -a"]);
        // An empty cache contains no files with lost owners.
        lab.sh("RBUILD_ROOT=$PWD/copy $RB prune -a && RBUILD_ROOT=$PWD/copy $RB build --progress plain").ok();
    }
    if single || is_root {
        let ran = lab.sh("rm -rf copy; cp -a $RBUILD_ROOT copy; RBUILD_ROOT=$PWD/copy $RB build --progress plain").ok();
        assert_eq!(ran.stderr.matches(" 33 ").count(), 2, "{}", ran.stderr);
    }
}

#[test]
fn owners_key_is_readable_only_by_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let key = lab.store().join("owners.key");
    let meta = key.metadata().unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o7777), (32, 0o600));
    lab.build("FROM busybox\nRUN true\n", &[]).ok();
    // An older version of rbuild refuses the store.
    assert!(lab.read("store/format.json").contains("keyed-owners"));
}

/// Files created by calls with special path resolution rules (openat2(2)), or through links to
/// targets that do not exist yet.
const MAKES: &str = r#"FROM debian
WORKDIR /w
RUN chmod 777 /w
USER 1000:1000
RUN perl -e 'for my $r (0, 1, 2, 4, 8, 16) { my ($n, $h) = ("how$r", pack("QQQ", 0101, 0755, $r)); syscall(437, -100, $n, $h, 24) >= 0 or die "$r: $!"; chmod 04755, $n or die }' && \
    ln -s new link && echo x > link && test -f new && mkdir d && ln -s ../d/behind d/up && echo x > d/up && test -f d/behind && \
    ln -s /proc/self/cwd c && { echo x > c/through; ln -s /dev/stdout out; echo told > out; true; }
"#;

#[test]
fn a_file_belongs_to_its_creator_however_its_path_is_resolved() {
    let lab = debian();
    for found in built(&lab, MAKES) {
        let of = |name: &str| found.get(name).map_or("nothing", String::as_str);
        for how in [0, 1, 2, 4, 8, 16] {
            assert_eq!(of(&format!("w/how{how}")), "Regular 4755 1000:1000", "{how}");
        }
        for (name, file) in found.iter().filter(|(name, _)| name.len() > 2 && name.starts_with("w/")) {
            assert!(file.ends_with(" 1000:1000"), "{name}: {file}");
        }
    }
}

/// Programs that the kernel does not execute, or not with the rights of their owner.
const EXECUTES: &str = r#"FROM debian
RUN echo garbage > /garbage && cp /usr/bin/id /suid && printf '#!/bin/sh\nid -u\n' > /script && chmod 4755 /garbage /suid /script && \
    head -c 4 /bin/true > /cut && chmod 6755 /cut && touch /f /g && chmod 777 /f
RUN ! setpriv --bounding-set -chown --inh-caps -chown chown 33 /f && ! setpriv --bounding-set -setuid,-setgid --inh-caps -setuid,-setgid setpriv --reuid 33 true && \
    ! setpriv --bounding-set -setgid --inh-caps -setgid setpriv --groups 5 true && setpriv --bounding-set -setuid --inh-caps -setuid chown 33 /g && \
    perl -e 'syscall(117, 1000, 1000, 0) == 0 or die; for (qw(/garbage /cut)) { my $p = $_; my ($a, $e) = (pack("pQ", $p, 0), pack("Q", 0)); syscall(59, $p, $a, $e); } $> == 1000 or die; syscall(105, 0) == 0 or die "the saved id is gone"; $> == 0 or die'
USER 1000
RUN perl -e 'for (qw(/garbage /cut /suid)) { my $p = $_; my ($a, $e) = (pack("pQ", $p, 0), pack("Q", 0)); \
      $p eq "/suid" ? syscall(322, -100, $p, $a, $e, 0x10000) : syscall(59, $p, $a, $e); \
      my $child = fork; $> == 1000 or die "$p: $>"; my $made = "/tmp/made$$"; open my $f, ">", $made; close $f; syscall(92, $made, 0, 0) == 0 and die $p; \
      if ($child) { wait; $? and die } else { exit 0 } }' && \
    test $(/suid -u) = 0 && test $(/suid -ru) = 1000 && test $(/script) = 1000 && test $(setpriv --no-new-privs /suid -u) = 1000
"#;

#[test]
fn a_set_id_program_changes_ids_only_once_it_is_executed() {
    let lab = debian();
    let [all, _] = built(&lab, EXECUTES);
    assert_eq!(all["f"], "Regular 777 0:0");
    assert!(all.iter().all(|(name, file)| !name.starts_with("tmp/made") || file.contains(" 1000:")), "{all:?}");
}

#[test]
fn an_owner_is_kept_whatever_times_are_set() {
    let lab = debian();
    // Each read updates an access time that is not later than the modification time (relatime).
    let dockerfile = "FROM debian\nWORKDIR /w\nRUN chmod 777 /w\nUSER 1000:1000\nRUN ln -s x l && mkfifo f && touch -h -m -d 2400-01-01 l && touch -m -d 2400-01-01 f && \\\n\
        readlink l && test \"$(stat -c %u l f | sort -u)\" = 1000 && sleep 0.1 && readlink l && ls -ln l f\nRUN readlink l && test \"$(stat -c %u l f | sort -u)\" = 1000\n";
    for found in built(&lab, dockerfile) {
        if let Some(link) = found.get("w/l") {
            assert_eq!(link, "Symlink 777 1000:1000");
            assert_eq!(found["w/f"], "Fifo 644 1000:1000");
        }
    }
    // The same with an image.
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    header.set_uid(33);
    header.set_gid(34);
    header.set_mtime(13_569_465_600);
    archive.append_link(&mut header, "far", "nowhere").unwrap();
    lab.write("far.tar", archive.into_inner().unwrap());
    let dockerfile = "FROM debian\nADD far.tar /\nRUN readlink /far && readlink /far && test $(stat -c %u:%g /far) = 33:34\nRUN test $(stat -c %u:%g /far) = 33:34\n";
    assert_eq!(built(&lab, dockerfile)[0]["far"], "Symlink 777 33:34");
}

/// Names that end in a slash or a dot create nothing, for any user.
#[test]
fn names_that_end_in_a_slash_or_dot_create_nothing() {
    let lab = Lab::new();
    let script = "echo x > src; ! cp src missing/. && ! touch new/. && ! mkdir md/. && ! ln -s t sl/ && ! mkfifo ff/ && \
                  ! mkfifo ff2/. && ln -s nothing/. dang && ! sh -c 'echo x > dang' && ! mkdir '' && ! mkdir .. && mkdir ok/ && \
                  ls | tr '\\n' ' ' && [ \"$(ls | tr '\\n' ' ')\" = 'dang ok src ' ] && stat -c %u:%g ok";
    let file = format!("FROM busybox\nRUN mkdir /w && chown 1000:1000 /w\nUSER 1000:1000\nWORKDIR /w\nRUN {script}\n");
    let ran = lab.build(&file, &[]).ok();
    assert!(ran.stderr.contains(" 1000:1000\n"), "{}", ran.stderr);
}

/// In an overlay, a character device 0:0 is a whiteout, and it becomes one in a layer. Requests of
/// io_uring, which can create such a device, are in memory, where no filter can inspect them.
#[test]
fn commands_cannot_create_whiteouts() {
    let lab = debian();
    lab.write(
        "Dockerfile",
        format!("FROM debian\n{0}{1}", refused("RUN", "w"), refused("RUN --security=insecure", "x")),
    );
    let dest = format!("type=local,dest={}", lab.path("out").display());
    lab.rbuild(["build", "--allow", "security.insecure", "-o", &dest]).ok();
    assert!(exists(lab.path("out/made-w")) && exists(lab.path("out/made-x")));
}

fn refused(run: &str, name: &str) -> String {
    format!(
        "{run} touch /made-{name}; ! mknod /{name} c 0 0 2> /e && grep -q 'Operation not permitted' /e && [ ! -e /{name} ] && \
        perl -e 'my $ring = \"\\0\" x 120; syscall(425, 1, $ring) == -1 or die'\n"
    )
}

/// Files of root in the store could not be removed or replaced by its owner.
#[test]
fn root_is_refused_the_store_of_another_user() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN true\n");
    lab.sh("chmod 755 $LAB; mkdir -m 777 $LAB/s; cp $RB $LAB/rb").ok();
    let theirs = "RBUILD_ROOT=$LAB/s setpriv --reuid 61234 --regid 61234 --clear-groups env HOME=/ $LAB/rb images";
    lab.sh(theirs).ok();
    for verb in ["build ctx", "tag a b", "images", "rmi a", "pull a", "prune -a", "fsck"] {
        let ran = lab.sh(&format!("cd $LAB && RBUILD_ROOT=$LAB/s $RB {verb}"));
        ran.fails(1, &["as root: it belongs to user 61234", "hint: run this as user 61234", "--root DIR"]);
    }
    assert_eq!(lab.sh("find $LAB/s ! -user 61234 ! -path $LAB/s").ok().stdout, "");
    lab.sh(theirs).ok();
}
