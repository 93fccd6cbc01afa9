//! `--timings`: a self-contained page with the failure, the timeline, the critical path, the layers
//! and the steps of a build.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Write};

use rbuild_dockerfile::Span;
use rbuild_image::human_size;
use rbuild_remedy::counted;
use rbuild_store::{BuildLog, BuildStatus, LayerLog, PhaseLog, StepLog, StepOutcome};

use crate::ui::diagnostics::{SourceText, inside};

const STYLE: &str = include_str!("timings.css");

/// The content of the page.
pub struct TimingsPage<'a> {
    pub build: &'a BuildLog,
    pub source: &'a SourceText<'a>,
    /// Names and values that are listed at the top.
    pub facts: Vec<(&'static str, String)>,
    /// The last lines of output, by number of the step.
    pub output: HashMap<usize, String>,
    /// Removes secrets and logins from text of the Dockerfile. Other texts are without them.
    pub hide: &'a dyn Fn(&str) -> String,
}

impl TimingsPage<'_> {
    /// Returns the page. It loads nothing and contains no script.
    pub fn html(&self) -> String {
        let build = self.build;
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>rbuild: {0}: {1:.1} s</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
             <h1>rbuild: {0}</h1>\n",
            EscapedText(&build.result),
            build.seconds
        );
        let cached = build.steps.iter().filter(|s| s.outcome == StepOutcome::Cached).count();
        let _ = writeln!(
            page,
            "<p class=\"sum\"><b>{}</b> in <b>{:.1} s</b>: {}, {cached} from the cache</p>\n<dl>",
            build.status.word(),
            build.seconds,
            counted(build.steps.len() as u64, "step"),
        );
        for (name, value) in &self.facts {
            let _ = writeln!(page, "<div><dt>{name}</dt><dd>{}</dd></div>", EscapedText(value));
        }
        page.push_str("</dl>\n");
        // A build that did not end by itself has no meaningful critical path.
        let critical = if build.status == BuildStatus::Done { critical_path(&build.steps) } else { Vec::new() };
        self.failure(&mut page);
        timeline(&mut page, build, &critical);
        path(&mut page, build, &critical);
        layers(&mut page, build);
        self.steps(&mut page);
        page.push_str("</main>\n</body>\n</html>\n");
        page
    }

    /// Appends the error, its place in the Dockerfile, and the last lines of the step that failed.
    fn failure(&self, page: &mut String) {
        let Some(failure) = &self.build.failure else { return };
        let _ =
            writeln!(page, "<section class=\"failure\">\n<h2>Failure</h2>\n<p>{}</p>", EscapedText(&failure.message));
        if let Some((start, end)) = failure.place {
            let span = inside(Span::new(start, end), self.source.text);
            let (first, _, lines) = self.source.excerpt(span);
            let lines = (self.hide)(lines);
            let numbered = lines.lines().enumerate().map(|(i, line)| format!("{:>4}  {line}", first + i));
            let excerpt = numbered.collect::<Vec<_>>().join("\n");
            let place = format!("{}:{first}", self.source.name);
            preformatted(page, &format!("Lines of {place}"), &format!("{place}\n{excerpt}"));
        }
        let is_failed = |step: &&StepLog| Some(&step.label) == failure.step.as_ref();
        if let Some(output) = self.build.steps.iter().find(is_failed).and_then(|step| self.output.get(&step.step)) {
            let lines: Vec<&str> = output.lines().collect();
            preformatted(page, "Last lines of output", &lines[lines.len().saturating_sub(TAIL)..].join("\n"));
        }
        page.push_str("</section>\n");
    }

    fn steps(&self, page: &mut String) {
        let steps = &self.build.steps;
        if steps.is_empty() {
            return;
        }
        page.push_str("<h2>Steps</h2>\n");
        let reasons: BTreeSet<&str> = steps.iter().filter_map(|step| step.reason.as_deref()).collect();
        let known = steps.iter().filter(|step| step.reason.is_some()).count();
        let common = reasons.first().filter(|_| reasons.len() == 1 && known > 1);
        if let Some(reason) = common {
            let _ = writeln!(page, "<p>For all of them: {}</p>", EscapedText(reason));
        }
        let why = if common.is_none() && known > 0 { "<th scope=\"col\">Why</th>" } else { "" };
        let _ = writeln!(
            page,
            "<table>\n<thead><tr><th scope=\"col\">Step</th><th scope=\"col\">Instruction</th>\
             <th scope=\"col\">Outcome</th><th scope=\"col\" class=\"n\">Time</th>{why}</tr></thead>\n<tbody>"
        );
        for step in steps {
            let _ = write!(
                page,
                "<tr><td><b>{}</b></td><td><code>{}</code>",
                EscapedText(&step.label),
                EscapedText(&short(&step.text)),
            );
            if let Some(output) = self.output.get(&step.step) {
                let _ = write!(page, "<details><summary>{}</summary>", counted(output.lines().count() as u64, "line"));
                preformatted(page, &format!("Output of {}", step.label), output);
                page.push_str("</details>");
            }
            let _ = write!(
                page,
                "</td><td data-name=\"Outcome\">{}</td><td data-name=\"Time\" class=\"n\">{}</td>",
                step.outcome.word(),
                duration_of(step)
            );
            if !why.is_empty() {
                let reason = step.reason.as_deref().unwrap_or_default();
                let _ = write!(page, "<td data-name=\"Why\">{}</td>", EscapedText(reason));
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</tbody>\n</table>\n");
    }
}

/// Number of lines of output that a failure shows.
const TAIL: usize = 20;

/// Appends a text with its own line breaks, which can be scrolled with the keyboard.
fn preformatted(page: &mut String, name: &str, text: &str) {
    let _ = writeln!(
        page,
        "<pre tabindex=\"0\" role=\"region\" aria-label=\"{}\">{}</pre>",
        EscapedText(name),
        EscapedText(text)
    );
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
    /// The text at the bar.
    time: &'a str,
}

/// Appends a row of the timeline, which is `total` seconds long. The time is after the bar, or
/// before a bar at the right edge, or in a bar that takes up the row.
fn row(page: &mut String, total: f64, row: &TimelineRow<'_>) {
    let TimelineRow { name, text, began, seconds, class, time } = *row;
    let left = percent(began, total);
    let width = percent(seconds, total).clamp(0.15, 100.0 - left.min(99.85));
    let place = if left + width < 75.0 {
        format!("\" style=\"left:{:.3}%", left + width)
    } else if left > 25.0 {
        format!("\" style=\"right:{:.3}%", 100.0 - left)
    } else {
        format!(" in {class}\" style=\"right:{:.3}%", 100.0 - left - width)
    };
    let _ = writeln!(
        page,
        "<div class=\"name\" title=\"{2}\"><b>{0}</b> {1}</div><div class=\"track\"><i class=\"{class}\" \
         style=\"left:{left:.3}%;width:{width:.3}%\" title=\"{2}\n{time}, started at {began:.2} s\"></i>\
         <span class=\"time{place}\">{time}</span></div>",
        EscapedText(name),
        EscapedText(&short(text)),
        EscapedText(text),
    );
}

/// Converts a time to a percentage of the track.
fn percent(time: f64, total: f64) -> f64 {
    (time / total * 100.0).clamp(0.0, 100.0)
}

fn timeline(page: &mut String, build: &BuildLog, critical: &[usize]) {
    let ends = build.steps.iter().map(|s| s.began + s.seconds).chain(build.phases.iter().map(|p| p.began + p.seconds));
    let total = ends.fold(build.seconds, f64::max).max(0.001);
    page.push_str("<h2>Timeline</h2>\n<p class=\"key\">");
    let has = |outcome| build.steps.iter().any(|step| step.outcome == outcome);
    for (is_shown, class, text) in [
        (!critical.is_empty(), "done critical", "on the critical path"),
        (has(StepOutcome::Done), "done", "ran"),
        (has(StepOutcome::Cached), "cached", "from the cache"),
        (has(StepOutcome::Failed), "failed", "failed"),
        (has(StepOutcome::Canceled), "stopped", "stopped"),
        (!build.phases.is_empty(), "phase", "other work"),
    ] {
        if is_shown {
            let _ = write!(page, "<span><i class=\"{class}\"></i> {text}</span> ");
        }
    }
    let ticks = ticks(total);
    let spacing = ticks.get(1).map_or(100.0, |second| percent(*second, total));
    let _ = write!(
        page,
        "</p>\n<div class=\"rows\" style=\"--tick:{spacing:.3}%\">\n<div class=\"corner\"></div><div class=\"axis\">"
    );
    for tick in ticks {
        let _ = write!(page, "<span style=\"left:{:.3}%\">{}</span>", percent(tick, total), time(tick));
    }
    page.push_str("</div>\n");
    for (stage, steps) in stages(&build.steps) {
        if !stage.is_empty() {
            let _ = writeln!(page, "<h3>{}</h3>", EscapedText(stage));
        }
        for i in steps {
            let step = &build.steps[i];
            let class = format!("{}{}", step.outcome.word(), if critical.contains(&i) { " critical" } else { "" });
            let StepLog { label, text, began, seconds, .. } = step;
            let number = label.rsplit(' ').next().unwrap_or(label);
            let time = duration_of(step);
            row(
                page,
                total,
                &TimelineRow { name: number, text, began: *began, seconds: *seconds, class: &class, time: &time },
            );
        }
    }
    if !build.phases.is_empty() {
        page.push_str("<h3>Other work</h3>\n");
    }
    for PhaseLog { text, began, seconds } in &build.phases {
        let time = time(*seconds);
        row(
            page,
            total,
            &TimelineRow { name: "", text, began: *began, seconds: *seconds, class: "phase", time: &time },
        );
    }
    page.push_str("</div>\n");
}

/// Returns the stages in the order in which they began, with the indices of their steps. The name
/// of a stage precedes the number in the label of a step.
fn stages(steps: &[StepLog]) -> Vec<(&str, Vec<usize>)> {
    let mut order: Vec<usize> = (0..steps.len()).collect();
    order.sort_by(|a, b| steps[*a].began.total_cmp(&steps[*b].began));
    let mut stages: Vec<(&str, Vec<usize>)> = Vec::new();
    for i in order {
        let name = steps[i].label.rsplit_once(' ').map_or("", |(stage, _)| stage);
        match stages.iter_mut().find(|(known, _)| *known == name) {
            Some((_, steps)) => steps.push(i),
            None => stages.push((name, vec![i])),
        }
    }
    stages
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
        "<h2>Critical path</h2>\n<p>{} of {}: the build cannot be faster than these steps, one after the other.</p>\n<ol>",
        time(seconds),
        time(build.seconds)
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

/// Size in bytes of the largest layer from which on sizes are compared by bars.
const CHART: u64 = 100_000;

fn layers(page: &mut String, build: &BuildLog) {
    if build.layers.is_empty() {
        return;
    }
    let most = build.layers.iter().map(|l| l.bytes).max().unwrap_or(0);
    let sum: u64 = build.layers.iter().map(|l| l.bytes).sum();
    let bar = if most >= CHART { "<th scope=\"col\"><span class=\"hidden\">Share</span></th>" } else { "" };
    let _ = writeln!(
        page,
        "<h2>Layers</h2>\n<p>The build added {} of files.</p>\n<table>\n<thead><tr><th scope=\"col\">Step</th>\
         <th scope=\"col\" class=\"n\">Size</th>{bar}<th scope=\"col\" class=\"n\">Files</th>\
         <th scope=\"col\">Largest files</th></tr></thead>\n<tbody>",
        human_size(sum)
    );
    for LayerLog { step, bytes, files, biggest } in &build.layers {
        let log = build.steps.iter().find(|s| s.step == *step);
        let (label, text) = log.map_or((String::new(), String::new()), |s| (s.label.clone(), short(&s.text)));
        let list: Vec<String> = biggest
            .iter()
            .map(|(path, bytes)| format!("{} <em>{}</em>", EscapedText(path), human_size(*bytes)))
            .collect();
        let share = *bytes as f64 / most.max(1) as f64 * 100.0;
        let bar = if bar.is_empty() {
            String::new()
        } else {
            format!("<td class=\"bar\"><i style=\"width:{share:.2}%\"></i></td>")
        };
        let _ = writeln!(
            page,
            "<tr><td><b>{}</b> {}</td><td data-name=\"Size\" class=\"n\">{}</td>{bar}\
             <td data-name=\"Files\" class=\"n\">{files}</td><td data-name=\"Largest\">{}</td></tr>",
            EscapedText(&label),
            EscapedText(&text),
            human_size(*bytes),
            list.join("<br>")
        );
    }
    page.push_str("</tbody>\n</table>\n");
}

/// Returns the time that a step took, or the word for one that took none.
fn duration_of(step: &StepLog) -> String {
    if step.outcome == StepOutcome::Cached { "cached".into() } else { time(step.seconds) }
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
    use rbuild_store::FailureLog;

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
            failure: None,
        }
    }

    const DOCKERFILE: &str = "FROM busybox\nRUN <b>& \\\n  more\nCMD x\n";

    fn html(build: &BuildLog, output: &[(usize, &str)]) -> String {
        let source = SourceText::new("Dockerfile", DOCKERFILE);
        let output = output.iter().map(|(step, text)| (*step, text.to_string())).collect();
        TimingsPage {
            build,
            source: &source,
            facts: vec![("Host", "<h>".into())],
            output,
            hide: &|text| text.replace("  more", "  ****"),
        }
        .html()
    }

    #[test]
    fn the_critical_path_follows_the_latest_inputs() {
        assert_eq!(critical_path(&build().steps), [2, 3]);
        assert_eq!(critical_path(&build().steps[..1]), Vec::<usize>::new());
    }

    #[test]
    fn build_data_is_escaped_and_nothing_is_fetched() {
        let page = html(&build(), &[(2, "<out>")]);
        assert!(
            page.contains("RUN &lt;b&gt;&amp;") && page.contains("/a&lt;b") && page.contains("&lt;out&gt;"),
            "{page}"
        );
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
        let failure = FailureLog { message: hostile.into(), place: None, step: Some(hostile.into()) };
        let log = BuildLog {
            result: hostile.into(),
            steps: vec![named(step(4, 0.0, 1.0, StepOutcome::Done, &[]))],
            phases: vec![PhaseLog { text: hostile.into(), began: 0.0, seconds: 1.0 }],
            layers: vec![LayerLog { step: 4, bytes: 1, files: 1, biggest: vec![(hostile.into(), 1)] }],
            failure: Some(failure),
            ..usual
        };
        let page = html(&log, &[(4, hostile)]);
        // The title and the heading; the message and the output of the failure; the row of the step
        // (4) and that of the phase (3); the step in the critical path (2), among the layers (2),
        // and in the table (3), there with its output (2); and the file.
        assert_eq!(page.matches(escaped).count(), 21, "{page}");
        assert!(!page.contains("<script") && !page.contains("&amp;<") && !page.contains('\''), "{page}");
    }

    #[test]
    fn pages_are_as_recorded() {
        let reason = Some("the command changed".to_string());
        let mut good = build();
        good.steps[1].reason.clone_from(&reason);
        good.steps[2].reason.clone_from(&reason);
        good.steps[0].label = "base 1/1".into();
        let mut failed = BuildLog { status: BuildStatus::Failed, layers: Vec::new(), ..build() };
        failed.steps[1].reason.clone_from(&reason);
        failed.steps[3].reason = Some("input [s 3/9] changed".into());
        failed.steps[2].outcome = StepOutcome::Failed;
        failed.steps[3].outcome = StepOutcome::Canceled;
        failed.failure = Some(FailureLog {
            message: "the command exited with code 3".into(),
            place: Some((13, 30)),
            step: Some("s 3/9".into()),
        });
        let long: String = (1..30).map(|i| format!("line {i}\n")).collect();
        let empty = BuildLog { steps: Vec::new(), phases: Vec::new(), layers: Vec::new(), seconds: 71.5, ..build() };
        let pages = [html(&good, &[]), html(&failed, &[(3, &long), (2, "one")]), html(&empty, &[])];
        rbuild_testkit::assert_recorded!("timings", pages.join("\n").replace(STYLE, ""));
    }

    #[test]
    fn axes_have_a_handful_of_round_times() {
        for total in [0.003, 0.7, 1.0, 9.3, 59.0, 61.0, 1234.0] {
            let ticks = ticks(total);
            assert!((4..=11).contains(&ticks.len()), "{total}: {ticks:?}");
        }
    }
}
