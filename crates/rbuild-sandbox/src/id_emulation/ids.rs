//! Emulated process credentials, and the rules for changing them (credentials(7)).

use rustix::io::Errno;

use crate::id_emulation::decode::Of;

/// "Unchanged" in the set*id calls; never a valid ID.
pub const SAME: u32 = u32::MAX;

/// One kind of ID: user or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ids {
    pub real: u32,
    pub effective: u32,
    pub saved: u32,
    pub files: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Credentials {
    pub users: Ids,
    pub groups: Ids,
    pub more_groups: Vec<u32>,
    /// `keeps`: capabilities survive a change of user IDs (prctl(2), PR_SET_KEEPCAPS). `kept`: some
    /// have.
    pub keeps: bool,
    pub kept: bool,
}

impl Ids {
    pub fn all(id: u32) -> Ids {
        Ids { real: id, effective: id, saved: id, files: id }
    }

    /// Implements setuid(2) and setgid(2).
    pub fn set(self, able: bool, id: u32) -> Result<Ids, Errno> {
        match id {
            SAME => Err(Errno::INVAL),
            _ if able => Ok(Ids::all(id)),
            _ if id == self.real || id == self.saved => Ok(Ids { effective: id, files: id, ..self }),
            _ => Err(Errno::PERM),
        }
    }

    /// Implements setreuid(2) and setregid(2).
    pub fn set_two(self, able: bool, real: u32, effective: u32) -> Result<Ids, Errno> {
        let mut new = self;
        if real != SAME {
            if !able && real != self.real && real != self.effective {
                return Err(Errno::PERM);
            }
            new.real = real;
        }
        if effective != SAME {
            if !able && ![self.real, self.effective, self.saved].contains(&effective) {
                return Err(Errno::PERM);
            }
            new.effective = effective;
        }
        if real != SAME || (effective != SAME && effective != self.real) {
            new.saved = new.effective;
        }
        new.files = new.effective;
        Ok(new)
    }

    /// Implements setresuid(2) and setresgid(2).
    pub fn set_three(self, able: bool, wanted: [u32; 3]) -> Result<Ids, Errno> {
        let own = [self.real, self.effective, self.saved];
        if !able && wanted.iter().any(|id| *id != SAME && !own.contains(id)) {
            return Err(Errno::PERM);
        }
        let or = |id: u32, old: u32| if id == SAME { old } else { id };
        let effective = or(wanted[1], self.effective);
        Ok(Ids { real: or(wanted[0], self.real), effective, saved: or(wanted[2], self.saved), files: effective })
    }

    /// Implements setfsuid(2) and setfsgid(2), which fail silently.
    pub fn set_files(self, able: bool, id: u32) -> Ids {
        let may = able || [self.real, self.effective, self.saved, self.files].contains(&id);
        if may && id != SAME { Ids { files: id, ..self } } else { self }
    }
}

impl Credentials {
    pub fn ids(&self, of: Of) -> Ids {
        match of {
            Of::Users => self.users,
            Of::Groups => self.groups,
        }
    }

    /// Replaces the IDs of one kind, without side effects.
    pub fn with(self, of: Of, ids: Ids) -> Credentials {
        match of {
            Of::Users => Credentials { users: ids, ..self },
            Of::Groups => Credentials { groups: ids, ..self },
        }
    }

    /// Returns true if CAP_SETUID, CAP_SETGID and CAP_CHOWN would be held.
    pub fn able(&self) -> bool {
        self.users.effective == 0 || self.kept
    }

    /// Replaces the user IDs. Changing away from root drops all capabilities unless they are kept.
    pub fn with_users(self, users: Ids) -> Credentials {
        let kept = self.able() && self.keeps && users.effective != 0;
        Credentials { users, kept, ..self }
    }

    /// Returns the credentials after the execution of a program with these set-id owners.
    pub fn after_exec(&self, user: Option<u32>, group: Option<u32>) -> Credentials {
        let mut new = self.clone();
        for (ids, owner) in [(&mut new.users, user), (&mut new.groups, group)] {
            ids.effective = owner.unwrap_or(ids.effective);
            (ids.saved, ids.files) = (ids.effective, ids.effective);
        }
        (new.keeps, new.kept) = (false, false);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(real: u32, effective: u32, saved: u32) -> Result<Ids, Errno> {
        Ok(Ids { real, effective, saved, files: effective })
    }

    #[test]
    fn ids_change_as_the_kernel_changes_them() {
        let root = Ids::default();
        assert_eq!(root.set(true, 33), Ok(Ids::all(33)));
        assert_eq!(Ids::all(33).set(false, 0), Err(Errno::PERM));
        assert_eq!((root.set(true, SAME), Ids::all(33).set(false, SAME)), (Err(Errno::INVAL), Err(Errno::INVAL)));
        assert_eq!(root.set_two(true, SAME, 33), ids(0, 33, 33));
        assert_eq!(root.set_three(true, [SAME, 33, SAME]), ids(0, 33, 0));
        // Return through the saved ID, and a permanent change.
        let dropped = root.set_three(true, [SAME, 33, SAME]).unwrap();
        assert_eq!(dropped.set(false, 0), ids(0, 0, 0));
        assert_eq!(dropped.set_three(false, [33, 33, 33]), ids(33, 33, 33));
        assert_eq!(Ids::all(33).set_three(false, [SAME, 0, SAME]), Err(Errno::PERM));
        // The exchange of real and effective ID that daemons use.
        assert_eq!(ids(1, 2, 2).unwrap().set_two(false, 2, 1), ids(2, 1, 1));
        assert_eq!(ids(1, 2, 2).unwrap().set_two(false, 3, SAME), Err(Errno::PERM));
        assert_eq!(Ids::all(5).set_files(false, 7), Ids::all(5));
        assert_eq!(root.set_files(true, 7).files, 7);
    }

    #[test]
    fn capabilities_survive_a_change_of_users_if_that_is_asked_for() {
        let dropped = Credentials::default().with_users(Ids::all(33));
        assert!(!dropped.able());
        let kept = Credentials { keeps: true, ..Credentials::default() }.with_users(Ids::all(33));
        assert!(kept.able() && !kept.after_exec(None, None).able());
    }

    #[test]
    fn set_id_programs_change_the_effective_ids() {
        let user = Credentials {
            users: Ids::all(1000),
            groups: Ids::all(1000),
            more_groups: vec![1000],
            ..Credentials::default()
        };
        let su = user.after_exec(Some(0), None);
        assert_eq!(Ok(su.users), ids(1000, 0, 0));
        assert!(su.able());
        assert_eq!(su.users.set(su.able(), 0), ids(0, 0, 0));
    }
}
