//! The verbs `top` and `stats`: the processes of containers, and what they use.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use rbuild_image::human_size;
use rbuild_linux::{ContainerProcess, Timestamp, clock, container_processes, memory_of_group};
use rbuild_plan::NetworkMode;
use rbuild_store::{Container, RunSettings, Store};
use serde_json::{Value, json};

use crate::args::{StatsArgs, TopArgs};
use crate::commands::containers::lookup;
use crate::commands::images::bad_format;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::template;
use crate::ui::terminal;

/// Time over which the use of processors is measured.
const INTERVAL: Duration = Duration::from_secs(1);

/// Clears the terminal, and moves the cursor to its beginning.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub fn top(settings: &Settings, args: TopArgs) -> Result<u8, Failure> {
    const USUAL: &str = "table {{.UID}}\t{{.PID}}\t{{.PPID}}\t{{.C}}\t{{.STIME}}\t{{.TTY}}\t{{.TIME}}\t{{.CMD}}";
    let store = settings.open()?;
    let container = lookup::find(&store, &args.container)?;
    let processes = processes_of(&store, &container)?;
    let headings = json!({
        "UID": "UID", "PID": "PID", "PPID": "PPID", "C": "C", "STIME": "STIME", "TTY": "TTY", "TIME": "TIME",
        "CMD": "CMD",
    });
    let now = Now::read();
    let rows: Vec<Value> = processes.iter().map(|process| now.row(process)).collect();
    let format = args.format.as_deref().unwrap_or(USUAL);
    terminal::out(&template::rows_or_table(format, USUAL, &headings, &rows).map_err(bad_format)?);
    Ok(code::OK)
}

/// Returns the processes of a running container.
fn processes_of(store: &Store, container: &Container) -> Result<Vec<ContainerProcess>, Failure> {
    let (started, process) = lookup::running_process(store, container)?;
    let failed = |e| Failure::caused(format!("cannot list the processes of container `{}`", container.name), &e);
    container_processes(started.pid, &process).map_err(failed)
}

/// The current time.
struct Now {
    ticks_per_second: u64,
    /// Clock ticks since the boot.
    ticks: u64,
    zoned: jiff::Zoned,
}

impl Now {
    fn read() -> Now {
        let ticks_per_second = clock::ticks_per_second();
        let ticks = clock::since_boot().as_millis() as u64 * ticks_per_second / 1000;
        let now = jiff::Timestamp::from_second(Timestamp::now().sec).unwrap_or_default();
        Now { ticks_per_second, ticks, zoned: now.to_zoned(jiff::tz::TimeZone::system()) }
    }

    /// Describes a process as ps(1) does with `-ef`.
    fn row(&self, process: &ContainerProcess) -> Value {
        let age = self.ticks.saturating_sub(process.start);
        let share = (100 * process.ticks).checked_div(age).unwrap_or(0).min(99);
        let seconds = process.ticks / self.ticks_per_second;
        let age = i64::try_from(age / self.ticks_per_second).unwrap_or(i64::MAX);
        let start = self.zoned.checked_sub(jiff::SignedDuration::from_secs(age)).unwrap_or(self.zoned.clone());
        let start = if start.date() == self.zoned.date() { start.strftime("%H:%M") } else { start.strftime("%b%d") };
        json!({
            "UID": process.user.to_string(), "PID": process.pid.to_string(), "PPID": process.parent.to_string(),
            "C": share.to_string(), "STIME": start.to_string(),
            "TTY": process.terminal.map_or("?".to_string(), |number| format!("pts/{number}")),
            "TIME": format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
            "CMD": process.command,
        })
    }
}

pub fn stats(settings: &Settings, args: StatsArgs) -> Result<u8, Failure> {
    let redraws = !args.no_stream && std::io::stdout().is_terminal();
    let mut before = measured(settings, &args)?;
    loop {
        std::thread::sleep(INTERVAL);
        let now = measured(settings, &args)?;
        let rows: Vec<Value> = now.iter().map(|sample| sample.row(&before, args.no_trunc)).collect();
        let table = shown_stats(&args, &rows)?;
        if !redraws {
            terminal::out(&table);
            return Ok(code::OK);
        }
        terminal::out(&format!("{CLEAR}{table}"));
        before = now;
    }
}

fn shown_stats(args: &StatsArgs, rows: &[Value]) -> Result<String, Failure> {
    const USUAL: &str =
        "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";
    let headings = json!({
        "Container": "CONTAINER", "ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %",
        "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
    });
    let format = args.format.as_deref().unwrap_or(USUAL);
    template::rows_or_table(format, USUAL, &headings, rows).map_err(bad_format)
}

/// The resources that a container has used until some moment.
struct Sample {
    container: Container,
    at: Instant,
    processes: Vec<ContainerProcess>,
    memory: u64,
    max_memory: u64,
    /// Bytes received and sent.
    network: (u64, u64),
}

/// Measures the containers that the command line names, or all that run.
fn measured(settings: &Settings, args: &StatsArgs) -> Result<Vec<Sample>, Failure> {
    let store = settings.open()?;
    if args.containers.is_empty() {
        let all = store.containers().list()?;
        // One that ends meanwhile is omitted.
        return Ok(all.into_iter().filter_map(|container| Sample::of(&store, container).ok()).collect());
    }
    args.containers.iter().map(|wanted| Sample::of(&store, lookup::find(&store, wanted)?)).collect()
}

impl Sample {
    fn of(store: &Store, container: Container) -> Result<Sample, Failure> {
        let started = lookup::running(store, &container)?;
        let processes = processes_of(store, &container)?;
        let run = store.containers().settings(&container.id)?.unwrap_or_default();
        let own = memory_of_group(started.pid);
        let memory = own.unwrap_or_else(|| processes.iter().map(|process| process.memory).sum());
        let max_memory = run.limits.memory.unwrap_or_else(machine_memory);
        let network = if has_own_network(&run) { traffic(started.pid) } else { (0, 0) };
        Ok(Sample { container, at: Instant::now(), processes, memory, max_memory, network })
    }

    /// Describes the use since an earlier measurement, as docker does.
    fn row(&self, earlier: &[Sample], whole: bool) -> Value {
        let id = &self.container.id;
        let before = earlier.iter().find(|sample| sample.container.id == *id);
        let share = before.map_or(0.0, |before| {
            let seconds = self.at.duration_since(before.at).as_secs_f64();
            100.0 * ticks_since(&before.processes, &self.processes) as f64 / clock::ticks_per_second() as f64 / seconds
        });
        let disk = |part: fn(&ContainerProcess) -> u64| human_size(self.processes.iter().map(part).sum());
        json!({
            "Container": self.container.name, "ID": if whole { id.hex() } else { id.short() },
            "Name": self.container.name,
            "CPUPerc": format!("{share:.2}%"),
            "MemUsage": format!("{} / {}", binary_size(self.memory), binary_size(self.max_memory)),
            "MemPerc": format!("{:.2}%", 100.0 * self.memory as f64 / self.max_memory.max(1) as f64),
            "NetIO": format!("{} / {}", human_size(self.network.0), human_size(self.network.1)),
            "BlockIO": format!("{} / {}", disk(|process| process.disk.0), disk(|process| process.disk.1)),
            "PIDs": self.processes.iter().map(|process| process.threads).sum::<u64>().to_string(),
        })
    }
}

/// Returns the clock ticks that processes have used since an earlier measurement.
fn ticks_since(before: &[ContainerProcess], now: &[ContainerProcess]) -> u64 {
    let earlier = |process: &ContainerProcess| {
        before
            .iter()
            .find(|other| (other.pid, other.start) == (process.pid, process.start))
            .map_or(0, |other| other.ticks)
    };
    now.iter().map(|process| process.ticks.saturating_sub(earlier(process))).sum()
}

fn has_own_network(run: &RunSettings) -> bool {
    NetworkMode::of_name(&run.network).is_some_and(|network| network != NetworkMode::Host)
}

/// Returns the memory of this machine in bytes.
fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes: u64 = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0);
    kilobytes * 1024
}

/// Returns the bytes that the network interfaces of a process other than the loopback interface
/// have received and sent.
fn traffic(pid: u32) -> (u64, u64) {
    sum_of_traffic(&std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default())
}

fn sum_of_traffic(text: &str) -> (u64, u64) {
    let rows = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    rows.fold((0, 0), |(received, sent), (_, numbers)| {
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
        (received + at(0), sent + at(8))
    })
}

/// Formats a size in powers of 1024, as docker does for memory.
fn binary_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut number = bytes as f64;
    let mut unit = 0;
    while number >= 1024.0 && unit + 1 < UNITS.len() {
        number /= 1024.0;
        unit += 1;
    }
    let digits = if number >= 1000.0 || unit == 0 { 0 } else { 3 - (number.max(1.0).log10() as usize).min(2) - 1 };
    format!("{number:.digits$}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use rbuild_linux::process::own_pidfd;

    use super::*;

    #[test]
    fn sizes_of_memory_have_binary_units() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.00KiB"),
            (3 * 1024 * 1024 / 2, "1.50MiB"),
            (24 << 20, "24.0MiB"),
            (1000 << 30, "1000GiB"),
        ] {
            assert_eq!(binary_size(bytes), text);
        }
    }

    #[test]
    fn traffic_is_that_of_all_interfaces_but_the_loopback_one() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets|bytes\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  \
                    tap0: 100 2 0 0 0 0 0 0 50 1 0 0 0 0 0 0\n  eth1: 1 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0\n";
        assert_eq!(sum_of_traffic(text), (101, 52));
    }

    #[test]
    fn processor_time_is_that_of_new_and_known_processes() {
        let processes = container_processes(std::process::id(), &own_pidfd().unwrap()).unwrap();
        let mut later: Vec<ContainerProcess> = processes.clone();
        later.iter_mut().for_each(|process| process.ticks += 5);
        assert_eq!(ticks_since(&processes, &later), 5 * processes.len() as u64);
        assert_eq!(ticks_since(&[], &later), later.iter().map(|process| process.ticks).sum::<u64>());
    }
}
