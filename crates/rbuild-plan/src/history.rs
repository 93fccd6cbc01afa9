//! Formats the `created_by` texts of the image history as Docker does.

use rbuild_dockerfile::Vars;
use rbuild_dockerfile::ast::{Command, Heredoc};
use rbuild_image::{HealthcheckConfig, quote};

/// Formats a RUN entry, with the number and the values of the build arguments before the command.
/// An argument shows the value that the command sees: an ENV of the same name overrides it.
pub fn run(args: &Vars, env: &Vars, words: &[String]) -> String {
    let mut text = String::from("RUN ");
    if !args.is_empty() {
        text.push_str(&format!("|{} ", args.len()));
        for (k, v) in args.iter() {
            text.push_str(&format!("{k}={} ", env.get(k).unwrap_or(v)));
        }
    }
    text.push_str(&words.join(" "));
    text.push_str(" # buildkit");
    text
}

/// Words of a COPY or ADD, with variables expanded.
#[derive(Debug, Clone, Copy)]
pub struct CopyWords<'a> {
    pub add: bool,
    /// Flags that the history does not show, as written.
    pub others: &'a [String],
    pub parents: bool,
    pub chown: Option<&'a str>,
    pub chmod: Option<&'a str>,
    pub sources: &'a [String],
    pub heredocs: &'a [Heredoc],
    pub dest: &'a str,
}

impl CopyWords<'_> {
    /// Returns the instruction as shown to the user.
    pub fn instruction(self) -> String {
        let mut parts = vec![if self.add { "ADD".to_string() } else { "COPY".to_string() }];
        parts.extend(self.others.iter().cloned());
        parts.extend(self.parents.then(|| "--parents".to_string()));
        parts.extend(self.chown.map(|c| format!("--chown={c}")));
        parts.extend(self.chmod.map(|c| format!("--chmod={c}")));
        parts.extend(self.sources.iter().cloned());
        parts.extend(self.heredocs.iter().map(|d| format!("<<{}", d.name)));
        parts.push(self.dest.to_string());
        parts.join(" ")
    }

    /// Returns the history entry.
    pub fn created_by(self) -> String {
        format!("{} # buildkit", CopyWords { others: &[], ..self }.instruction())
    }
}

/// Formats a list as Go's `%q` does: quoted strings separated by spaces, in brackets.
pub fn quoted_list(words: &[String]) -> String {
    format!("[{}]", words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "))
}

/// Formats a HEALTHCHECK entry as Go prints the struct (`%+v`).
pub fn healthcheck(check: &HealthcheckConfig) -> String {
    format!(
        "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        check.test.join(" "),
        duration(check.interval),
        duration(check.timeout),
        duration(check.start_period),
        duration(check.start_interval),
        check.retries
    )
}

/// Formats nanoseconds as Go's `time.Duration` prints them.
fn duration(ns: i64) -> String {
    if ns == 0 {
        return "0s".into();
    }
    if ns.abs() < 1_000_000_000 {
        return format!("{}ms", fraction(ns as f64 / 1e6));
    }
    let (hours, rest) = (ns / 3_600_000_000_000, ns % 3_600_000_000_000);
    let (minutes, rest) = (rest / 60_000_000_000, rest % 60_000_000_000);
    let seconds = fraction(rest as f64 / 1e9);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, m) => format!("{m}m{seconds}s"),
        (h, m) => format!("{h}h{m}m{seconds}s"),
    }
}

fn fraction(n: f64) -> String {
    let text = format!("{n:.9}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Returns the command as shown in progress output: the shell form as written, the exec form as
/// JSON.
pub fn display(command: &Command) -> String {
    match command {
        Command::Shell(word) => word.text.clone(),
        Command::Exec(words) => serde_json::to_string(words).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_match_dockers_format() {
        let s = |v: &[&str]| v.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        assert_eq!(quoted_list(&s(&["a b", "c"])), r#"["a b" "c"]"#);
        let (mut args, mut env) = (Vars::default(), Vars::default());
        args.set("foo", "bar2");
        args.set("bar", "123");
        args.set("none", "");
        env.set("bar", "of the environment");
        assert_eq!(
            run(&args, &env, &s(&["/bin/sh", "-c", "ls /etc/"])),
            "RUN |3 foo=bar2 bar=of the environment none= /bin/sh -c ls /etc/ # buildkit"
        );
        let sources = s(&["a", "b"]);
        let copy = CopyWords {
            add: false,
            others: &s(&["--from=COPY", "--link"]),
            parents: true,
            chown: Some("1:2"),
            chmod: Some("640"),
            sources: &sources,
            heredocs: &[],
            dest: "/d # buildkit",
        };
        assert_eq!(copy.created_by(), "COPY --parents --chown=1:2 --chmod=640 a b /d # buildkit # buildkit");
        assert_eq!(copy.instruction(), "COPY --from=COPY --link --parents --chown=1:2 --chmod=640 a b /d # buildkit");
        let check = HealthcheckConfig {
            test: s(&["CMD-SHELL", "x"]),
            interval: 300_000_000_000,
            timeout: 3_000_000_000,
            ..HealthcheckConfig::default()
        };
        assert_eq!(
            healthcheck(&check),
            "HEALTHCHECK {Test:[CMD-SHELL x] Interval:5m0s Timeout:3s StartPeriod:0s StartInterval:0s Retries:0}"
        );
        assert_eq!((duration(1_500_000_000), duration(500_000_000)), ("1.5s".into(), "500ms".into()));
    }
}
