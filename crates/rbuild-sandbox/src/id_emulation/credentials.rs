//! Emulated process credentials, and the rules for changing them (credentials(7)).

use caps::Capability;
use rbuild_linux::UidGid;
use rustix::io::Errno;

use crate::id_emulation::decode::IdKind;

/// "Unchanged" in the set*id calls; never a valid ID.
pub const SAME: u32 = u32::MAX;

/// One kind of ID: user or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ids {
    /// The real ID.
    pub real: u32,
    /// The effective ID.
    pub effective: u32,
    /// The saved set-ID.
    pub saved: u32,
    /// The ID for file access (`fsuid` or `fsgid`).
    pub files: u32,
}

/// The emulated credentials of a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Credentials {
    pub users: Ids,
    pub groups: Ids,
    /// The supplementary groups, sorted.
    pub more_groups: Vec<u32>,
    pub bits: SecureBits,
    pub sets: CapabilitySets,
    /// Capabilities that a program of any user has after its execution. prctl(2) is not emulated,
    /// so these are the ones that the command started with, or fewer.
    pub ambient: u64,
}

/// Upper limits on a process's capability sets, in addition to those of the kernel. They lack the
/// capabilities that the process dropped, or lost by changes of its user IDs, which the kernel does
/// not see. The effective set is a subset of the permitted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CapabilitySets {
    pub effective: u64,
    pub permitted: u64,
}

impl Default for CapabilitySets {
    fn default() -> CapabilitySets {
        CapabilitySets { effective: u64::MAX, permitted: u64::MAX }
    }
}

impl CapabilitySets {
    const NONE: CapabilitySets = CapabilitySets { effective: 0, permitted: 0 };
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

fn of_files() -> u64 {
    OF_FILES.iter().fold(0, |set, capability| set | capability.bitmask())
}

/// The rules for capabilities when IDs change (capabilities(7), "The securebits flags").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SecureBits(u8);

impl SecureBits {
    /// `SECBIT_NO_SETUID_FIXUP`: changes of user IDs have no effect on capabilities.
    const FIXED: u8 = 1 << 2;
    /// `SECBIT_KEEP_CAPS`: permitted capabilities survive a change of user IDs.
    const KEEPING: u8 = 1 << 4;
    /// The bit that locks each of the four flags is next to it.
    const LOCKS: u8 = 0b1010_1010;

    fn are_fixed(self) -> bool {
        self.0 & SecureBits::FIXED != 0
    }

    fn keep(self) -> bool {
        self.0 & SecureBits::KEEPING != 0
    }

    fn after_exec(self) -> SecureBits {
        SecureBits(self.0 & !SecureBits::KEEPING)
    }

    /// Implements `PR_SET_KEEPCAPS`.
    pub fn keeping(self, keep: u64) -> Result<SecureBits, Errno> {
        match keep {
            _ if keep > 1 => Err(Errno::INVAL),
            _ if self.0 & SecureBits::KEEPING << 1 != 0 => Err(Errno::PERM),
            0 => Ok(SecureBits(self.0 & !SecureBits::KEEPING)),
            _ => Ok(SecureBits(self.0 | SecureBits::KEEPING)),
        }
    }

    /// Implements `PR_SET_SECUREBITS` for the flags that have an effect here; `None` leaves others
    /// (Linux 6.14), which need no capability, to the kernel. `able` is true for a process with
    /// CAP_SETPCAP.
    pub fn set(self, able: bool, bits: u64) -> Result<Option<SecureBits>, Errno> {
        let known = bits as u8;
        if bits > 0xff {
            return if known == self.0 { Ok(None) } else { Err(Errno::PERM) };
        }
        let changed = self.0 ^ known;
        let locks = self.0 & SecureBits::LOCKS;
        let refused = locks >> 1 & changed != 0 || locks & !known != 0 || !able;
        if refused { Err(Errno::PERM) } else { Ok(Some(SecureBits(known))) }
    }
}

impl Ids {
    /// Returns four equal IDs.
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
        let keeps_files = wanted[1] == SAME || effective == self.files;
        // As since Linux 6.4: a call that changes nothing leaves the ID for files as well.
        if keeps_files && [or(wanted[0], self.real), effective, or(wanted[2], self.saved)] == own {
            return Ok(self);
        }
        Ok(Ids { real: or(wanted[0], self.real), effective, saved: or(wanted[2], self.saved), files: effective })
    }

    /// Implements setfsuid(2) and setfsgid(2), which fail silently.
    pub fn set_files(self, able: bool, id: u32) -> Ids {
        let may = able || [self.real, self.effective, self.saved, self.files].contains(&id);
        if may && id != SAME { Ids { files: id, ..self } } else { self }
    }
}

impl Credentials {
    /// Returns the IDs of one kind.
    pub fn ids(&self, of: IdKind) -> Ids {
        match of {
            IdKind::Users => self.users,
            IdKind::Groups => self.groups,
        }
    }

    /// Returns true if the process has the access of a member to files of that group.
    pub fn is_in(&self, group: u32) -> bool {
        self.groups.files == group || self.more_groups.contains(&group)
    }

    /// Replaces the IDs of one kind, without side effects.
    pub fn with(self, of: IdKind, ids: Ids) -> Credentials {
        match of {
            IdKind::Users => Credentials { users: ids, ..self },
            IdKind::Groups => Credentials { groups: ids, ..self },
        }
    }

    /// Returns the credentials of the first process of a container.
    pub fn starting(user: UidGid, groups: Vec<u32>) -> Credentials {
        let (users, own_groups) = (Ids::all(user.uid), Ids::all(user.gid));
        let ids = Credentials { users, groups: own_groups, more_groups: groups, ..Default::default() };
        ids.after_exec(None, None)
    }

    /// Returns the credentials with all capabilities, which remain after the execution of any
    /// program.
    pub fn with_all_capabilities(self) -> Credentials {
        Credentials { sets: CapabilitySets::default(), ambient: u64::MAX, ..self }
    }

    /// Returns true if the capability is in the effective set, provided that the permitted set in
    /// the kernel contains it.
    pub fn has(&self, capability: Capability) -> bool {
        self.sets.effective & capability.bitmask() != 0
    }

    /// Returns the effective and the permitted set of a process with that permitted set in the
    /// kernel.
    pub fn limited_to(&self, permitted: u64) -> CapabilitySets {
        CapabilitySets { effective: permitted & self.sets.effective, permitted: permitted & self.sets.permitted }
    }

    /// Returns true if the sets of the process are those that the kernel has.
    pub fn has_all(&self) -> bool {
        self.sets == CapabilitySets::default()
    }

    /// Replaces the user IDs (credentials(7), capabilities(7)).
    pub fn with_users(self, users: Ids) -> Credentials {
        let is_root = |ids: Ids| [ids.real, ids.effective, ids.saved].contains(&0);
        let (mut sets, mut ambient) = (self.sets, self.ambient);
        if !self.bits.are_fixed() {
            if is_root(self.users) && !is_root(users) {
                sets = if self.bits.keep() { sets } else { CapabilitySets::NONE };
                ambient = 0;
            }
            match (self.users.effective, users.effective) {
                (0, 0) => {}
                (0, _) => sets.effective = 0,
                (_, 0) => sets.effective = sets.permitted,
                _ => {}
            }
        }
        Credentials { users, sets, ambient, ..self }
    }

    /// Replaces the user ID for files.
    pub fn with_file_user(self, users: Ids) -> Credentials {
        let mut sets = self.sets;
        match (self.users.files, users.files) {
            _ if self.bits.are_fixed() => {}
            (0, 0) => {}
            (0, _) => sets.effective &= !of_files(),
            (_, 0) => sets.effective |= sets.permitted & of_files(),
            _ => {}
        }
        Credentials { users, sets, ..self }
    }

    /// Replaces the sets, as capset(2) does. The new inheritable set limits the ambient one.
    ///
    /// # Errors
    ///
    /// EPERM unless the new permitted set is a subset of that of the process (`permitted` in the
    /// kernel), and the new effective set is a subset of the new permitted one.
    pub fn with_sets(self, permitted: u64, new: CapabilitySets, inheritable: u64) -> Result<Credentials, Errno> {
        let has = self.limited_to(permitted);
        let fits = new.permitted & !has.permitted == 0 && new.effective & !new.permitted == 0;
        let ambient = self.ambient & new.permitted & inheritable;
        if fits { Ok(Credentials { sets: new, ambient, ..self }) } else { Err(Errno::PERM) }
    }

    /// Returns the credentials after the execution of a program with these set-id owners.
    pub fn after_exec(&self, user: Option<u32>, group: Option<u32>) -> Credentials {
        let mut new = self.clone();
        for (ids, owner) in [(&mut new.users, user), (&mut new.groups, group)] {
            ids.effective = owner.unwrap_or(ids.effective);
            (ids.saved, ids.files) = (ids.effective, ids.effective);
        }
        new.bits = new.bits.after_exec();
        if new.users.effective != new.users.real || new.groups.effective != new.groups.real {
            new.ambient = 0;
        }
        let has_root = [new.users.real, new.users.effective].contains(&0);
        new.sets = CapabilitySets {
            effective: if new.users.effective == 0 { u64::MAX } else { new.ambient },
            permitted: if has_root { u64::MAX } else { new.ambient },
        };
        new
    }

    /// Returns true if a set-id program has IDs that a process with the credentials `before` did
    /// not have.
    pub fn exceed(&self, before: &Credentials) -> bool {
        let is_in = before.is_in(self.groups.effective);
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
        // Only a call that changes something, or names another effective ID than that for files,
        // changes the latter.
        let aside = Ids { files: 33, ..root };
        for (wanted, files) in [([SAME; 3], 33), ([0, SAME, 0], 33), ([SAME, 0, SAME], 0), ([5, SAME, SAME], 0)] {
            assert_eq!(aside.set_three(true, wanted).map(|ids| ids.files), Ok(files), "{wanted:?}");
        }
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
        assert_eq!((held(&dropped), dropped.sets), ((false, false), CapabilitySets::NONE));
        // A kept capability is permitted, but not effective until the process makes it so.
        let keeping = Credentials { bits: root.bits.keeping(1).unwrap(), ..root.clone() };
        let kept = keeping.with_users(Ids::all(33));
        assert_eq!(
            (held(&kept), kept.limited_to(0xff)),
            ((false, false), CapabilitySets { effective: 0, permitted: 0xff })
        );
        let both = of_files.bitmask() | other.bitmask();
        let raised = kept
            .clone()
            .with_sets(u64::MAX, CapabilitySets { effective: other.bitmask(), permitted: both }, 0)
            .unwrap();
        assert_eq!(held(&raised), (false, true));
        // A return to root makes all permitted capabilities effective in the kernel.
        assert_eq!(held(&raised.clone().with_users(Ids::default())), (true, true));
        assert!(!kept.after_exec(None, None).has(other) && dropped.with_sets(u64::MAX, root.sets, 0).is_err());
        // With a temporary change of the effective user ID.
        let away = root.clone().with_users(root.users.set_three(true, [SAME, 33, SAME]).unwrap());
        assert_eq!((held(&away), away.sets.permitted), ((false, false), u64::MAX));
        assert!(away.clone().with_users(away.users.set(false, 0).unwrap()).has_all());
        assert_eq!(held(&away.clone().with_file_user(away.users.set_files(false, 0))), (true, false));
        let for_files = root.clone().with_file_user(root.users.set_files(true, 33));
        assert_eq!(held(&for_files), (false, true));
        assert_eq!(for_files.limited_to(0xff), CapabilitySets { effective: 0xe0, permitted: 0xff });
        assert!(for_files.clone().with_file_user(for_files.users.set_files(true, 0)).has_all());
        let fixed = Credentials { bits: SecureBits(SecureBits::FIXED), ..root.clone() };
        assert!(fixed.clone().with_users(Ids::all(33)).has_all());
        assert!(fixed.clone().with_file_user(fixed.users.set_files(true, 33)).has_all());
        assert!(
            !Credentials::starting(UidGid::new(33, 33), Vec::new()).has(other)
                && Credentials::starting(UidGid::new(0, 5), Vec::new()).has_all()
        );
    }

    #[test]
    fn ambient_capabilities_survive_programs_and_no_change_of_ids() {
        let user = Credentials::starting(UidGid::new(33, 33), Vec::new()).with_all_capabilities();
        let held = |who: &Credentials| (who.has_all(), who.after_exec(None, None).has_all());
        assert_eq!(held(&user), (true, true));
        assert_eq!(held(&user.after_exec(None, Some(44))), (false, false));
        assert_eq!(held(&user.after_exec(Some(34), None)), (false, false));
        assert_eq!(user.after_exec(Some(34), None).sets, CapabilitySets::NONE);
        // Only a change from root to another user takes them.
        assert_eq!(held(&user.clone().with_users(Ids::all(44))), (true, true));
        let root = user.clone().with_users(Ids::all(0));
        assert_eq!(held(&root), (true, true));
        assert_eq!(held(&root.with_users(Ids::all(33))), (false, false));
        let few = user.with_sets(u64::MAX, CapabilitySets { effective: 3, permitted: 7 }, 5).unwrap();
        assert_eq!(few.after_exec(None, None).sets, CapabilitySets { effective: 5, permitted: 5 });
    }

    #[test]
    fn sets_are_taken_as_the_kernel_takes_them() {
        let sets = |effective, permitted| CapabilitySets { effective, permitted };
        let narrow = Credentials { sets: sets(1, 3), ..Credentials::default() };
        for (known, new, taken) in [
            (0xff, sets(1, 3), true),
            (0xff, sets(3, 3), true),
            (0xff, sets(0, 0), true),
            (0xff, sets(2, 1), false),
            (0xff, sets(0, 4), false),
            (1, sets(0, 2), false),
        ] {
            assert_eq!(narrow.clone().with_sets(known, new, 0).is_ok(), taken, "{known:x} {new:x?}");
        }
    }

    #[test]
    fn secure_bits_are_taken_as_the_kernel_takes_them() {
        let (perm, inval) = (Err(Errno::PERM), Err(Errno::INVAL));
        for (before, keep, after) in [
            (0, 1, Ok(0x10)),
            (0x10, 0, Ok(0)),
            (0, 2, inval),
            (0, u64::MAX, inval),
            (0x20, 1, perm),
            (0x30, 0, perm),
            (0x20, 2, inval),
        ] {
            assert_eq!(SecureBits(before).keeping(keep).map(|bits| bits.0), after, "{before:x} {keep}");
        }
        for (before, able, bits, after) in [
            (0, true, 0x14, Ok(Some(0x14))),
            (0, false, 0x14, Err(Errno::PERM)),
            (0, true, 0x1004, Err(Errno::PERM)),
            (0, true, 1 << 32, Ok(None)),
            (4, true, 0x104, Ok(None)),
            (0x20, true, 0x30, Err(Errno::PERM)),
            (0x20, true, 0x00, Err(Errno::PERM)),
            (0x20, true, 0x21, Ok(Some(0x21))),
            (0x30, true, 0x3c, Ok(Some(0x3c))),
            (4, false, 4, Err(Errno::PERM)),
        ] {
            let got = SecureBits(before).set(able, bits).map(|bits| bits.map(|bits| bits.0));
            assert_eq!(got, after, "{before:x} {able} {bits:x}");
        }
    }

    #[test]
    fn set_id_programs_change_the_effective_ids() {
        let user = Credentials::starting(UidGid::new(1000, 1000), vec![1000]);
        let su = user.after_exec(Some(0), None);
        assert_eq!(Ok(su.users), ids(1000, 0, 0));
        assert!(su.has_all());
        assert_eq!(su.users.set(true, 0), ids(0, 0, 0));
        assert!(su.exceed(&user) && user.after_exec(None, Some(44)).exceed(&user));
        assert!(!user.after_exec(None, Some(1000)).exceed(&user) && !su.after_exec(None, None).exceed(&su));
    }
}
