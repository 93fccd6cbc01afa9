//! Values that are parsed in the same way in flags, variables and the configuration file.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use rbuild_engine::PullPolicy;
use rbuild_image::{Reference, ReferenceError};
use rbuild_layer::Limits;
use rbuild_linux::{Timestamp, signal_number};
use rbuild_plan::NetworkMode;
use rbuild_remedy::{ImageRemedy, Remedy};
use rbuild_sandbox::IsolationRequest;
use rbuild_store::RestartPolicy;

use crate::exit::Failure;
use crate::ui::hints::{self, Hint, ValueRemedy, VerbRemedy};

/// The reason why a text is not a value, and a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadValue {
    pub problem: String,
    pub hint: Hint,
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for BadValue {}

impl BadValue {
    /// Returns the error for a setting with this value. `setting` is its text as the user wrote it,
    /// for example `--network bridge`.
    pub fn of(self, setting: impl fmt::Display) -> Failure {
        Failure::usage(format!("{setting}: {}", self.problem)).help(self.hint)
    }
}

/// Returns the meaning of a word. `kind` names the kind of words in messages. Hints list the first
/// word of each meaning. The others are alternative spellings, which are accepted and only
/// suggested if the text is similar.
pub fn choice<T: Copy + PartialEq>(kind: &str, words: &[(&str, T)], text: &str) -> Result<T, BadValue> {
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*meaning);
    }
    let is_first = |i: usize| words.iter().position(|(_, meaning)| *meaning == words[i].1) == Some(i);
    let shown: Vec<&str> = (0..words.len()).filter(|i| is_first(*i)).map(|i| words[i].0).collect();
    let close = rbuild_dockerfile::closest(text, words.iter().map(|(word, _)| *word));
    let hint = close.map_or_else(|| hints::suggestion(text, &shown), hints::did_you_mean);
    Err(BadValue { problem: format!("unknown {kind}"), hint })
}

/// Returns the error for the key of an option that is not one of `known`.
pub fn unknown_option(key: &str, known: &[&str]) -> BadValue {
    BadValue { problem: format!("unknown option `{key}`"), hint: hints::suggestion(key, known) }
}

pub fn isolation(text: &str) -> Result<IsolationRequest, BadValue> {
    use IsolationRequest::{Auto, Chroot, SingleId, Userns};
    let words = [("auto", Auto), ("userns", Userns), ("single-id", SingleId), ("chroot", Chroot), ("", Auto)];
    choice("mode", &words, text)
}

pub fn network(text: &str) -> Result<NetworkMode, BadValue> {
    use NetworkMode::{Host, Isolated, None};
    // `private` is the name in buildah and podman.
    let words = [("host", Host), ("isolated", Isolated), ("none", None), ("default", Host), ("private", Isolated)];
    choice("mode", &words, text)
}

/// Parses the network mode of a container. Docker's network is a bridge; the isolated one has the
/// same properties for a container.
pub fn container_network(text: &str) -> Result<NetworkMode, BadValue> {
    use NetworkMode::Isolated;
    match text {
        // The words of podman for the program that connects the network.
        "bridge" | "slirp4netns" | "pasta" => Ok(Isolated),
        text if text.starts_with("container:") => {
            let problem = "containers do not share their networks".into();
            Err(BadValue { problem, hint: ValueRemedy::ShareNetwork.into() })
        }
        text => network(text),
    }
}

/// Parses the address of a name server.
pub fn address(text: &str) -> Result<IpAddr, BadValue> {
    let bad = |_| BadValue { problem: "not an IP address".into(), hint: ValueRemedy::AddressForm.into() };
    text.parse().map_err(bad)
}

pub fn pull(text: &str) -> Result<PullPolicy, BadValue> {
    use PullPolicy::{Always, Missing, Never};
    // In docker, the flag is a switch.
    if let Some(on) = rbuild_dockerfile::parse_bool(text) {
        return Ok(if on { Always } else { Missing });
    }
    // In podman, `newer` does not fail if the registry cannot be reached.
    if text == "newer" {
        return Err(BadValue { problem: "unknown value".into(), hint: ValueRemedy::PullAlways.into() });
    }
    let words = [
        ("always", Always),
        ("missing", Missing),
        ("never", Never),
        ("true", Always),
        ("false", Missing),
        ("", Missing),
    ];
    choice("value", &words, text)
}

/// Returns true for the modes that git records.
pub fn context_modes(text: &str) -> Result<bool, BadValue> {
    choice("modes", &[("as-is", false), ("git", true), ("", false)], text)
}

/// Parses a size such as `64m` in bytes. Zero is an error.
pub fn size(text: &str) -> Result<u64, BadValue> {
    let bad = || BadValue { problem: "not a size".into(), hint: ValueRemedy::SizeForm.into() };
    rbuild_dockerfile::parse_size(text).filter(|size| *size > 0).ok_or_else(bad)
}

/// Parses the name of an image.
pub fn image_name(text: &str) -> Result<Reference, Failure> {
    text.parse().map_err(|e| invalid_name(text, &e))
}

/// Parses a name that an image is given here. Fails if it contains a digest: the digests of an
/// image under a name are those that its registry has.
pub fn new_image_name(text: &str) -> Result<Reference, Failure> {
    let name = image_name(text)?;
    match (name.is_pinned(), name.tag()) {
        (false, _) => Ok(name),
        (true, tag) => {
            let without = name.familiar_name() + &tag.map_or(String::new(), |tag| format!(":{tag}"));
            let message = format!("`{text}` contains a digest, which an image gets from a registry");
            Err(Failure::usage(message).help(hints::did_you_mean(&without)))
        }
    }
}

/// Returns the failure for a text that is not the name of an image, with the name that was probably
/// meant.
pub fn invalid_name(text: &str, e: &ReferenceError) -> Failure {
    let failure = Failure::usage(e.to_string());
    let lower = text.to_lowercase();
    if lower.parse::<Reference>().is_ok() {
        return failure.help(hints::did_you_mean(&lower));
    }
    if text.contains('@') {
        failure.help(ValueRemedy::DigestForm)
    } else {
        failure.help(Remedy::Image(ImageRemedy::CorrectName))
    }
}

/// Parses the value of a switch.
pub fn switch(text: &str) -> Result<bool, BadValue> {
    let bad = || BadValue { problem: "unknown value".into(), hint: hints::suggestion(text, &["true", "false"]) };
    rbuild_dockerfile::parse_bool(text).ok_or_else(bad)
}

/// Parses a duration, and returns its seconds. Days have 24 hours.
pub fn duration_seconds(text: &str) -> Option<u64> {
    if let Some(days) = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok()) {
        return days.checked_mul(86_400);
    }
    text.parse::<jiff::SignedDuration>().ok()?.as_secs().try_into().ok()
}

/// Parses a time in seconds.
pub fn seconds(text: &str) -> Result<u64, BadValue> {
    text.parse()
        .map_err(|_| BadValue { problem: "not a number of seconds".into(), hint: ValueRemedy::SecondsForm.into() })
}

/// Parses a number of concurrent steps.
pub fn jobs(text: &str) -> Result<usize, BadValue> {
    let bad = || BadValue { problem: "not a number of steps".into(), hint: ValueRemedy::AtLeastOne.into() };
    text.parse().ok().filter(|jobs| *jobs > 0).ok_or_else(bad)
}

/// Applies `NAME=VALUE` to the limits; the value is a number or a size.
pub fn limit(mut limits: Limits, text: &str) -> Result<Limits, BadValue> {
    let bad = |problem: String, hint: Hint| BadValue { problem, hint };
    let nearest = || rbuild_dockerfile::closest(text, Limits::NAMES).unwrap_or("bytes");
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| bad("not of the form NAME=VALUE".into(), ValueRemedy::LimitPair { name: nearest() }.into()))?;
    let Some(limit) = limits.of(name) else {
        return Err(bad(format!("unknown limit `{name}`"), hints::suggestion(name, &Limits::NAMES)));
    };
    let number = value.parse().ok().or_else(|| rbuild_dockerfile::parse_size(value));
    *limit = number.ok_or_else(|| bad(format!("`{value}` is not a number"), ValueRemedy::LimitForm.into()))?;
    Ok(limits)
}

/// The number of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalNumber(pub i32);

/// Parses the name of a signal, with or without `SIG`, or its number.
pub fn signal(text: &str) -> Result<SignalNumber, BadValue> {
    let bad = || BadValue { problem: "unknown signal".into(), hint: ValueRemedy::SignalForm.into() };
    signal_number(text).map(SignalNumber).ok_or_else(bad)
}

/// Parses a restart policy of a container.
pub fn restart(text: &str) -> Result<RestartPolicy, BadValue> {
    let (word, max) = text.split_once(':').map_or((text, None), |(word, max)| (word, Some(max)));
    if word == "on-failure"
        && let Some(max) = max
    {
        let bad =
            |_| BadValue { problem: "not a number of restarts".into(), hint: hints::use_one_of(&["on-failure:5"]) };
        return max.parse().map(|max| RestartPolicy::OnFailure { max: Some(max) }).map_err(bad);
    }
    let words = [
        ("no", RestartPolicy::No),
        ("on-failure", RestartPolicy::OnFailure { max: None }),
        ("always", RestartPolicy::Always),
        ("unless-stopped", RestartPolicy::UnlessStopped),
    ];
    choice("restart policy", &words, text)
}

/// A time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nanoseconds(pub i64);

/// Parses a time of a health check. As in a Dockerfile, it is 0 or at least a millisecond.
pub fn check_time(text: &str) -> Result<Nanoseconds, BadValue> {
    const MIN: i64 = 1_000_000;
    let bad = |problem: String| BadValue { problem, hint: ValueRemedy::CheckTimeForm.into() };
    match rbuild_dockerfile::parse_duration(text) {
        Ok(time @ (0 | MIN..)) => Ok(Nanoseconds(time)),
        Ok(_) => Err(bad("neither 0 nor at least 1ms".into())),
        Err(e) => Err(bad(format!("not a time: {e}"))),
    }
}

/// Parses a number of failed checks.
pub fn retries(text: &str) -> Result<u32, BadValue> {
    let bad = |_| BadValue { problem: "not a number of checks".into(), hint: ValueRemedy::RetriesForm.into() };
    text.parse().map_err(bad)
}

/// A limit on a resource of a container; `None` for unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimit(pub Option<u64>);

/// Parses a limit on memory in bytes. As in docker, zero means unlimited.
pub fn memory(text: &str) -> Result<GroupLimit, BadValue> {
    if text == "0" { Ok(GroupLimit(None)) } else { size(text).map(|size| GroupLimit(Some(size))) }
}

/// Parses a number of processors, and returns it in thousandths. As in docker, zero means
/// unlimited.
pub fn cpus(text: &str) -> Result<GroupLimit, BadValue> {
    let bad = || BadValue { problem: "not a number of processors".into(), hint: ValueRemedy::CpusForm.into() };
    let number: f64 = text.parse().map_err(|_| bad())?;
    if !(0.0..=1e6).contains(&number) {
        return Err(bad());
    }
    let thousandths = (number * 1000.0).round() as u64;
    Ok(GroupLimit(Some(thousandths.max(1)).filter(|_| number > 0.0)))
}

/// Parses a number of processes. As in docker, zero and -1 mean unlimited.
pub fn processes(text: &str) -> Result<GroupLimit, BadValue> {
    let bad = || BadValue { problem: "not a number".into(), hint: ValueRemedy::NumberOrUnlimited.into() };
    match text {
        "0" | "-1" => Ok(GroupLimit(None)),
        text => text.parse().map(|number| GroupLimit(Some(number))).map_err(|_| bad()),
    }
}

/// Returns the time that lies a duration such as `24h` in the past, in seconds since the Unix
/// epoch. A negative duration is an error, because every entry is older than a time in the future.
pub fn until(filter: &str, span: &str) -> Result<i64, Failure> {
    let bad = || {
        let failure = Failure::usage(format!("--filter {filter}: `{span}` is not a duration"));
        failure.help(VerbRemedy::DurationForm)
    };
    let span = span.parse::<jiff::SignedDuration>().ok().filter(|span| !span.is_negative()).ok_or_else(bad)?;
    Ok(Timestamp::now().sec - span.as_secs())
}

/// Parses the path of a page. A name with another ending would not be that of its content.
pub fn html_file(text: &str) -> Result<PathBuf, BadValue> {
    let path = PathBuf::from(text);
    let end = path.extension().map(|end| end.to_string_lossy().to_lowercase());
    match end.as_deref() {
        Some("json" | "txt" | "csv" | "md" | "xml" | "yaml" | "yml" | "svg" | "pdf") => {
            Err(BadValue { problem: "the page is HTML".into(), hint: ValueRemedy::HtmlName.into() })
        }
        _ => Ok(path),
    }
}

/// A number of lines; `None` for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lines(pub Option<usize>);

/// Parses a number of lines, or `all`. As in docker, a negative number means all.
pub fn lines(text: &str) -> Result<Lines, BadValue> {
    let bad = |_| BadValue { problem: "not a number of lines".into(), hint: ValueRemedy::LinesForm.into() };
    match text {
        "all" => Ok(Lines(None)),
        text => text.parse::<i64>().map(|lines| Lines(usize::try_from(lines).ok())).map_err(bad),
    }
}

/// A time in nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i128);

/// Returns the current time.
pub fn now() -> Moment {
    let now = Timestamp::now();
    Moment(i128::from(now.sec) * 1_000_000_000 + i128::from(now.nsec))
}

/// Parses a time, as docker does: a duration before now, a time with or without a time zone, a
/// date, or seconds since the Unix epoch.
pub fn moment(text: &str) -> Result<Moment, BadValue> {
    moment_at(text, now().0)
        .ok_or_else(|| BadValue { problem: "not a duration or a time".into(), hint: ValueRemedy::MomentForm.into() })
}

fn moment_at(text: &str, now: i128) -> Option<Moment> {
    let local = |time: jiff::civil::DateTime| time.to_zoned(jiff::tz::TimeZone::system()).ok();
    let seconds = || text.parse::<u32>().ok().map(|seconds| i128::from(seconds) * 1_000_000_000);
    let duration = || text.parse::<jiff::SignedDuration>().ok().map(|span| now - span.as_nanos());
    let time = || text.parse::<jiff::Timestamp>().ok().map(|time| time.as_nanosecond());
    let civil = || Some(local(text.parse().ok()?)?.timestamp().as_nanosecond());
    seconds().or_else(duration).or_else(time).or_else(civil).map(Moment)
}

/// The type of an object that `inspect` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectType {
    Image,
    Container,
}

/// Parses the type of an object.
pub fn object_type(text: &str) -> Result<ObjectType, BadValue> {
    choice("type", &[("image", ObjectType::Image), ("container", ObjectType::Container)], text)
}

/// Parses a format that can only be JSON.
pub fn json_only(text: &str) -> Result<String, BadValue> {
    choice("format", &[("json", ())], text).map(|()| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_the_forms_of_docker() {
        let second = 1_000_000_000;
        let now = 1000 * second;
        for (text, expected) in [
            ("10s", Some(990 * second)),
            ("1m30s", Some(910 * second)),
            ("1970-01-01T00:00:05Z", Some(5 * second)),
            ("1970-01-01T01:00:05.5+01:00", Some(5 * second + second / 2)),
            ("7", Some(7 * second)),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(moment_at(text, now).map(|moment| moment.0), expected, "{text}");
        }
        assert!(moment_at("1999-12-31", now).is_some() && moment_at("1999-12-31T10:00:00", now).is_some());
    }

    #[test]
    fn durations_have_days() {
        for (text, want) in [("30d", Some(2_592_000)), ("1h30m", Some(5400)), ("d", None), ("-1h", None), ("x", None)] {
            assert_eq!(duration_seconds(text), want, "{text}");
        }
    }

    #[test]
    fn misspelled_words_have_a_suggestion_and_others_a_list() {
        let hint = |bad: Result<_, BadValue>| bad.map(|_: IsolationRequest| ()).unwrap_err().hint.to_string();
        assert_eq!(hint(isolation("usern")), "did you mean `userns`?");
        assert_eq!(hint(isolation("jail")), "use auto, userns, single-id or chroot");
        assert_eq!(network("isolate").unwrap_err().hint.to_string(), "did you mean `isolated`?");
        assert_eq!(network("bridge").unwrap_err().hint.to_string(), "use host, isolated or none");
        for (text, close) in [("allways", "always"), ("ture", "true"), ("flase", "false")] {
            assert_eq!(pull(text).unwrap_err().hint.to_string(), format!("did you mean `{close}`?"));
        }
        assert_eq!(pull("x").unwrap_err().hint.to_string(), "use always, missing or never");
        assert_eq!((network("private"), pull("false")), (Ok(NetworkMode::Isolated), Ok(PullPolicy::Missing)));
        assert_eq!(pull("newer").unwrap_err().hint, ValueRemedy::PullAlways.into());
        assert_eq!((pull("T"), pull("0")), (Ok(PullPolicy::Always), Ok(PullPolicy::Missing)));
        assert_eq!(isolation(""), Ok(IsolationRequest::Auto));
        assert!(size("0").is_err() && size("1x").is_err() && size("2k") == Ok(2048));
    }

    #[test]
    fn invalid_names_of_images_have_a_hint() {
        let hint = |text: &str| image_name(text).unwrap_err().help.unwrap().to_string();
        assert_eq!(hint("UP"), "did you mean `up`?");
        assert_eq!(hint("ghcr.io/Me/App:V1"), "did you mean `ghcr.io/me/app:v1`?");
        let form = "use the form NAME@sha256: followed by the 64 digits of the digest";
        assert_eq!((hint("a@sha256"), hint("a@sha256:12")), (form.to_string(), form.to_string()));
        let foreign = format!("me/a@sha256:{}", "0".repeat(64));
        assert!(image_name(&foreign).is_ok());
        assert_eq!(new_image_name(&foreign).unwrap_err().help.unwrap().to_string(), "did you mean `me/a`?");
        let name = "use the form NAME[:TAG] with a name in lower case, for example team/app:1.0";
        assert_eq!((hint("a:b:c"), hint("A b")), (name.to_string(), name.to_string()));
    }

    #[test]
    fn limits_are_set_by_name() {
        let limits = limit(Limits::default(), "bytes=10g").unwrap();
        assert_eq!(limits, Limits { bytes: 10 << 30, ..Limits::default() });
        assert_eq!(limit(limits, "entries=7").unwrap().entries, 7);
        for (text, want) in [
            ("bytes", "for example bytes=20g"),
            ("entires", "for example entries="),
            ("entires=1", "did you mean `entries`"),
            ("path=x", "not a number"),
        ] {
            let BadValue { problem, hint } = limit(Limits::default(), text).unwrap_err();
            assert!(format!("{problem} {hint}").contains(want), "{problem} {hint}");
        }
    }
}
