//! Triggers (ONBUILD).

use super::errors::row;
use super::*;

#[test]
fn triggers_run_right_after_from_and_are_removed() {
    let g = graph("FROM trigger\nRUN mine\n");
    let texts: Vec<&str> = g.vertices.iter().map(|v| v.text.as_str()).collect();
    assert_eq!(texts, ["FROM trigger", "ONBUILD RUN echo triggered", "ONBUILD COPY . /src", "RUN mine"]);
    assert!(g.config.config.on_build.is_empty());
    assert_eq!(graph("FROM debian\nONBUILD RUN x\n").config.config.on_build, ["RUN x"]);
}

#[test]
fn triggers_count_as_steps() {
    let labels = |source: &str| graph(source).vertices.iter().map(|v| v.name.to_string()).collect::<Vec<_>>();
    assert_eq!(labels("FROM trigger\nRUN a\n"), ["1/4", "2/4", "3/4", "4/4"]);
    let two = labels("FROM trigger AS a\nFROM a AS b\nRUN x\n");
    assert_eq!(two, ["a 1/3", "a 2/3", "a 3/3", "b 2/2"]);
}

#[test]
fn errors_in_triggers_are_as_recorded() {
    let debian = debian();
    let with_trigger = |name: &str, trigger: &str| {
        let mut base = debian[&on_host("debian")].clone();
        base.manifest = ManifestDigest::of(name.as_bytes());
        base.config.config.on_build = vec![trigger.into()];
        (on_host(name), base)
    };
    let single = ["RUNN x", "FROM x", "COPY --from=7 a b", "COPY --link --chown=me a b"];
    let of_one = single.map(|trigger| row("FROM base AS s\nRUN x\n", &HashMap::from([with_trigger("base", trigger)])));
    // An error of another stage keeps its place.
    let elsewhere = "FROM scratch AS s\nCOPY --link --chown=me a b\nFROM base\n";
    let elsewhere = row(elsewhere, &HashMap::from([with_trigger("base", "COPY --from=s a b")]));
    // Each stage copies from the one above it.
    let chained = |n: usize| with_trigger(&format!("image{n}"), &format!("COPY --from=s{} /x /", n.saturating_sub(1)));
    let count = 102;
    let source: String = (0..count)
        .map(|n| format!("FROM {} AS s{n}\n", if n == 0 { "debian".into() } else { format!("image{n}") }))
        .collect();
    let mut images: HashMap<_, _> = (1..count).map(chained).collect();
    images.extend(debian.clone());
    rbuild_testkit::assert_recorded!("planning-triggers", of_one.concat() + &elsewhere + &row(&source, &images));
}
