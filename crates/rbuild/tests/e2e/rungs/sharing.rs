//! Results built in one isolation mode are cache hits in another, although owners are stored
//! differently on disk.

use crate::lab::{Lab, Ran, contents, listing};

const DOCKERFILE: &str = "FROM busybox AS made\n\
    RUN mkdir -p /out/d && echo 1 > /out/a && chmod 600 /out/a && chown 33:50 /out/a && chown 7:8 /out/d && ln -s a /out/l && chown -h 12:34 /out/l\n\
    FROM busybox\n\
    RUN rm /bin/yes && chown 5:6 / && echo x > /f && chown 9:10 /f && mkfifo /p && chown 11:12 /p\n\
    COPY --from=made /out /out\n\
    COPY --chown=3:4 f /ctx\n";

const OWNERS: &str = "/:5:6 /out/a:33:50 /out/d:7:8 /out/l:12:34 /f:9:10 /p:11:12 /ctx:3:4 ";
const STAT: &str = "stat -c %n:%u:%g / /out/a /out/d /out/l /f /p /ctx | tr '\\n' ' '";

const WAYS: [(&str, &str); 2] = [("userns", "single-id"), ("single-id", "userns")];

fn build(lab: &Lab, rung: &str, file: &str, args: &[&str]) -> Ran {
    lab.write("Dockerfile", file).write("f", "of the context\n");
    lab.rbuild(["--isolation", rung, "build"].into_iter().chain(args.iter().copied())).ok()
}

/// Returns the files of a build, and the content of its file `/owners`.
fn files(lab: &Lab, rung: &str, file: &str) -> (Ran, Vec<String>, String) {
    let tar = lab.path("files.tar");
    let ran = build(lab, rung, file, &["-o", &format!("type=tar,dest={}", tar.display())]);
    let tar = std::fs::read(tar).unwrap();
    let owners = contents(&tar).remove("owners").unwrap_or_default();
    (ran, listing(&tar), String::from_utf8(owners).unwrap())
}

#[test]
fn a_build_on_one_rung_is_cached_on_another() {
    for (first, second) in WAYS {
        let lab = Lab::new();
        let image = build(&lab, first, DOCKERFILE, &["-q", "-t", "x"]).stdout;
        let ran = build(&lab, second, DOCKERFILE, &["-t", "x", "--explain"]);
        assert_eq!(ran.steps(), (0, 4), "{first} {second}: {}", ran.stderr);
        assert!(!ran.stderr.contains("isolation"), "{}", ran.stderr);
        assert_eq!(build(&lab, second, DOCKERFILE, &["-q", "-t", "y"]).stdout, image);

        // Its files, and a step based on them.
        let (ran, found, _) = files(&lab, second, DOCKERFILE);
        assert_eq!(ran.steps(), (0, 4), "{first} {second}: {}", ran.stderr);
        assert_eq!(found, files(&lab, first, DOCKERFILE).1);
        let (ran, _, owners) = files(&lab, second, &format!("{DOCKERFILE}RUN {STAT} > /owners\n"));
        assert_eq!(ran.steps(), (1, 4), "{first} {second}: {}", ran.stderr);
        assert_eq!(owners, OWNERS);
        lab.rbuild(["prune"]).ok();
        for rung in [first, second] {
            assert_eq!(build(&lab, rung, DOCKERFILE, &["-t", "x"]).steps(), (0, 4));
        }
    }
}

#[test]
fn a_stage_that_no_layer_was_made_of_runs_again_where_its_files_are_needed() {
    for (first, second) in WAYS {
        let lab = Lab::new();
        build(&lab, first, DOCKERFILE, &["-t", "x"]);
        let changed =
            format!("{DOCKERFILE}COPY --from=made /out/a /b\nRUN {STAT} > /owners; stat -c %n:%u:%g /b >> /owners\n");
        let (ran, _, owners) = files(&lab, second, &changed);
        assert_eq!(ran.steps(), (3, 3), "{first} {second}: {}", ran.stderr);
        assert_eq!(owners, OWNERS.to_string() + "/b:33:50\n");
        // A result exported as a directory was never packed as layers, so its last step runs again.
        build(&lab, first, &format!("{DOCKERFILE}RUN echo local > /local\n"), &["-o", "type=local,dest=out"]);
        let ran = build(&lab, second, &format!("{DOCKERFILE}RUN echo local > /local\n"), &["-t", "x", "--explain"]);
        assert_eq!(ran.steps(), (1, 4), "{first} {second}: {}", ran.stderr);
        assert!(ran.stderr.contains("no layer of them was kept"), "{}", ran.stderr);
    }
}

#[test]
fn what_is_made_again_on_one_rung_is_made_again_for_all() {
    for (first, second) in WAYS {
        let lab = Lab::new();
        let file = "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /u\nRUN cp /u /v\n";
        for rung in [first, second] {
            build(&lab, rung, file, &["-t", "x"]);
        }
        let again = build(&lab, first, file, &["-q", "-t", "x", "--no-cache"]).stdout;
        assert_eq!(build(&lab, second, file, &["-q", "-t", "x"]).stdout, again);
        let last = format!("{file}RUN cmp /u /v\n");
        let ran = build(&lab, second, &last, &["-t", "x"]);
        assert_eq!(ran.steps(), (1, 2), "{first} {second}: {}", ran.stderr);
    }
}
