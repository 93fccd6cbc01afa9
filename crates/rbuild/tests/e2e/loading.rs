//! Archives with small input and excessive demands are processed in time proportional to their
//! length, or refused without leaving anything behind.

use std::io::Write;
use std::process::Stdio;

use crate::lab::{Lab, Ran};

/// A Python prelude that writes `$LAB/x.tar`; each test's script adds the rest. `add(name, data)`
/// adds a member, `item(kind, value)` adds a document as a blob and returns its descriptor. `image`
/// is an empty image, and `config` its configuration.
const ARCHIVE: &str = r#"
import hashlib, io, json, lzma, os, platform, tarfile
tar = tarfile.open(os.environ['LAB'] + '/x.tar', 'w')
def add(name, data):
    info = tarfile.TarInfo(name); info.size = len(data); tar.addfile(info, io.BytesIO(data))
def link(name, to):
    info = tarfile.TarInfo(name); info.type = tarfile.SYMTYPE; info.linkname = to; tar.addfile(info)
def digest(data): return 'sha256:' + hashlib.sha256(data).hexdigest()
def blob(data): add('blobs/sha256/' + digest(data)[7:], data); return digest(data)
def item(kind, value):
    data = json.dumps(value).encode()
    return dict(mediaType='application/vnd.oci.image.' + kind, digest=blob(data), size=len(data))
arch = dict(x86_64='amd64', aarch64='arm64')[platform.machine()]
def config_of(layers, **more):
    return item('config.v1+json', dict(architecture=arch, os='linux', config={}, rootfs=dict(type='layers', diff_ids=layers), **more))
config = config_of([])
image = item('manifest.v1+json', dict(schemaVersion=2, config=config, layers=[]))
def index(entries): add('index.json', json.dumps(dict(schemaVersion=2, manifests=entries)).encode())
def inner(entries): return item('index.v1+json', dict(schemaVersion=2, manifests=entries))
def name(entry, name): return dict(entry, annotations={'io.containerd.image.name': name})
def docker(items): add('manifest.json', json.dumps(items).encode())
def one(config, layers, names): return dict(Config='blobs/sha256/' + config['digest'][7:], Layers=layers, RepoTags=names)
add('oci-layout', b'{"imageLayoutVersion":"1.0.0"}')
"#;

fn archive(lab: &Lab, rest: &str) {
    let script = lab.path("make.py");
    std::fs::write(&script, format!("{ARCHIVE}{rest}\ntar.close()\n")).unwrap();
    lab.sh("python3 $LAB/make.py").ok();
}

/// Runs a command that reads the archive. It may use one second of CPU time for each 100 kB, plus
/// the time that a process takes to start. CPU time is used because the machine is shared with
/// other work.
#[track_caller]
fn in_time(lab: &Lab, command: &str) -> Ran {
    let length = lab.path("x.tar").metadata().unwrap().len();
    let ran = lab.sh(&format!("TIMEFORMAT='%U %S'; time $RB {command}"));
    let times = ran.stderr.lines().last().unwrap().split(' ').map(|seconds| seconds.parse::<f64>().unwrap());
    let (taken, most) = (times.sum::<f64>(), 1.0 + length as f64 / 1e5);
    assert!(taken < most, "{length} bytes took {taken} s of {most}");
    ran
}

const LOAD: &str = "load -i $LAB/x.tar";

fn images(lab: &Lab) -> usize {
    lab.rbuild(["images", "-aq"]).ok().stdout.lines().count()
}

/// Checks that the store contains nothing from the archive.
#[track_caller]
fn nothing_stays(lab: &Lab) {
    for dir in ["blobs/sha256", "layers", "trees", "tmp"] {
        let left: Vec<_> = lab.store().join(dir).read_dir().unwrap().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert_eq!(images(lab), 0);
}

#[test]
fn an_index_entry_is_followed_once_regardless_of_its_repetitions() {
    let lab = Lab::bare();
    archive(&lab, "at = image\nfor n in range(5): at = inner([at] * 300)\nindex([at] * 300)");
    in_time(&lab, LOAD).fails(1, &["is nested more than 4 levels deep"]);
    archive(
        &lab,
        "at = image\nfor n in range(4): at = inner([at] * 300)\nindex([name(at, 'docker.io/library/n:1')] * 300)",
    );
    assert_eq!(in_time(&lab, LOAD).ok().stdout, "Loaded image: n:1\n");
    assert_eq!(images(&lab), 1);
    archive(&lab, "index([image] * 50000)");
    in_time(&lab, LOAD).ok();
    assert_eq!(images(&lab), 1);
    // Many indexes that refer to the same many images.
    archive(
        &lab,
        "all = [item('manifest.v1+json', dict(schemaVersion=2, config=config, layers=[], annotations={'n': str(n)})) for n in range(1500)]\n\
         all = inner(all)\nindex([item('index.v1+json', dict(schemaVersion=2, manifests=[all, image], annotations={'n': str(n)})) for n in range(1500)])",
    );
    in_time(&lab, LOAD).ok();
    assert_eq!(images(&lab), 1501);
    lab.rbuild(["fsck"]).ok();
}

/// Documents are read into memory, so their size is limited; they are not reported as damaged.
#[test]
fn documents_larger_than_16_mib_are_rejected() {
    for rest in [
        "data = json.dumps(dict(schemaVersion=2, config=config, layers=[])).encode() + b' ' * (17 << 20)\n\
         big = dict(mediaType='application/vnd.oci.image.manifest.v1+json', digest=blob(data), size=len(data)); index([big])",
        "data = json.dumps([one(config, [], ['n:1'])]).encode() + b' ' * (17 << 20); add('manifest.json', data)",
    ] {
        let lab = Lab::bare();
        archive(&lab, rest);
        let ran = in_time(&lab, LOAD).fails(1, &["is larger than 16 MiB"]);
        assert!(!ran.stderr.contains("damaged"), "{}", ran.stderr);
        nothing_stays(&lab);
    }
}

/// A manifest that Docker's document does not refer to, named repeatedly.
#[test]
fn a_manifest_is_read_once_regardless_of_how_often_an_index_names_it() {
    let lab = Lab::bare();
    archive(
        &lab,
        "layer = blob(bytes(1024)); part = dict(mediaType='application/vnd.oci.image.layer.v1.tar', digest=layer, size=1024)\n\
         other = item('manifest.v1+json', dict(schemaVersion=2, config=config, layers=[part] * 5000))\n\
         docker([one(config, [], ['docker.io/library/n:1'])])\nindex([other] * 5000 + [image])",
    );
    lab.sh("gzip -9 $LAB/x.tar; mv $LAB/x.tar.gz $LAB/x.tar").ok();
    assert_eq!(in_time(&lab, LOAD).ok().stdout, "Loaded image: n:1\n");
}

/// Unreferenced members of a few bytes that decompress to many, at any position in the archive.
#[test]
fn unreferenced_archive_members_are_bounded() {
    let bomb = "i = tarfile.TarInfo('more'); i.size = 120 << 20\n\
                class Zeros:\n  def read(self, n): return bytes(n)\n\
                def bomb(): tar.addfile(i, Zeros())\n";
    let named = "docker([one(config, [], ['docker.io/library/n:1'])]); index([image])";
    for (rest, extra) in [
        (format!("{bomb}bomb()\n{named}"), ""),
        (format!("{bomb}{named}\nbomb()"), ""),
        (named.to_string(), "; head -c 120M /dev/zero >> $LAB/x.tar"),
    ] {
        let lab = Lab::bare();
        archive(&lab, &rest);
        lab.sh(&format!("true{extra}; bzip2 $LAB/x.tar; mv $LAB/x.tar.bz2 $LAB/x.tar")).ok();
        in_time(&lab, LOAD).fails(1, &["--limit ratio=N"]);
        nothing_stays(&lab);
        lab.sh("$RB --limit ratio=10000000 load -i $LAB/x.tar").ok();
    }
    // Blobs that the documents name before they occur are loaded.
    let lab = Lab::bare();
    archive(
        &lab,
        &format!(
            "{bomb}hash = hashlib.sha256(bytes(120 << 20)).hexdigest()\n\
             many = config_of(['sha256:' + hash]); i.name = 'layer'; docker([one(many, ['layer'], ['docker.io/library/n:1'])]); bomb()"
        ),
    );
    lab.sh("bzip2 $LAB/x.tar; mv $LAB/x.tar.bz2 $LAB/x.tar; $RB load -i $LAB/x.tar").ok();
}

#[test]
fn a_digest_with_several_media_types_is_read_as_each_of_them() {
    let lab = Lab::bare();
    let two = |first: &str, second: &str| {
        archive(
            &lab,
            &format!(
                "ix = inner([image])\nas_image = dict(ix, mediaType=image['mediaType'])\nindex([{first}, {second}])"
            ),
        );
        lab.rbuild(["load", "-i", lab.path("x.tar").to_str().unwrap()]).fails(1, &["cannot read the image's manifest"]);
    };
    two("ix", "as_image");
    two("as_image", "ix");
    nothing_stays(&lab);
}

#[test]
fn names_are_written_once() {
    let lab = Lab::bare();
    archive(&lab, "index([name(image, f'docker.io/library/n:{n}') for n in range(20000)])");
    assert_eq!(in_time(&lab, LOAD).ok().stdout.lines().count(), 20000);
    assert_eq!(images(&lab), 20000);
    archive(&lab, "docker([one(config, [], ['docker.io/library/m:1'])] * 20000)");
    assert_eq!(in_time(&lab, LOAD).ok().stdout, "Loaded image: m:1\n");
    archive(&lab, "docker([one(config, [], [f'docker.io/library/m:{n}' for n in range(20000)])])");
    in_time(&lab, LOAD).ok();
    archive(&lab, "docker([one(config, [], [f'docker.io/library/m:{n}']) for n in range(20000)])");
    in_time(&lab, LOAD).ok();
    assert_eq!(images(&lab), 40000);
    in_time(&lab, "fsck").ok();
    in_time(&lab, "rmi -f m:1 n:1").ok();
    assert_eq!(images(&lab), 39998);
}

#[test]
fn a_layer_is_read_once_regardless_of_how_often_it_is_named() {
    let lab = Lab::bare();
    let layer = "t = io.BytesIO(); inner_tar = tarfile.open(fileobj=t, mode='w'); i = tarfile.TarInfo('big'); i.size = 20 << 20\n\
        inner_tar.addfile(i, io.BytesIO(bytes(20 << 20))); inner_tar.close(); layer = t.getvalue()\n";
    // 100 kB that decompress to 20 MB, or to 20 GB if each reference is decompressed.
    archive(
        &lab,
        &format!(
            "{layer}add('l', lzma.compress(layer))\nmany = config_of([digest(layer)] * 1000)\ndocker([one(many, ['l'] * 1000, ['m:1'])])"
        ),
    );
    in_time(&lab, LOAD).ok();
    archive(
        &lab,
        "layer = blob(bytes(1024)); many = config_of([layer] * 50000, history=[dict(created_by='x')] * 50000)\n\
         part = dict(mediaType='application/vnd.oci.image.layer.v1.tar', digest=layer, size=1024)\n\
         index([item('manifest.v1+json', dict(schemaVersion=2, config=many, layers=[part] * 50000))])",
    );
    in_time(&lab, LOAD).ok();
    // A chain of links with long names.
    archive(
        &lab,
        "at = lambda n: '/'.join(['%02d' % n + 'x' * 200] * 200)\nlink('l', at(0))\n\
         for n in range(13): link(at(n), '/'.join(['..'] * 199) + '/' + at(n + 1))\n\
         link(at(13), '/'.join(['..'] * 199) + '/end'); add('end', bytes(1024))\n\
         docker([one(config_of([digest(bytes(1024))] * 3000), ['l'] * 3000, [f'k:{n}']) for n in range(100)])",
    );
    in_time(&lab, LOAD).ok();
    assert_eq!(images(&lab), 102);
}

#[test]
fn limits_apply_to_the_archive_itself_and_nothing_remains() {
    let lab = Lab::bare();
    archive(&lab, "add('d/' * 40 + 'f', b'x' * 5000)\nindex([image])");
    lab.sh("gzip -k $LAB/x.tar; xz -k $LAB/x.tar").ok();
    for limit in ["entries=3", "path=30", "depth=30", "bytes=4000"] {
        let hint = format!("--limit {}=N", limit.split('=').next().unwrap());
        for load in [
            "load -i $LAB/x.tar",
            "load -i $LAB/x.tar.gz",
            "load < $LAB/x.tar",
            "import $LAB/x.tar",
            "import $LAB/x.tar.xz",
        ] {
            lab.sh(&format!("$RB --limit {limit} {load}")).fails(1, &[&hint]);
            nothing_stays(&lab);
        }
    }
    in_time(&lab, LOAD).ok();
    let lab = Lab::bare();
    let header = "i = tarfile.TarInfo('f'); i.pax_headers = {'comment': 'x' * 3000}; tar.addfile(i)\nindex([image])";
    archive(&lab, header);
    for load in [LOAD, "import $LAB/x.tar"] {
        lab.sh(&format!("$RB --limit header=2000 {load}")).fails(1, &["--limit header=N"]);
        nothing_stays(&lab);
    }
}

#[test]
fn an_archive_rejected_at_its_end_leaves_nothing() {
    let lab = Lab::bare();
    archive(&lab, "index([name(image, 'n:1'), dict(image, digest='sha256:' + '0' * 64)])");
    lab.sh("$RB load -i $LAB/x.tar").fails(1, &["lacks"]);
    nothing_stays(&lab);
    lab.sh("mkdir $LAB/dir; tar -C $LAB/dir -xf $LAB/x.tar; $RB load -i $LAB/dir").fails(1, &["no such file"]);
    nothing_stays(&lab);
    lab.sh("printf 'FROM x\n' > $LAB/ctx/Dockerfile; sed -i 's/n:1/n/' $LAB/dir/index.json; rm $LAB/dir/blobs/sha256/*; $RB build --build-context x=oci-layout://$LAB/dir .").fails(1, &[]);
    nothing_stays(&lab);
    // A blob that is not a layer, after one that was stored as an uncompressed tar.
    archive(
        &lab,
        "layer = bytes(10240); add('good', lzma.compress(layer)); add('bad', lzma.compress(b'x' * 2000))\n\
         docker([one(config_of([digest(layer)] * 2), ['good', 'bad'], ['n:1'])])",
    );
    lab.sh("$RB load -i $LAB/x.tar").fails(1, &["not a tar archive"]);
    nothing_stays(&lab);
    lab.sh("head -c 100000 $LAB/make.py | $RB import - x").fails(1, &["archive"]);
    nothing_stays(&lab);
    // Members that no image needs are ignored.
    archive(&lab, "add('more', b'x' * 100000)\nindex([name(image, 'n:1')])");
    in_time(&lab, LOAD).ok();
    assert_eq!(std::fs::read_dir(lab.store().join("blobs/sha256")).unwrap().count(), 2);
}

/// Starts a load that waits for the rest of its archive, after the images and before `index.json`.
fn waiting(lab: &Lab) -> (std::process::Child, Vec<u8>) {
    archive(lab, "index([name(image, 'n:1')])");
    let bytes = std::fs::read(lab.path("x.tar")).unwrap();
    let end = bytes.windows(10).position(|name| name == b"index.json").unwrap();
    let mut load = lab.command(["load"]);
    let mut load = load.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    load.stdin.as_mut().unwrap().write_all(&bytes[..end]).unwrap();
    let staged = || {
        let tmp = lab.store().join("tmp");
        let below = |dir: std::path::PathBuf| dir.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        below(tmp).flat_map(below).flat_map(below).count()
    };
    for _ in 0..1000 {
        if staged() > 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    (load, bytes[end..].to_vec())
}

#[test]
fn prune_removes_everything_that_a_killed_load_left() {
    for after in ["$RB prune", "$RB fsck --repair", "! $RB load -i $LAB/refused.tar"] {
        let lab = Lab::bare();
        let (mut load, _) = waiting(&lab);
        load.kill().unwrap();
        load.wait().unwrap();
        archive(&lab, "index([dict(image, size=1)])");
        lab.sh(&format!("mv $LAB/x.tar $LAB/refused.tar; {after}")).ok();
        nothing_stays(&lab);
    }
}

#[test]
fn a_rejected_load_does_not_affect_a_concurrent_one() {
    let lab = Lab::bare();
    let (mut load, rest) = waiting(&lab);
    // Meanwhile, the same image is refused in one archive and loaded from another.
    archive(&lab, "index([image, dict(image, size=1)])");
    lab.sh("$RB load -i $LAB/x.tar").fails(1, &["bytes"]);
    archive(&lab, "index([name(image, 'm:1')])");
    lab.sh("$RB load -i $LAB/x.tar").ok();
    archive(&lab, "index([image, dict(image, size=1)])");
    lab.sh("$RB load -i $LAB/x.tar").fails(1, &["bytes"]);
    load.stdin.take().unwrap().write_all(&rest).unwrap();
    assert!(load.wait().unwrap().success());
    lab.rbuild(["inspect", "--verify", "n:1", "m:1"]).ok();
    lab.rbuild(["fsck"]).ok();
}

#[test]
fn null_lists_are_empty() {
    let lab = Lab::bare();
    for rest in [
        "docker([one(config, None, ['n:1'])])",
        "docker([one(config, None, None), one(config, [], ['n:1'])])",
        "index([name(item('manifest.v1+json', dict(schemaVersion=2, config=config, layers=None)), 'docker.io/library/n:1')])",
        "index([name(item('index.v1+json', dict(schemaVersion=2, manifests=None)), 'x:1'), name(image, 'docker.io/library/n:1')])",
        "index([name(item('manifest.v1+json', dict(schemaVersion=2, config=config)), 'docker.io/library/n:1')])",
        "c = config_of(None, history=None)\ndocker([one(c, None, ['n:1'])])",
        "c = item('config.v1+json', dict(architecture=arch, os='linux', config=dict(User=None, Healthcheck=dict(Interval=None)), \
         rootfs=None))\ndocker([one(c, None, ['n:1'])])",
    ] {
        archive(&lab, rest);
        assert_eq!(lab.sh("$RB load -i $LAB/x.tar").ok().stdout, "Loaded image: n:1\n", "{rest}");
        lab.rbuild(["save", "n:1", "-o", "/dev/null"]).ok();
        lab.sh("$RB inspect n:1 && $RB build -q - <<<'FROM n:1' && $RB rmi n:1").ok();
    }
    for nothing in ["index(None)", "docker(None)", "docker([])"] {
        archive(&lab, nothing);
        let ran = lab.sh("$RB load -i $LAB/x.tar").ok();
        assert!(ran.stderr.contains("lists no image; nothing was loaded"), "{}", ran.stderr);
    }
}

#[test]
fn a_valid_manifest_json_takes_precedence_over_an_invalid_index() {
    let lab = Lab::bare();
    let missing =
        "gone = dict(mediaType='application/vnd.oci.image.manifest.v1+json', digest='sha256:' + 64 * '7', size=7)\n";
    let lacking = "gone = item('manifest.v1+json', dict(schemaVersion=2, config=config, layers=[dict(mediaType='x/y', \
                   digest='sha256:' + 64 * '7', size=7)]))\n";
    let sized = "gone = dict(image, size=7)\n";
    for (gone, is_reported) in [(missing, true), (lacking, false), (sized, true)] {
        archive(&lab, &format!("{gone}docker([one(config, [], ['n:1'])])\nindex([gone])"));
        let ran = lab.sh("$RB load -i $LAB/x.tar").ok();
        assert_eq!(ran.stdout, "Loaded image: n:1\n");
        assert_eq!(ran.stderr.contains("index.json refers to sha256:"), is_reported, "{}", ran.stderr);
        lab.rbuild(["save", "n:1", "-o", "/dev/null"]).ok();
        // Without the other format there is no fallback.
        archive(&lab, &format!("{gone}index([gone])"));
        lab.sh("$RB rmi n:1; $RB load -i $LAB/x.tar").fails(1, &[]);
    }
}

#[test]
fn an_archive_without_this_platform_is_an_error_that_lists_the_others() {
    let lab = Lab::bare();
    let foreign = "def of(a, v=None):\n  c = item('config.v1+json', dict(architecture=a, os='linux', config={}, rootfs=dict(diff_ids=[]), \
                   x=a))\n  return dict(item('manifest.v1+json', dict(schemaVersion=2, config=c, layers=[])), \
                   platform=dict(os='linux', architecture=a, **({'variant': v} if v else {})))\n\
                   attestation = dict(image, platform=dict(os='unknown', architecture='unknown'))\n\
                   both = inner([of('s390x'), of('arm', 'v7'), attestation])\n";
    archive(&lab, &format!("{foreign}index([name(both, 'docker.io/library/n:1')])"));
    let ran = lab
        .sh("$RB load -i $LAB/x.tar")
        .fails(1, &["has no image for linux/", "linux/arm/v7, linux/s390x", "--platform"]);
    assert!(!ran.stderr.contains("unknown"), "{}", ran.stderr);
    assert_eq!(images(&lab), 0);
    for platform in ["linux/s390x", "linux/arm/v7", "linux/arm"] {
        lab.sh(&format!("$RB load --platform {platform} -i $LAB/x.tar && $RB inspect n:1")).ok();
        lab.rbuild(["rmi", "n:1"]).ok();
    }
    lab.sh("$RB load --platform linux/arm/v6 -i $LAB/x.tar").fails(1, &["has no image for linux/arm/v6"]);
    lab.sh("$RB load --platform nothing/at/all/here -i $LAB/x.tar")
        .fails(2, &["invalid platform `nothing/at/all/here`"]);
    // The other images of the archive are loaded, and a message names the skipped ones.
    archive(
        &lab,
        &format!("{foreign}index([name(both, 'docker.io/library/n:1'), name(image, 'docker.io/library/m:1')])"),
    );
    let ran = lab.sh("$RB load -i $LAB/x.tar").ok();
    assert_eq!(ran.stdout, "Loaded image: m:1\n");
    assert!(ran.stderr.contains("n:1 has no image for linux/"), "{}", ran.stderr);
    // An image for a single platform is loaded as it is, unless another platform is requested.
    archive(&lab, &format!("{foreign}index([name(of('s390x'), 'docker.io/library/o:1')])"));
    lab.sh("$RB load -i $LAB/x.tar").ok();
    lab.sh("$RB load --platform linux/arm64 -i $LAB/x.tar").fails(1, &["only for linux/s390x"]);
    archive(&lab, &format!("{foreign}c = of('s390x')\ndocker([one(config, [], ['p:1'])])"));
    lab.sh("$RB load --platform linux/s390x -i $LAB/x.tar").fails(1, &["has no image for linux/s390x"]);
    lab.sh("$RB load --platform linux/$(uname -m) -i $LAB/x.tar").ok();
}

#[test]
fn a_layout_context_selects_the_platform_of_the_build() {
    let lab = Lab::bare();
    let foreign = "c = item('config.v1+json', dict(architecture='s390x', os='linux', config={}, rootfs=dict(diff_ids=[])))\n\
                   m = dict(item('manifest.v1+json', dict(schemaVersion=2, config=c, layers=[])), platform=dict(os='linux', architecture='s390x'))\n\
                   index([inner([m])])";
    archive(&lab, foreign);
    lab.sh("mkdir $LAB/layout && tar -xf $LAB/x.tar -C $LAB/layout").ok();
    let build = |platform: &str| {
        lab.sh(&format!("$RB build -q {platform} --build-context x=oci-layout://$LAB/layout - <<<'FROM x'"))
    };
    build("").fails(1, &["has no image of that name for linux/", "only for linux/s390x"]);
    build("--platform linux/s390x").ok();
}
