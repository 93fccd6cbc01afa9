//! `--timings`: a self-contained page with the timeline of a build, its critical path and its
//! layers.

use std::collections::HashMap;
use std::fmt::{self, Write};

use rbuild_image::human_size;
use rbuild_remedy::counted;
use rbuild_store::{BuildLog, LayerLog, PhaseLog, StepLog, StepOutcome};

const STYLE: &str = include_str!("timings.css");

/// Returns the page. It loads nothing and contains no script.
pub fn html(build: &BuildLog) -> String {
    let critical = critical_path(&build.steps);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{0}: {1:.1} s</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n",
        EscapedText(&build.result),
        build.seconds
    );
    let cached = build.steps.iter().filter(|s| s.outcome == StepOutcome::Cached).count();
    let _ = writeln!(
        page,
        "<p class=\"sum\"><b>{}</b> in <b>{:.1} s</b>: {}, {cached} from the cache. Build <code>{}</code>, started {}.</p>",
        build.status.word(),
        build.seconds,
        counted(build.steps.len() as u64, "step"),
        EscapedText(build.id.as_str()),
        jiff::Timestamp::from_second(build.started).map_or(String::new(), |t| t.to_string()),
    );
    timeline(&mut page, build, &critical);
    path(&mut page, build, &critical);
    layers(&mut page, build);
    steps(&mut page, build);
    page.push_str("</body>\n</html>\n");
    page
}

/// Returns the indices of the steps on the critical path in order of execution: the step that ended
/// last, its latest input, the latest input of that, and so on.
fn critical_path(steps: &[StepLog]) -> Vec<usize> {
    let places: HashMap<usize, usize> = steps.iter().enumerate().map(|(i, s)| (s.step, i)).collect();
    let end = |i: &usize| steps[*i].began + steps[*i].seconds;
    let latest = |among: &mut dyn Iterator<Item = usize>| {
        among.filter(|i| steps[*i].outcome != StepOutcome::Cached).max_by(|a, b| end(a).total_cmp(&end(b)))
    };
    let mut path: Vec<usize> = latest(&mut (0..steps.len())).into_iter().collect();
    while let Some(last) = path.last() {
        let mut inputs = steps[*last].inputs.iter().filter_map(|step| places.get(step).copied());
        match latest(&mut inputs).filter(|i| !path.contains(i)) {
            Some(input) => path.push(input),
            None => break,
        }
    }
    path.reverse();
    path
}

/// A row of the timeline: a label, a text, and a bar with a tooltip. Times are in seconds.
struct TimelineRow<'a> {
    name: &'a str,
    text: &'a str,
    began: f64,
    seconds: f64,
    /// The classes of the bar.
    class: &'a str,
}

/// Appends a row of the timeline, which is `total` seconds long.
fn row(page: &mut String, total: f64, row: &TimelineRow<'_>) {
    let TimelineRow { name, text, began, seconds, class } = *row;
    let (left, width) = (percent(began, total), percent(seconds, total).max(0.15));
    let _ = writeln!(
        page,
        "<div class=\"name\" title=\"{2}\"><b>{0}</b> {1}</div><div class=\"track\"><i class=\"{class}\" \
         style=\"left:{left:.3}%;width:{width:.3}%\" title=\"{2}\n{3}, started at {began:.2} s\"></i><span style=\"left:{4:.3}%\">{3}</span></div>",
        EscapedText(name),
        EscapedText(&short(text)),
        EscapedText(text),
        time(seconds),
        left + width,
    );
}

/// Converts a time to a percentage of the track. The last 7 % are left for the text after the last
/// bar.
fn percent(time: f64, total: f64) -> f64 {
    (time / total * 93.0).clamp(0.0, 93.0)
}

fn timeline(page: &mut String, build: &BuildLog, critical: &[usize]) {
    let ends = build.steps.iter().map(|s| s.began + s.seconds).chain(build.phases.iter().map(|p| p.began + p.seconds));
    let total = ends.fold(build.seconds, f64::max).max(0.001);
    page.push_str("<h2>Timeline</h2>\n<p class=\"key\"><i class=\"done critical\"></i> on the critical path <i class=\"done\"></i> ran ");
    page.push_str("<i class=\"cached\"></i> from the cache <i class=\"failed\"></i> failed <i class=\"phase\"></i> other work</p>\n");
    page.push_str("<div class=\"rows\">\n<div></div><div class=\"axis\">");
    for tick in ticks(total) {
        let _ = write!(page, "<span style=\"left:{:.3}%\">{}</span>", percent(tick, total), time(tick));
    }
    page.push_str("</div>\n");
    for (i, step) in build.steps.iter().enumerate() {
        let class = format!("{}{}", step.outcome.word(), if critical.contains(&i) { " critical" } else { "" });
        let StepLog { label, text, began, seconds, .. } = step;
        row(page, total, &TimelineRow { name: label, text, began: *began, seconds: *seconds, class: &class });
    }
    for phase in &build.phases {
        let PhaseLog { text, began, seconds, .. } = phase;
        row(page, total, &TimelineRow { name: "", text, began: *began, seconds: *seconds, class: "phase" });
    }
    page.push_str("</div>\n");
}

/// Returns five to ten round times for the axis, in seconds.
fn ticks(total: f64) -> Vec<f64> {
    let mut step = 10f64.powf((total / 5.0).log10().floor());
    while total / step > 10.0 {
        step *= if (step.log10().fract()).abs() < 1e-9 { 2.0 } else { 2.5 };
    }
    (0..).map(|i| f64::from(i) * step).take_while(|t| *t < total * 0.97).collect()
}

fn path(page: &mut String, build: &BuildLog, critical: &[usize]) {
    if critical.is_empty() {
        return;
    }
    let seconds: f64 = critical.iter().map(|i| build.steps[*i].seconds).sum();
    let _ = writeln!(
        page,
        "<h2>Critical path</h2>\n<p>{} of {} s: the build cannot be faster than these steps, one after the other.</p>\n<ol>",
        time(seconds),
        format_args!("{:.1}", build.seconds)
    );
    for i in critical {
        let step = &build.steps[*i];
        let _ = writeln!(
            page,
            "<li><b>{}</b> {} <em>{}</em></li>",
            EscapedText(&step.label),
            EscapedText(&short(&step.text)),
            time(step.seconds)
        );
    }
    page.push_str("</ol>\n");
}

fn layers(page: &mut String, build: &BuildLog) {
    if build.layers.is_empty() {
        return;
    }
    let most = build.layers.iter().map(|l| l.bytes).max().unwrap_or(0).max(1) as f64;
    let sum: u64 = build.layers.iter().map(|l| l.bytes).sum();
    let _ = writeln!(
        page,
        "<h2>Layers</h2>\n<p>{} of files in the layers that the build added.</p>\n<table>",
        human_size(sum)
    );
    page.push_str(
        "<tr><th>step</th><th class=\"n\">size</th><th></th><th class=\"n\">files</th><th>largest files</th></tr>\n",
    );
    for LayerLog { step, bytes, files, biggest } in &build.layers {
        let log = build.steps.iter().find(|s| s.step == *step);
        let (label, text) = log.map_or((String::new(), String::new()), |s| (s.label.clone(), short(&s.text)));
        let list: Vec<String> = biggest
            .iter()
            .map(|(path, bytes)| format!("{} <em>{}</em>", EscapedText(path), human_size(*bytes)))
            .collect();
        let _ = writeln!(
            page,
            "<tr><td><b>{}</b> {}</td><td class=\"n\">{}</td><td class=\"bar\"><i style=\"width:{:.2}%\"></i></td><td class=\"n\">{files}</td><td>{}</td></tr>",
            EscapedText(&label),
            EscapedText(&text),
            human_size(*bytes),
            *bytes as f64 / most * 100.0,
            list.join("<br>")
        );
    }
    page.push_str("</table>\n");
}

fn steps(page: &mut String, build: &BuildLog) {
    page.push_str("<h2>Steps</h2>\n<table>\n<tr><th>step</th><th>instruction</th><th>outcome</th><th class=\"n\">time</th><th>why</th></tr>\n");
    for step in &build.steps {
        let _ = writeln!(
            page,
            "<tr><td><b>{}</b></td><td><code>{}</code></td><td>{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            EscapedText(&step.label),
            EscapedText(&short(&step.text)),
            step.outcome.word(),
            time(step.seconds),
            EscapedText(step.reason.as_deref().unwrap_or(""))
        );
    }
    page.push_str("</table>\n");
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 60.0 => format!("{}m {:02.0}s", (s / 60.0).floor(), (s % 60.0).floor()),
        s if s >= 0.0995 || s == 0.0 => format!("{s:.1} s"),
        s => format!("{:.0} ms", s * 1000.0),
    }
}

/// Returns the first line, truncated to 90 characters.
fn short(text: &str) -> String {
    const LONG: usize = 90;
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= LONG { line.to_string() } else { line.chars().take(LONG - 1).chain(['…']).collect() }
}

/// A text that is displayed as HTML: as the content of an element or the value of an attribute in
/// quotation marks. All texts of a build get into the page through this type.
struct EscapedText<'a>(&'a str);

impl fmt::Display for EscapedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_store::BuildStatus;

    fn step(step: usize, began: f64, seconds: f64, outcome: StepOutcome, inputs: &[usize]) -> StepLog {
        StepLog {
            step,
            label: format!("s {step}/9"),
            text: "RUN <b>&\nmore".into(),
            outcome,
            began,
            seconds,
            reason: None,
            inputs: inputs.to_vec(),
        }
    }

    fn build() -> BuildLog {
        BuildLog {
            id: "abc".parse().unwrap(),
            result: "x:latest".into(),
            started: 0,
            seconds: 9.0,
            status: BuildStatus::Done,
            steps: vec![
                step(1, 0.0, 0.0, StepOutcome::Cached, &[0]),
                step(2, 0.0, 2.0, StepOutcome::Done, &[1]),
                step(3, 0.0, 5.0, StepOutcome::Done, &[1]),
                step(4, 5.0, 3.0, StepOutcome::Done, &[2, 3]),
            ],
            phases: vec![PhaseLog { text: "packing layers".into(), began: 8.0, seconds: 1.0 }],
            layers: vec![LayerLog { step: 4, bytes: 12, files: 1, biggest: vec![("/a<b".into(), 12)] }],
        }
    }

    #[test]
    fn the_critical_path_follows_the_latest_inputs() {
        assert_eq!(critical_path(&build().steps), [2, 3]);
        assert_eq!(critical_path(&build().steps[..1]), Vec::<usize>::new());
    }

    #[test]
    fn build_data_is_escaped_and_nothing_is_fetched() {
        let page = html(&build());
        assert!(page.contains("RUN &lt;b&gt;&amp;") && page.contains("/a&lt;b"), "{page}");
        assert!(!page.contains("<b>&") && !page.contains("http") && !page.contains("<script"));
    }

    #[test]
    fn hostile_names_become_text_everywhere() {
        let hostile = r#"'"><script>&amp;</script>"#;
        let escaped = "&#39;&quot;&gt;&lt;script&gt;&amp;amp;&lt;/script&gt;";
        let named = |step: StepLog| StepLog {
            label: hostile.into(),
            text: hostile.into(),
            reason: Some(hostile.into()),
            ..step
        };
        let usual = build();
        let page = html(&BuildLog {
            result: hostile.into(),
            steps: vec![named(step(4, 0.0, 1.0, StepOutcome::Done, &[]))],
            phases: vec![PhaseLog { text: hostile.into(), began: 0.0, seconds: 1.0 }],
            layers: vec![LayerLog { step: 4, bytes: 1, files: 1, biggest: vec![(hostile.into(), 1)] }],
            ..usual
        });
        // The title and the heading; the row of the step (4) and that of the phase (3); the step in
        // the critical path (2), among the layers (2), and in the table (3); and the file.
        assert_eq!(page.matches(escaped).count(), 17, "{page}");
        assert!(!page.contains("<script") && !page.contains("&amp;<") && !page.contains('\''), "{page}");
    }

    #[test]
    fn pages_are_as_recorded() {
        let mut build = build();
        build.steps[1].reason = Some("the command changed".into());
        build.steps[2].outcome = StepOutcome::Failed;
        build.steps[3].outcome = StepOutcome::Canceled;
        let empty =
            BuildLog { steps: Vec::new(), phases: Vec::new(), layers: Vec::new(), seconds: 71.5, ..build.clone() };
        let pages = [build, empty].map(|build| html(&build).replace(STYLE, ""));
        rbuild_testkit::assert_recorded!("timings", pages.join("\n"));
    }

    #[test]
    fn axes_have_a_handful_of_round_times() {
        for total in [0.003, 0.7, 1.0, 9.3, 59.0, 61.0, 1234.0] {
            let ticks = ticks(total);
            assert!((4..=11).contains(&ticks.len()), "{total}: {ticks:?}");
        }
    }
}
