//! Reduces a failing case.

use std::time::{Duration, Instant};

use crate::script::{Case, Kind, Output};

/// Omits rounds, changes and instructions that are not needed for the failure.
pub fn shrink(case: Case, time: Duration, fails: &dyn Fn(&Case) -> bool) -> Case {
    let end = Instant::now() + time;
    let mut best = case;
    loop {
        let mut better = false;
        let mut at = 0;
        while let Some(smaller) = smaller(&best, at) {
            if Instant::now() > end {
                return best;
            }
            if fails(&smaller) {
                (best, better) = (smaller, true);
            } else {
                at += 1;
            }
        }
        if !better {
            return best;
        }
    }
}

/// Returns the case without its `at`-th part, or `None` if there are fewer parts.
fn smaller(case: &Case, at: usize) -> Option<Case> {
    parts(case).into_iter().nth(at).map(|cut| {
        let mut case = case.clone();
        cut(&mut case);
        case
    })
}

type Cut = Box<dyn Fn(&mut Case)>;

fn parts(case: &Case) -> Vec<Cut> {
    let mut cuts: Vec<Cut> = Vec::new();
    // The changes of an omitted round are made before the next one.
    for number in (0..case.rounds.len().saturating_sub(1)).rev() {
        cuts.push(Box::new(move |case| {
            let round = case.rounds.remove(number);
            let next = &mut case.rounds[number];
            next.ops = [round.ops, round.racing, std::mem::take(&mut next.ops)].concat();
        }));
    }
    let stages = case.rounds.iter().map(|r| r.file.stages.len()).max().unwrap_or(0);
    for stage in 0..stages {
        cuts.push(Box::new(move |case| {
            for round in &mut case.rounds {
                if let Some(stage) = round.file.stages.get_mut(stage) {
                    stage.steps.clear();
                }
            }
        }));
    }
    if stages > 1 {
        cuts.push(Box::new(|case| case.rounds.iter_mut().for_each(|r| drop(r.file.stages.pop()))));
    }
    let mut ids: Vec<usize> =
        case.rounds.iter().flat_map(|r| &r.file.stages).flat_map(|s| &s.steps).map(|s| s.id).collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        cuts.push(Box::new(move |case| {
            case.rounds.iter_mut().flat_map(|r| &mut r.file.stages).for_each(|s| s.steps.retain(|s| s.id != id));
        }));
        words(case, id, &mut cuts);
    }
    rounds(case, &mut cuts);
    cuts
}

/// Collects the flags, sources, documents and mounts of one instruction.
fn words(case: &Case, id: usize, cuts: &mut Vec<Cut>) {
    let steps = case.rounds.iter().flat_map(|r| &r.file.stages).flat_map(|s| &s.steps).filter(|s| s.id == id);
    let most = |count: fn(&Kind) -> usize| steps.clone().map(|s| count(&s.kind)).max().unwrap_or(0);
    let mut cut = |many: usize, drop_one: fn(&mut Kind, usize)| {
        for n in 0..many {
            cuts.push(Box::new(move |case| {
                let steps = case.rounds.iter_mut().flat_map(|r| &mut r.file.stages).flat_map(|s| &mut s.steps);
                steps.filter(|s| s.id == id).for_each(|s| drop_one(&mut s.kind, n));
            }));
        }
    };
    cut(most(|k| if let Kind::Copy(c) = k { c.flags.len() } else { 0 }), |k, n| {
        if let Kind::Copy(copy) = k
            && n < copy.flags.len()
        {
            copy.flags.remove(n);
        }
    });
    cut(most(|k| if let Kind::Copy(c) = k { c.sources.len() } else { 0 }), |k, n| {
        if let Kind::Copy(copy) = k
            && n < copy.sources.len()
            && copy.sources.len() + copy.documents.len() > 1
        {
            copy.sources.remove(n);
        }
    });
    cut(most(|k| if let Kind::Copy(c) = k { c.documents.len().min(1) } else { 0 }), |k, _| {
        if let Kind::Copy(copy) = k
            && !copy.sources.is_empty()
        {
            copy.documents.clear();
        }
    });
    cut(most(|k| if let Kind::Run { mounts, .. } = k { mounts.len() } else { 0 }), |k, n| {
        if let Kind::Run { mounts, .. } = k
            && n < mounts.len()
        {
            mounts.remove(n);
        }
    });
}

/// Collects the changes, arguments and outputs of each round.
fn rounds(case: &Case, cuts: &mut Vec<Cut>) {
    for (number, round) in case.rounds.iter().enumerate() {
        let mut cut = |yes: bool, change: fn(&mut crate::script::Round)| {
            if yes {
                cuts.push(Box::new(move |case: &mut Case| change(&mut case.rounds[number])));
            }
        };
        cut(round.twin.is_some(), |r| r.twin = None);
        cut(round.prune, |r| r.prune = false);
        cut(!round.racing.is_empty(), |r| r.ops.append(&mut r.racing));
        cut(!round.args.is_empty(), |r| r.args.clear());
        cut(round.output != Output::Tar, |r| r.output = Output::Tar);
        cut(!matches!(round.output, Output::Tar | Output::Tag), |r| r.output = Output::Tag);
        cut(round.ops.len() > 3, |r| drop(r.ops.drain(..r.ops.len() / 2)));
        cut(round.ops.len() > 3, |r| r.ops.truncate(r.ops.len() / 2));
        for n in 0..round.ops.len() {
            cuts.push(Box::new(move |case| drop(case.rounds[number].ops.remove(n))));
        }
        for n in 0..round.racing.len() {
            cuts.push(Box::new(move |case| drop(case.rounds[number].racing.remove(n))));
        }
    }
}
