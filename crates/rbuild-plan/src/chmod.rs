//! Parses and applies `--chmod` modes: octal, or symbolic as chmod(1) reads it under umask 0.

/// A `--chmod` mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chmod {
    Octal(u32),
    Symbolic(Symbolic),
}

/// A symbolic mode, parsed into changes that are applied in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbolic {
    text: String,
    changes: Vec<ModeChange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModeChange {
    Set(u32),
    Clear(u32),
    /// `X`: sets the execute bits on directories and on files that already have an execute bit.
    SetIfExecutable(u32),
    /// Copies the permissions of the class at bit offset `from` to other classes.
    Copy {
        from: u32,
        to: Classes,
        op: Operator,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Assign,
}

/// The user classes that a clause applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Classes {
    user: bool,
    group: bool,
    other: bool,
}

const USER: u32 = 6;
const GROUP: u32 = 3;
const OTHER: u32 = 0;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const EXECUTE: u32 = 0o111;

impl Chmod {
    /// Parses an octal or symbolic mode. Returns `None` if the text is neither.
    pub fn parse(text: &str) -> Option<Chmod> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o7777).map(Chmod::Octal);
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            read_clause(clause, &mut changes)?;
        }
        Some(Chmod::Symbolic(Symbolic { text: text.to_string(), changes }))
    }

    /// Returns the new mode of a file or directory whose mode was `mode`.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            Chmod::Octal(mode) => *mode,
            Chmod::Symbolic(symbolic) => {
                let executable = is_dir || mode & EXECUTE != 0;
                symbolic.changes.iter().fold(mode, |mode, change| change.apply(mode, executable))
            }
        }
    }

    /// Returns a representation for cache keys. It must not change between versions.
    pub fn key(&self) -> String {
        match self {
            Chmod::Octal(mode) => format!("{mode:o}"),
            Chmod::Symbolic(symbolic) => symbolic.text.clone(),
        }
    }
}

impl Classes {
    /// Parses class letters. No letters means all classes.
    fn parse(text: &str) -> Option<Classes> {
        let mut classes = Classes::default();
        for c in text.chars() {
            match c {
                'u' => classes.user = true,
                'g' => classes.group = true,
                'o' => classes.other = true,
                'a' => classes = Classes { user: true, group: true, other: true },
                _ => return None,
            }
        }
        Some(if text.is_empty() { Classes { user: true, group: true, other: true } } else { classes })
    }

    fn offsets(self) -> impl Iterator<Item = u32> {
        let all = [(self.user, USER), (self.group, GROUP), (self.other, OTHER)];
        all.into_iter().filter(|(on, _)| *on).map(|(_, offset)| offset)
    }

    /// Returns all mode bits that belong to these classes, including setuid and setgid.
    fn mask(self) -> u32 {
        let special = if self.user { SET_UID } else { 0 } | if self.group { SET_GID } else { 0 };
        self.offsets().fold(special, |mask, offset| mask | 0o7 << offset)
    }
}

/// Parses a clause: classes followed by one or more operators with permissions (`u+rw`, `go=u-w`).
fn read_clause(clause: &str, changes: &mut Vec<ModeChange>) -> Option<()> {
    let start = clause.find(['+', '-', '='])?;
    let classes = Classes::parse(&clause[..start])?;
    let mut rest = &clause[start..];
    while let Some(symbol) = rest.chars().next() {
        let op = match symbol {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            '=' => Operator::Assign,
            _ => return None,
        };
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
        read_permissions(classes, op, &rest[1..end], changes)?;
        rest = &rest[end..];
    }
    Some(())
}

/// Parses the permission letters and copied classes after an operator. They apply in order, so with
/// `=` the last copied class wins.
fn read_permissions(classes: Classes, op: Operator, letters: &str, changes: &mut Vec<ModeChange>) -> Option<()> {
    let (mut bits, mut if_executable, mut assigned) = (0, 0, false);
    for c in letters.chars() {
        let from = match c {
            'r' => 0o444,
            'w' => 0o222,
            'x' => EXECUTE,
            'X' if op == Operator::Remove => EXECUTE,
            's' => SET_UID | SET_GID,
            't' | 'X' | 'u' | 'g' | 'o' => 0,
            _ => return None,
        };
        bits |= from & classes.mask();
        let class = match c {
            't' if classes.user || classes.group => {
                bits |= STICKY;
                continue;
            }
            'X' if op != Operator::Remove => {
                if_executable = EXECUTE & classes.mask();
                continue;
            }
            'u' => USER,
            'g' => GROUP,
            'o' => OTHER,
            _ => continue,
        };
        if bits != 0 {
            change(classes, op, std::mem::take(&mut bits), changes);
        }
        if if_executable != 0 {
            changes.push(ModeChange::SetIfExecutable(std::mem::take(&mut if_executable)));
        }
        assigned = true;
        changes.push(ModeChange::Copy { from: class, to: classes, op });
    }
    if bits != 0 || (op == Operator::Assign && !assigned) {
        change(classes, op, bits, changes);
    }
    if if_executable != 0 {
        changes.push(ModeChange::SetIfExecutable(if_executable));
    }
    Some(())
}

fn change(classes: Classes, op: Operator, bits: u32, changes: &mut Vec<ModeChange>) {
    match op {
        Operator::Add => changes.push(ModeChange::Set(bits)),
        Operator::Remove => changes.push(ModeChange::Clear(bits)),
        Operator::Assign => changes.extend([ModeChange::Clear(classes.mask() | bits & STICKY), ModeChange::Set(bits)]),
    }
}

impl ModeChange {
    fn apply(self, mode: u32, executable: bool) -> u32 {
        match self {
            ModeChange::Set(bits) => mode | bits,
            ModeChange::Clear(bits) => mode & !bits,
            ModeChange::SetIfExecutable(bits) if executable => mode | bits,
            ModeChange::SetIfExecutable(_) => mode,
            ModeChange::Copy { from, to, op } => {
                let bits = mode >> from & 0o7;
                to.offsets().fold(mode, |mode, place| match op {
                    Operator::Add => mode | bits << place,
                    Operator::Remove => mode & !(bits << place),
                    Operator::Assign => mode & !(0o7 << place) | bits << place,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_match_chmod() {
        for (text, mode, is_dir, want) in [
            ("755", 0o600, false, 0o755),
            ("4711", 0, false, 0o4711),
            ("+x", 0o644, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("g+s,o=", 0o777, true, 0o2770),
            ("u+r-w", 0o200, false, 0o400),
            ("+t", 0o777, true, 0o1777),
            ("u=rw", 0o4755, false, 0o655),
            ("go=u", 0o750, false, 0o777),
            ("u=g", 0o640, false, 0o440),
            ("o=g-w", 0o760, false, 0o764),
            ("go=u-w", 0o700, true, 0o755),
            ("g+u", 0o720, false, 0o770),
            ("u-g", 0o750, false, 0o250),
            ("u=go", 0o042, false, 0o242),
            ("=u", 0o700, false, 0o777),
            ("go=", 0o4777, false, 0o4700),
            ("=rX", 0o700, false, 0o555),
            ("a=rX", 0o600, false, 0o444),
            ("a-X", 0o755, false, 0o644),
            ("u=rwx", 0o6070, true, 0o2770),
            ("o+st", 0o644, false, 0o644),
            ("a=", 0o7777, false, 0o1000),
            ("u=rw,g=u,o=", 0o7, false, 0o660),
        ] {
            assert_eq!(Chmod::parse(text).unwrap().apply(mode, is_dir), want, "{text} {mode:o}");
        }
        for bad in ["", "8", "99999", "u", "u*r", "z+x", "u+q", "rw"] {
            assert_eq!(Chmod::parse(bad), None, "{bad}");
        }
    }
}
