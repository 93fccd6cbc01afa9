//! Limits on the resources of a container: `--memory`, `--cpus` and `--pids-limit`.

use rbuild_dockerfile::Help;
use rbuild_engine::Invocation;
use rbuild_linux::{ControlGroup, GroupProblem};
use rbuild_plan::GroupLimits;
use rbuild_remedy::{Warning, sentence};

use crate::args::ContainerFlags;
use crate::ui::hints::{Hint, VerbRemedy};
use crate::ui::terminal;

/// Returns the limits that the flags set.
pub fn limits(flags: &ContainerFlags) -> GroupLimits {
    GroupLimits {
        memory: flags.memory.and_then(|limit| limit.0),
        milli_cpus: flags.cpus.and_then(|limit| limit.0),
        processes: flags.pids_limit.and_then(|limit| limit.0),
    }
}

/// Creates the control group of a container with limits. If that is not possible, the limits do not
/// apply: warns once.
pub fn group(limits: GroupLimits) -> Option<ControlGroup> {
    if limits.is_empty() {
        return None;
    }
    match ControlGroup::create(limits) {
        Ok(group) => Some(group),
        Err(problem) => {
            terminal::warning(without_effect(limits, &problem));
            None
        }
    }
}

fn without_effect(limits: GroupLimits, problem: &GroupProblem) -> Warning<Help> {
    let flags = [("--memory", limits.memory), ("--cpus", limits.milli_cpus), ("--pids-limit", limits.processes)];
    let flags: Vec<&str> = flags.iter().filter(|(_, limit)| limit.is_some()).map(|(flag, _)| *flag).collect();
    let verb = if flags.len() == 1 { "has" } else { "have" };
    let text = format!("{} {verb} no effect: {}", flags.join(", "), sentence(problem));
    let help = match problem {
        GroupProblem::NotDelegated => Some(Hint::from(VerbRemedy::DelegateGroup).into()),
        GroupProblem::NoController(_) | GroupProblem::Kernel(_) => None,
    };
    Warning { text, help }
}

/// Reports that the memory of a container was exhausted, if its command was killed.
pub fn report(code: i32, invocation: &Invocation) {
    if code == KILLED && invocation.group.as_ref().is_some_and(|group| group.memory_kills() > 0) {
        terminal::error(OUT_OF_MEMORY, Some(&VerbRemedy::RaiseMemory.into()));
    }
}

/// Exit code of a command that SIGKILL ended.
const KILLED: i32 = 128 + 9;

const OUT_OF_MEMORY: &str = "the command was killed: the container exceeded its limit on memory";

#[cfg(test)]
mod tests {
    use rbuild_testkit::assert_recorded;

    use super::*;

    #[test]
    fn limits_without_effect_are_reported_as_recorded() {
        let memory = GroupLimits { memory: Some(1), ..GroupLimits::default() };
        let all = GroupLimits { milli_cpus: Some(1), processes: Some(1), ..memory };
        let warnings = [(memory, GroupProblem::NoController("memory")), (all, GroupProblem::NotDelegated)];
        let warnings =
            warnings.map(|(limits, problem)| terminal::warning_text(&without_effect(limits, &problem), false));
        let error = terminal::error_text(OUT_OF_MEMORY, Some(&VerbRemedy::RaiseMemory.into()), false);
        assert_recorded!("limits", warnings.concat() + &error);
    }
}
