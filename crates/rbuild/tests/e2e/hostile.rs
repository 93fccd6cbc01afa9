//! Images that have something else where the system's places are.

use crate::lab::Lab;

#[test]
fn places_of_the_system_that_are_something_else_are_told() {
    let lab = Lab::new();
    let is_bare = std::env::var_os("RBUILD_ISOLATION").is_some_and(|rung| rung == "chroot");
    lab.write("f", "");
    lab.sh("mkdir -p k e/hosts; ln -s /tmp k/proc").ok();
    for (copy, says) in [
        ("COPY f /proc", "something else than a directory"),
        ("COPY k /", "a symbolic link"),
        ("COPY f /dev", "something else than a directory"),
        ("COPY e/hosts /etc/hosts/", "a directory"),
        ("COPY e/hosts /etc/resolv.conf/", "a directory"),
    ] {
        let make = format!("FROM busybox AS b\nFROM scratch\nCOPY --from=b /bin /bin\n{copy}\nRUN true\n");
        let ran = lab.build(&make, &[]);
        if !is_bare {
            let ran = ran.fails(1, &["could not be started", "the image has", says]);
            assert!(!ran.stderr.contains("move_mount") && !ran.stderr.contains("rootfs"), "{}", ran.stderr);
        }
        assert_eq!(std::fs::read_dir(lab.store().join("tmp")).unwrap().count(), 0);
    }
}
