//! Benchmark of parsing and planning: time relative to `wc` on the same file, and growth with the
//! size of the file.
//!
//! Run with `cargo bench -p rbuild-plan`. Each kind of file is generated with 100, 1,000 and 10,000
//! lines (one of them also with 100,000). Fails if 10,000 lines take more than 50 times as long as
//! `wc` (including its process), or if ten times the lines take more than 25 times as long. Linear
//! time stays far below this limit on a noisy machine, quadratic time far above.

#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::fmt::Write;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rbuild_image::{ImageConfig, ManifestDigest, Platform};
use rbuild_plan::{BaseImage, Parameters, Plan, PlatformImage, plan};
use rbuild_testkit::Scratch;

type Shape = (&'static str, fn(usize) -> String);

const SHAPES: [Shape; 8] = [
    ("mixed", mixed),
    ("variables and commands", variables),
    ("chain of stages", chain),
    ("one long command", long_command),
    ("here-documents", heredocs),
    ("possible shifts", shifts),
    ("unset variables", unset),
    ("copies from stages", copies),
];

fn mixed(lines: usize) -> String {
    let mut out = String::new();
    for i in 0..lines / 10 {
        let _ = write!(
            out,
            "FROM base AS stage-{i}\nARG VERSION=1.{i}\nENV NAME_{i}=value PATH=/opt/bin:$PATH\nWORKDIR /srv/$VERSION\n\
             # a comment\nCOPY --chown=1:1 src/*.c dest/\nRUN make -j4 \\\n  install\nLABEL a.b.c=\"x y\"\nEXPOSE 80\n"
        );
    }
    out
}

fn variables(lines: usize) -> String {
    let mut out = String::from("FROM base\n");
    for i in 0..lines / 2 {
        let _ = write!(out, "ENV NAME_{i}=value-{i}\nRUN command {i}\n");
    }
    out
}

fn chain(lines: usize) -> String {
    let mut out = String::from("FROM base AS s0\n");
    for i in 1..lines / 2 {
        let _ = write!(out, "FROM s{} AS s{i}\nENV A=$A\n", i - 1);
    }
    out
}

fn long_command(lines: usize) -> String {
    format!("FROM base\nENV A=1\nRUN true{}\n", " && \\\n  command --with argument".repeat(lines))
}

fn heredocs(lines: usize) -> String {
    let mut out = String::from("FROM base\n");
    for i in 0..lines / 10 {
        let _ = write!(out, "COPY <<EOF /etc/file-{i}\n{}EOF\n", "some $text in it\n".repeat(8));
    }
    out
}

/// Returns commands with `<<` that no line ends, and lines in which an end could be.
fn shifts(lines: usize) -> String {
    let mut out = String::from("FROM base\n");
    for _ in 0..lines.div_ceil(10_000) {
        let _ = writeln!(out, "RUN (( i {}))", "<< b ".repeat(lines.min(10_000)));
    }
    for i in 0..lines / 2 {
        let _ = write!(out, "RUN echo $(( {i} << n ))\n#\n");
    }
    out
}

fn unset(lines: usize) -> String {
    let mut out = String::from("FROM base\n");
    for i in 0..lines / 2 {
        let _ = write!(out, "ENV NAME_{i}=1\nLABEL l{i}=$NAEM_{i}\n");
    }
    out
}

fn copies(lines: usize) -> String {
    let mut out = String::new();
    for i in 0..lines / 2 {
        let _ = write!(out, "FROM base AS s{i}\nCOPY --from=s{} /a /b\n", i / 2);
    }
    out.replacen("COPY --from=s0 /a /b\n", "RUN x\n", 1)
}

fn parse_and_plan(text: &str, images: &HashMap<PlatformImage, BaseImage>) -> usize {
    let file = rbuild_dockerfile::parse(text.as_bytes()).expect("the generated file is valid");
    match plan(&file, &Parameters::new(Platform::host(), Platform::host()), images) {
        Ok(Plan::Graph(graph)) => graph.vertices.len(),
        _ => panic!("the file cannot be planned"),
    }
}

/// Returns the shortest time of several runs.
fn best(rounds: usize, mut run: impl FnMut()) -> Duration {
    let times = (0..rounds).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed()
    });
    times.min().unwrap_or_default()
}

fn wc(text: &str) -> Duration {
    let dir = Scratch::new();
    let path = dir.join("Dockerfile");
    std::fs::write(&path, text).expect("writing the file for wc");
    best(5, || assert!(Command::new("wc").arg(&path).output().is_ok_and(|o| o.status.success())))
}

fn main() -> ExitCode {
    let base = BaseImage { manifest: ManifestDigest::of(b"base"), config: ImageConfig::empty(&Platform::host()) };
    let images = HashMap::from([(PlatformImage { name: "base".parse().unwrap(), platform: Platform::host() }, base)]);
    let mut broken = 0;
    println!("{:<24}{:>9}{:>12}{:>11}{:>9}", "shape", "lines", "time ms", "x before", "x wc");
    for (name, make) in SHAPES {
        let mut before: Option<Duration> = None;
        let sizes: &[usize] = if name == "mixed" { &[100, 1_000, 10_000, 100_000] } else { &[100, 1_000, 10_000] };
        for lines in sizes {
            let text = make(*lines);
            let time = best(5, || assert!(std::hint::black_box(parse_and_plan(&text, &images)) > 0));
            let growth = before.map(|b| time.as_secs_f64() / b.as_secs_f64());
            let ratio = time.as_secs_f64() / wc(&text).as_secs_f64();
            let grows = growth.is_some_and(|g| g > 25.0) && time > Duration::from_millis(5);
            let slow = *lines == 10_000 && ratio > 50.0;
            broken += usize::from(grows) + usize::from(slow);
            println!(
                "{name:<24}{lines:>9}{:>12.2}{:>11}{ratio:>9.1}{}",
                time.as_secs_f64() * 1e3,
                growth.map_or(String::new(), |g| format!("{g:.1}")),
                if grows || slow { "  BROKEN" } else { "" }
            );
            before = Some(time);
        }
    }
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
