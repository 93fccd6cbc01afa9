//! The corners of the language that show in the result, as the reference implementation has them.

use crate::lab::{Lab, exists};

#[test]
fn a_heredoc_stays_in_the_image_whatever_its_name() {
    let lab = Lab::new();
    let outside = lab.path("outside");
    let names = ["/context/planted", "../../planted", "/store/planted", "a/planted", outside.to_str().unwrap()];
    for name in names {
        for copy in ["COPY", "COPY --link --chmod=755", "ADD"] {
            let file = format!("FROM busybox\nWORKDIR /w\n{copy} <<{name} /x/\nx\n{name}\n");
            lab.build(&file, &[]).fails(2, &["cannot be the name of a file", "Dockerfile:3"]);
        }
        lab.build(&format!("FROM busybox\nONBUILD COPY <<{name} /x/\nx\n{name}\n"), &["-t", "trap"]).ok();
        lab.build("FROM trap\n", &[]).fails(2, &["ONBUILD", "cannot be the name of a file"]);
        lab.build(&format!("FROM busybox\nRUN <<{name}\n#!/bin/sh\n{name}\n"), &[]).fails(2, &["cannot be the name"]);
    }
    assert!(!exists(&outside) && !exists(lab.ctx().join("planted")) && !exists(lab.store().join("planted")));
    let out = lab.build_local("FROM scratch\nCOPY <<f /x/\ntext\nf\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("x/f")).unwrap(), "text\n");
}
