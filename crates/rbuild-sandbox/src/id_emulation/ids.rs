//! Emulated process credentials, and the rules for changing them (credentials(7)).

use caps::Capability;
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
    /// Capabilities survive a change of user IDs (prctl(2), PR_SET_KEEPCAPS).
    pub keeps: bool,
    /// Changes of user IDs have no effect on capabilities (SECBIT_NO_SETUID_FIXUP).
    pub is_fixed: bool,
    pub lost: Lost,
}

/// The capabilities that changes of user IDs have taken from a process. To the kernel, which does
/// not see these changes, it still has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Lost {
    /// From the effective set, those that override the permissions of files ([`OF_FILES`]).
    pub of_files: bool,
    /// From the effective set, all others.
    pub others: bool,
    /// All from the permitted set, so that they cannot be made effective again.
    pub for_good: bool,
}

/// The capabilities that depend on the user ID for files (`CAP_FS_SET` of the kernel).
const OF_FILES: [Capability; 7] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_LINUX_IMMUTABLE,
    Capability::CAP_MKNOD,
];

impl Lost {
    const NONE: Lost = Lost { of_files: false, others: false, for_good: false };

    /// Returns the losses of a process in which all permitted capabilities become effective.
    fn raised(self) -> Lost {
        Lost { of_files: self.for_good, others: self.for_good, ..self }
    }

    fn dropped(self) -> Lost {
        Lost { of_files: true, others: true, ..self }
    }
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

    /// Returns the credentials of the first process of a container.
    pub fn starting(uid: u32, gid: u32, groups: Vec<u32>) -> Credentials {
        let ids =
            Credentials { users: Ids::all(uid), groups: Ids::all(gid), more_groups: groups, ..Default::default() };
        ids.after_exec(None, None)
    }

    /// Returns true if the capability is in the effective set of a process that has given up none
    /// itself.
    pub fn has(&self, capability: Capability) -> bool {
        !if OF_FILES.contains(&capability) { self.lost.of_files } else { self.lost.others }
    }

    /// Returns what is left of the effective and the permitted set that the kernel knows.
    pub fn left_of(&self, effective: u64, permitted: u64) -> (u64, u64) {
        let of_files = OF_FILES.iter().fold(0, |set, capability| set | capability.bitmask());
        let lost = |is_lost: bool, set: u64| if is_lost { set } else { 0 };
        let left = !(lost(self.lost.of_files, of_files) | lost(self.lost.others, !of_files));
        (effective & left, permitted & !lost(self.lost.for_good, u64::MAX))
    }

    /// Returns true if changes of user IDs have taken no capabilities.
    pub fn has_all(&self) -> bool {
        self.lost == Lost::NONE
    }

    /// Replaces the user IDs (credentials(7), capabilities(7)).
    pub fn with_users(self, users: Ids) -> Credentials {
        let is_root = |ids: Ids| [ids.real, ids.effective, ids.saved].contains(&0);
        let mut lost = self.lost;
        if !self.is_fixed {
            if is_root(self.users) && !is_root(users) && !self.keeps {
                lost = Lost { for_good: true, ..lost.dropped() };
            }
            match (self.users.effective, users.effective) {
                (0, 0) => {}
                (0, _) => lost = lost.dropped(),
                (_, 0) => lost = lost.raised(),
                _ => {}
            }
        }
        Credentials { users, lost, ..self }
    }

    /// Replaces the user ID for files.
    pub fn with_file_user(self, users: Ids) -> Credentials {
        let of_files = match (self.users.files, users.files) {
            _ if self.is_fixed => self.lost.of_files,
            (0, 0) => self.lost.of_files,
            (0, _) => true,
            (_, 0) => self.lost.for_good,
            _ => self.lost.of_files,
        };
        Credentials { users, lost: Lost { of_files, ..self.lost }, ..self }
    }

    /// Returns the credentials after a call of capset(2), which the kernel performs on the sets
    /// that it knows.
    pub fn with_own_sets(self) -> Credentials {
        Credentials { lost: Lost::NONE, ..self }
    }

    /// Returns the credentials after the execution of a program with these set-id owners.
    pub fn after_exec(&self, user: Option<u32>, group: Option<u32>) -> Credentials {
        let mut new = self.clone();
        for (ids, owner) in [(&mut new.users, user), (&mut new.groups, group)] {
            ids.effective = owner.unwrap_or(ids.effective);
            (ids.saved, ids.files) = (ids.effective, ids.effective);
        }
        new.keeps = false;
        new.lost.for_good = new.users.real != 0 && new.users.effective != 0;
        new.lost = if new.users.effective == 0 { new.lost.raised() } else { new.lost.dropped() };
        new
    }

    /// Returns true if these are IDs of a set-id program that a process of the credentials `before`
    /// did not have.
    pub fn gain_over(&self, before: &Credentials) -> bool {
        let group = self.groups.effective;
        let is_in = group == before.groups.files || before.more_groups.contains(&group);
        self.users.effective != before.users.effective || !is_in
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(real: u32, effective: u32, saved: u32) -> Result<Ids, Errno> {
        Ok(Ids { real, effective, saved, files: effective })
    }

    #[test]
    fn ids_change_as_in_the_kernel() {
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
    fn capabilities_survive_a_change_of_user_with_keepcaps() {
        let root = Credentials::default();
        let (of_files, other) = (Capability::CAP_CHOWN, Capability::CAP_SETUID);
        let held = |who: &Credentials| (who.has(of_files), who.has(other));
        let dropped = root.clone().with_users(Ids::all(33));
        assert_eq!((held(&dropped), dropped.lost.for_good), ((false, false), true));
        // Kept means permitted, and effective only once the process makes it so.
        let kept = Credentials { keeps: true, ..root.clone() }.with_users(Ids::all(33));
        assert_eq!((held(&kept), kept.lost.for_good), ((false, false), false));
        assert_eq!((kept.left_of(0xff, 0xff), dropped.left_of(0xff, 0xff)), ((0, 0xff), (0, 0)));
        assert!(kept.clone().with_own_sets().has_all() && !kept.after_exec(None, None).has(other));
        // For a while.
        let away = root.clone().with_users(root.users.set_three(true, [SAME, 33, SAME]).unwrap());
        assert_eq!((held(&away), away.lost.for_good), ((false, false), false));
        assert!(away.clone().with_users(away.users.set(false, 0).unwrap()).has_all());
        assert_eq!(held(&away.clone().with_file_user(away.users.set_files(false, 0))), (true, false));
        let for_files = root.clone().with_file_user(root.users.set_files(true, 33));
        assert_eq!((held(&for_files), for_files.left_of(0xff, 0xff)), ((false, true), (0xe0, 0xff)));
        assert!(for_files.clone().with_file_user(for_files.users.set_files(true, 0)).has_all());
        let fixed = Credentials { is_fixed: true, ..root.clone() };
        assert!(fixed.clone().with_users(Ids::all(33)).has_all());
        assert!(fixed.clone().with_file_user(fixed.users.set_files(true, 33)).has_all());
        assert!(
            !Credentials::starting(33, 33, Vec::new()).has(other) && Credentials::starting(0, 5, Vec::new()).has_all()
        );
    }

    #[test]
    fn set_id_programs_change_the_effective_ids() {
        let user = Credentials::starting(1000, 1000, vec![1000]);
        let su = user.after_exec(Some(0), None);
        assert_eq!(Ok(su.users), ids(1000, 0, 0));
        assert!(su.has_all());
        assert_eq!(su.users.set(true, 0), ids(0, 0, 0));
        assert!(su.gain_over(&user) && user.after_exec(None, Some(44)).gain_over(&user));
        assert!(!user.after_exec(None, Some(1000)).gain_over(&user) && !su.after_exec(None, None).gain_over(&su));
    }
}
