//! Instructions that only change the image configuration.

use core::net::IpAddr;
use std::ops::RangeInclusive;

use rbuild_dockerfile::ast::{self, Command, Op, Word};
use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_image::HealthcheckConfig;
use serde_json::{Map, Value};

use crate::history;
use crate::planner::state::{Planned, Planner, StageState, all};

/// Applies an instruction that only changes the configuration.
pub(super) fn metadata(planner: &mut Planner<'_>, state: &mut StageState, i: &ast::Instruction) -> Planned<()> {
    let text = match &i.op {
        Op::User(word) => {
            let user = planner.word(state, word)?;
            state.config.config.user = user.clone();
            state.user_at = Some(word.span);
            format!("USER {user}")
        }
        Op::Expose(words) => expose(planner, state, words)?,
        Op::Volume(words) => volume(planner, state, words)?,
        Op::Shell(argv) => {
            state.config.config.shell = argv.clone();
            format!("SHELL [{}]", argv.join(" "))
        }
        Op::Stopsignal(word) => stop_signal(planner, state, word)?,
        Op::Healthcheck(check) => {
            let check = healthcheck(check);
            let text = history::healthcheck(&check);
            state.config.config.healthcheck = Some(check);
            text
        }
        Op::Cmd(command) => {
            let argv = planner.argv(state, command);
            state.cmd_set = true;
            let text = format!("CMD {}", history::quoted_list(&argv));
            state.config.config.cmd = Some(argv).filter(|argv| !argv.is_empty());
            state.config.config.args_escaped = true;
            text
        }
        Op::Entrypoint(command) => {
            let argv = planner.argv(state, command);
            let text = format!("ENTRYPOINT {}", history::quoted_list(&argv));
            state.config.config.entrypoint = Some(argv).filter(|argv| !argv.is_empty());
            if !state.cmd_set {
                state.config.config.cmd = None;
            }
            text
        }
        Op::Maintainer(word) => {
            state.config.author = Some(word.text.clone());
            format!("MAINTAINER {}", word.text)
        }
        Op::Onbuild { text, inner: _ } => {
            state.config.config.on_build.push(text.clone());
            return Ok(());
        }
        Op::Run(_) | Op::Copy(_) | Op::Workdir(_) | Op::Env(_) | Op::Label(_) | Op::Arg(_) => return Ok(()),
    };
    planner.push_empty_layer(state, text);
    Ok(())
}

fn expose(planner: &mut Planner<'_>, state: &mut StageState, words: &[Word]) -> Planned<String> {
    // BuildKit sorts the words as written; the ports of a range stay in ascending order.
    let mut words: Vec<_> = words.iter().collect();
    words.sort_by(|a, b| a.text.cmp(&b.text));
    let of_word = |word: &Word| -> Planned<Vec<String>> {
        let written = state.vars.expand_words(word, planner.file.escape)?;
        Ok(all(written.iter().map(|port| Ok(ports_of(port, word.span)?)))?.concat())
    };
    let ports = all(words.into_iter().map(of_word))?.concat();
    state.config.config.exposed_ports.extend(ports.iter().map(|p| (p.clone(), empty_object())));
    Ok(format!("EXPOSE [{}]", ports.join(" ")))
}

fn volume(planner: &mut Planner<'_>, state: &mut StageState, words: &[Word]) -> Planned<String> {
    let volumes = all(words.iter().map(|word| {
        let volume = planner.word(state, word)?.trim().to_string();
        if volume.is_empty() { Err(Diagnostic::new(word.span, "volume path is empty").into()) } else { Ok(volume) }
    }))?;
    state.config.config.volumes.extend(volumes.iter().map(|v| (v.clone(), empty_object())));
    Ok(format!("VOLUME [{}]", volumes.join(" ")))
}

fn stop_signal(planner: &mut Planner<'_>, state: &mut StageState, word: &Word) -> Planned<String> {
    let signal = planner.word(state, word)?;
    if !valid_signal(&signal) {
        let d = Diagnostic::new(word.span, format!("`{signal}` is not a signal"));
        return Err(d.help("use a name such as SIGTERM or a number from 1 to 64").into());
    }
    state.config.config.stop_signal = signal.clone();
    Ok(format!("STOPSIGNAL {signal}"))
}

fn healthcheck(check: &ast::Healthcheck) -> HealthcheckConfig {
    match check {
        ast::Healthcheck::None => HealthcheckConfig { test: vec!["NONE".into()], ..HealthcheckConfig::default() },
        ast::Healthcheck::Check { interval, timeout, start_period, start_interval, retries, command } => {
            let test = match command {
                Command::Exec(argv) => [vec!["CMD".to_string()], argv.clone()].concat(),
                Command::Shell(word) => vec!["CMD-SHELL".into(), word.text.clone()],
            };
            HealthcheckConfig {
                test,
                interval: *interval,
                timeout: *timeout,
                start_period: *start_period,
                start_interval: *start_interval,
                retries: *retries,
            }
        }
    }
}

/// Expands a port or range (`80`, `80/udp`, `8000-8010/tcp`) to one `port/protocol` entry per port.
///
/// In `address:host:container`, only the ports of the container apply, because an image cannot
/// publish ports. The other parts must be valid nevertheless.
fn ports_of(text: &str, span: Span) -> Result<Vec<String>, Diagnostic> {
    let bad = |reason: &str| {
        Diagnostic::new(span, format!("invalid port `{text}`: {reason}")).help("use the form 80, 80/udp or 8000-8010")
    };
    let mut parts = text.rsplitn(3, ':');
    let (container, published, address) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let (ports, proto) = container.split_once('/').unwrap_or((container, ""));
    let proto = if proto.is_empty() { "tcp".to_string() } else { proto.to_lowercase() };
    if !["tcp", "udp", "sctp"].contains(&proto.as_str()) {
        return Err(bad("protocol must be tcp, udp or sctp"));
    }
    let ports = port_range(ports).map_err(bad)?;
    if let Some(published) = published.filter(|published| !published.is_empty()) {
        let published = port_range(published).map_err(bad)?;
        if published.len() != ports.len() && ports.len() > 1 {
            return Err(bad("the ranges of ports on the host and in the container differ in length"));
        }
    }
    let address = address.unwrap_or_default();
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if !address.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(bad("the part before the ports is not an IP address"));
    }
    Ok(ports.map(|port| format!("{port}/{proto}")).collect())
}

/// Parses a port or a range of ports. Returns the reason if it is neither.
fn port_range(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let number = |s: &str| {
        let is_number = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let reason = if is_number { "port numbers range from 0 to 65535" } else { "it is not a number" };
        s.parse::<u16>().map_err(|_| reason)
    };
    let (low, high) = (number(low)?, number(high)?);
    if high < low { Err("range ends before it starts") } else { Ok(low..=high) }
}

fn valid_signal(text: &str) -> bool {
    const NAMES: [&str; 34] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "POLL", "PWR", "SYS",
    ];
    // Valid numbers depend on the machine that runs the image; only 0 is always wrong.
    if let Ok(n) = text.parse::<i64>() {
        return n != 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let beside = |base: &str, sign: char, most: u32| {
        name.strip_prefix(base).is_some_and(|rest| {
            let number = rest.strip_prefix(sign).and_then(|n| n.parse().ok());
            rest.is_empty() || number.is_some_and(|n| (1..=most).contains(&n))
        })
    };
    NAMES.contains(&name) || beside("RTMIN", '+', 15) || beside("RTMAX", '-', 14)
}

/// Returns an empty object: in a configuration, ports and volumes are keys with empty objects as
/// values.
fn empty_object() -> Value {
    Value::Object(Map::new())
}
