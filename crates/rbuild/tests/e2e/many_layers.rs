//! Images of more layers than the kernel stacks at once.

use crate::forge::{Forged, Layer};
use crate::lab::{Lab, contents};

/// An image of `n` layers with one file each, of which three are deleted by layers above.
fn image(n: usize) -> Forged {
    let layers = (0..n).map(|i| {
        let layer = Layer::new().dir("d").file(format!("d/{i}"), "").file("last", &i.to_string());
        match i {
            0 => layer.dir("gone").file("gone/x", "").plain(),
            60 => layer.file("d/.wh.3", "").plain(),
            120 => layer.file("d/.wh.50", "").plain(),
            _ if i + 1 == n => layer.file("d/.wh.7", "").dir("gone").file("gone/.wh..wh..opq", "").plain(),
            _ => layer.plain(),
        }
    });
    Forged::new(layers.collect())
}

#[test]
fn images_with_many_layers_are_built_on_run_and_exported() {
    let lab = Lab::new();
    for n in [130, 500, 1005] {
        let (archive, tar) = (lab.path("many.tar"), lab.path("out.tar"));
        image(n).write_docker(&archive, "many");
        lab.rbuild(["load", "-i", archive.to_str().unwrap()]).ok();
        let (left, last) = (n - 3, n - 1);
        // Commands see it as a mount and as the stage below them.
        let file = format!(
            "FROM busybox AS x\nRUN --mount=from=many,target=/m [ $(cat /m/last) = {last} ] && ls /m/d | wc -l > /seen\n\
             FROM many\nCOPY --from=x /bin/busybox /seen /\nCOPY Dockerfile /d/7\n\
             RUN [\"/busybox\", \"rm\", \"/d/1\"]\nRUN [\"/busybox\", \"sh\", \"-c\", \"/busybox ls /d /gone > /ran\"]\n"
        );
        lab.build(&file, &["-t", "more", "-o", &format!("type=tar,dest={}", tar.display())]).ok();
        let files = contents(&std::fs::read(&tar).unwrap());
        assert_eq!(String::from_utf8_lossy(&files["seen"]).trim(), left.to_string());
        let ran = String::from_utf8_lossy(&files["ran"]).into_owned();
        let names: Vec<&str> = ran.lines().filter(|line| line.parse::<usize>().is_ok()).collect();
        assert_eq!(names.len(), left, "{ran}");
        for (name, is_there) in [("2", true), ("7", true), ("1", false), ("3", false), ("50", false)] {
            assert_eq!(
                (names.contains(&name), files.contains_key(&format!("d/{name}"))),
                (is_there, is_there),
                "{name}"
            );
        }
        assert!(!files.contains_key("gone/x") && files["last"] == last.to_string().as_bytes());
        let ran = lab.rbuild(["run", "more", "/busybox", "cat", "/last"]).ok();
        assert_eq!(ran.stdout, last.to_string());
    }
}

#[test]
fn commands_that_write_nothing_add_no_tree_to_later_steps() {
    let lab = Lab::new();
    let lowers = |nothing: &str| {
        let file = format!(
            "FROM busybox\nRUN echo kept > /kept && touch /gone && chmod 711 /\n{nothing}RUN rm /gone\n{nothing}\
             RUN cat /proc/self/mountinfo > /mounts; stat -c %a / > /mode; ls / > /names\n"
        );
        let out = lab.build_local(&file, &[]);
        let text = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        let mounts = text("mounts");
        // In the isolation mode chroot, /proc is empty.
        let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap_or_default();
        assert_eq!((text("kept").trim(), text("mode").trim()), ("kept", "711"), "{nothing}");
        assert!(!text("names").lines().any(|name| name == "gone"), "{nothing}");
        (root.contains(" overlay "), root.matches("lowerdir").count())
    };
    let (without, with) = (lowers(""), lowers("RUN true\nRUN test -e /kept\nRUN true again\n"));
    // Each tree is listed as an option of its own: the image, the files, the deletion. The topmost
    // one, with the metadata of the root directory, is always there.
    assert_eq!(without.0, with.0);
    assert!(!without.0 || without.1 >= 3, "{without:?}");
    assert!(with.1 <= without.1 + 1, "{without:?} {with:?}");
}
