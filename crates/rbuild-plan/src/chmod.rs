//! `--chmod`: octal digits, or symbolic as chmod(1) reads it with umask 0.

/// A change of permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chmod {
    Octal(u32),
    Symbolic(Vec<Clause>),
}

/// One `u+rw` of a symbolic mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clause {
    user: bool,
    group: bool,
    other: bool,
    op: char,
    read: bool,
    write: bool,
    execute: bool,
    /// `X`: execute for directories, and for files that somebody may execute already.
    execute_if: bool,
    set_id: bool,
    sticky: bool,
}

impl Chmod {
    /// `None` if the text is neither form.
    pub fn parse(text: &str) -> Option<Chmod> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o7777).map(Chmod::Octal);
        }
        let clauses: Option<Vec<Vec<Clause>>> = text.split(',').map(clauses).collect();
        clauses.map(|c| Chmod::Symbolic(c.concat()))
    }

    /// The bits of something that had `mode`.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            Chmod::Octal(mode) => *mode,
            Chmod::Symbolic(clauses) => clauses.iter().fold(mode, |mode, c| c.apply(mode, is_dir)),
        }
    }
}

fn clauses(text: &str) -> Option<Vec<Clause>> {
    let ops = text.find(['+', '-', '='])?;
    let who = &text[..ops];
    if !who.chars().all(|c| "ugoa".contains(c)) {
        return None;
    }
    let has = |c| who.is_empty() || who.contains('a') || who.contains(c);
    let mut found: Vec<Clause> = Vec::new();
    for c in text[ops..].chars() {
        if matches!(c, '+' | '-' | '=') {
            found.push(Clause {
                user: has('u'),
                group: has('g'),
                other: has('o'),
                op: c,
                read: false,
                write: false,
                execute: false,
                execute_if: false,
                set_id: false,
                sticky: false,
            });
            continue;
        }
        let clause = found.last_mut()?;
        match c {
            'r' => clause.read = true,
            'w' => clause.write = true,
            'x' => clause.execute = true,
            'X' => clause.execute_if = true,
            's' => clause.set_id = true,
            't' => clause.sticky = true,
            _ => return None,
        }
    }
    Some(found)
}

impl Clause {
    fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let execute = self.execute || (self.execute_if && (is_dir || mode & 0o111 != 0));
        let bits = u32::from(self.read) * 4 + u32::from(self.write) * 2 + u32::from(execute);
        let mut set = 0;
        let mut mask = 0;
        for (on, shift, special) in [(self.user, 6, 0o4000), (self.group, 3, 0o2000), (self.other, 0, 0)] {
            if on {
                set |= bits << shift | if self.set_id { special } else { 0 };
                // chmod(1): `=` on a directory leaves its set-id bits alone.
                mask |= 7 << shift | if is_dir { 0 } else { special };
            }
        }
        if self.sticky {
            set |= 0o1000;
        }
        match self.op {
            '+' => mode | set,
            '-' => mode & !set,
            _ => mode & !mask | set,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_as_chmod_has_them() {
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
        ] {
            assert_eq!(Chmod::parse(text).unwrap().apply(mode, is_dir), want, "{text} {mode:o}");
        }
        for bad in ["", "8", "99999", "u", "u*r", "z+x", "u+q", "rw"] {
            assert_eq!(Chmod::parse(bad), None, "{bad}");
        }
    }
}
