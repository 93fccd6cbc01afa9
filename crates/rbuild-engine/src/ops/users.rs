//! Users and groups by name or number, resolved with the image's `/etc/passwd` and `/etc/group`.

use std::fmt::Display;

use rbuild_linux::{OwnerMode, RootDir, UidGid, UnmappedId, unmapped};
use rbuild_remedy::{CommandRemedy, IsolationRemedy, Remedy};
use rbuild_sandbox::Isolation;

/// The user and groups of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// All groups, including the primary one.
    pub groups: Vec<u32>,
    /// The home directory of the user according to `/etc/passwd`.
    pub home: Option<String>,
}

impl Identity {
    /// Returns the first ID of the user that is not available in the builder.
    pub fn unavailable(&self, isolation: &Isolation) -> Option<UnmappedId> {
        if isolation.owner_mode() == OwnerMode::Recorded {
            return None;
        }
        let maps = isolation.maps();
        let mut gids = std::iter::once(self.gid).chain(self.groups.iter().copied());
        gids.find_map(|gid| match maps {
            Some(maps) if maps.has(UidGid::new(self.uid, gid)) => None,
            _ => unmapped(UidGid::new(self.uid, gid)),
        })
    }
}

/// Returns the message about a user with an unavailable ID. `problem` names the ID.
pub fn unavailable(user: &str, problem: impl Display) -> String {
    format!("user `{user}`: {problem}")
}

/// A name that the account files of the image do not contain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownUser {
    #[error("the image has no user `{0}` in /etc/passwd")]
    User(String),
    #[error("the image has no group `{0}` in /etc/group")]
    Group(String),
    #[error("`{name}` is too large for an ID, and no account of the image has this name")]
    LargeId { name: String, most: u32 },
    /// An account has a number that is not a valid ID.
    #[error("the image's `/{file}` gives `{name}` the ID {id}, which is not valid")]
    NoId { file: &'static str, name: String, id: String },
}

impl UnknownUser {
    /// Returns the remedy.
    pub fn remedy(&self) -> Remedy {
        match self {
            UnknownUser::NoId { .. } => CommandRemedy::ValidAccountId.into(),
            UnknownUser::LargeId { most, .. } => Remedy::Isolation(IsolationRemedy::LowerId { most: *most }),
            UnknownUser::User(_) | UnknownUser::Group(_) => CommandRemedy::AddAccount.into(),
        }
    }
}

/// Returns true if the text has only digits.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Returns the content of an account file, given by its path in the image; empty if there is no
/// such file.
pub type AccountFiles<'a> = dyn Fn(&str) -> Vec<u8> + 'a;

/// Maximum number of bytes read from an account file.
pub const MAX_FILE: u64 = 16 << 20;

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";

/// Returns access to the account files of a root file system.
pub fn in_root(root: &RootDir) -> impl Fn(&str) -> Vec<u8> + '_ {
    |path| root.read(path, MAX_FILE).unwrap_or_default()
}

/// Resolves `user[:group]` as the user of a command. An empty user is root. Numbers need not be in
/// the files; an unknown name is an error that contains it. An explicit group replaces all
/// supplementary groups. As in BuildKit, a number has at most 31 bits, unless both parts are
/// numbers.
pub fn identity(files: &AccountFiles<'_>, spec: &str) -> Result<Identity, UnknownUser> {
    let (user, group) = parts(spec);
    let pair = is_number(user) && group.is_some_and(is_number);
    let id = |text: &str| if pair { text.parse().ok().filter(|id| *id <= LARGEST_ID) } else { number(text) };
    let number = if user.is_empty() { Some(0) } else { id(user) };
    let passwd = lines(files, PASSWD);
    // A number is never looked up as a name.
    let entry = passwd.iter().find(|line| match number {
        Some(number) => line.get(2).and_then(|n| n.parse().ok()) == Some(number),
        None => line.first().map(String::as_str) == Some(user),
    });
    let listed = if number.is_some() { None } else { field(PASSWD, entry, 2)? };
    let most = if pair { LARGEST_ID } else { LARGEST_NUMBER };
    let uid = number.or(listed).or_else(|| (user == ROOT).then_some(0)).ok_or_else(|| no_user(user, most))?;
    let gid = if group.is_some() { 0 } else { field(PASSWD, entry, 3)?.unwrap_or(0) };
    let (gid, groups) = match (group, entry.and_then(|line| line.first())) {
        (Some(group), _) => {
            let gid = id(group).map_or_else(|| group_id(files, group, most), Ok)?;
            (gid, vec![gid])
        }
        (None, None) => (gid, vec![gid]),
        (None, Some(name)) => {
            let lines = lines(files, GROUP);
            let member = |line: &&Vec<String>| line.get(3).is_some_and(|m| m.split(',').any(|m| m == name));
            let mut groups: Vec<u32> =
                lines.iter().filter(member).filter_map(|line| field(GROUP, Some(line), 2).ok()?).collect();
            if !groups.contains(&gid) {
                groups.insert(0, gid);
            }
            (gid, groups)
        }
    };
    let home = entry.and_then(|line| line.get(5)).filter(|home| !home.is_empty()).cloned();
    Ok(Identity { uid, gid, groups, home })
}

/// Adds groups, given by name or number, to those of a command.
pub fn with_groups(files: &AccountFiles<'_>, mut who: Identity, groups: &[String]) -> Result<Identity, UnknownUser> {
    for group in groups {
        let gid = group_id(files, group, LARGEST_NUMBER)?;
        if !who.groups.contains(&gid) {
            who.groups.push(gid);
        }
    }
    Ok(who)
}

/// Resolves `user[:group]` as the owner of files, for `--chown` and directories made by WORKDIR.
/// The default group of a numeric user is the group of the same number, regardless of
/// `/etc/passwd`; of a named user, its primary group. An empty part is root.
pub fn owner(files: &AccountFiles<'_>, spec: &str) -> Result<UidGid, UnknownUser> {
    let (user, group) = parts(spec);
    let (uid, gid) = match number(user) {
        Some(number) => (number, number),
        None if user.is_empty() || user == ROOT => (0, 0),
        None => {
            let passwd = lines(files, PASSWD);
            let entry = passwd.iter().find(|line| line.first().map(String::as_str) == Some(user));
            let uid = field(PASSWD, entry, 2)?.ok_or_else(|| no_user(user, LARGEST_NUMBER))?;
            let gid = if group.is_some() { 0 } else { field(PASSWD, entry, 3)?.unwrap_or(0) };
            (uid, gid)
        }
    };
    let gid = match group {
        None if spec.ends_with(':') => 0,
        None => gid,
        Some(group) => group_id(files, group, LARGEST_NUMBER)?,
    };
    Ok(UidGid { uid, gid })
}

/// The name that means ID 0 as a user and as a group, even without account files.
const ROOT: &str = "root";

/// Splits into a user and an optional group.
fn parts(spec: &str) -> (&str, Option<&str>) {
    match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    }
}

/// The largest number that is accepted as an ID, unless user and group are both numbers.
const LARGEST_NUMBER: u32 = i32::MAX.unsigned_abs();
/// The largest ID. The number above it means "unchanged" to chown(2).
const LARGEST_ID: u32 = u32::MAX - 1;

/// Parses a numeric ID of at most [`LARGEST_NUMBER`].
fn number(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|id| *id <= LARGEST_NUMBER)
}

/// Returns the ID of a group. `most` is the largest number that is accepted.
fn group_id(files: &AccountFiles<'_>, group: &str, most: u32) -> Result<u32, UnknownUser> {
    if let Some(number) = number(group) {
        return Ok(number);
    }
    let lines = lines(files, GROUP);
    let found = lines.iter().find(|line| line.first().map(String::as_str) == Some(group));
    field(GROUP, found, 2)?.or_else(|| (group == ROOT).then_some(0)).ok_or_else(|| {
        if is_number(group) {
            UnknownUser::LargeId { name: group.to_string(), most }
        } else {
            UnknownUser::Group(group.to_string())
        }
    })
}

/// Returns the ID in a field of an account; `None` without an account or a number there. Fails for
/// a number that is not a valid ID: for the kernel, the largest one means "unchanged".
fn field(file: &'static str, account: Option<&Vec<String>>, i: usize) -> Result<Option<u32>, UnknownUser> {
    let Some(text) = account.and_then(|line| line.get(i)).filter(|text| is_number(text)) else { return Ok(None) };
    match text.parse::<u32>() {
        Ok(id) if id != u32::MAX => Ok(Some(id)),
        _ => {
            let name = account.and_then(|line| line.first()).cloned().unwrap_or_default();
            Err(UnknownUser::NoId { file, name, id: text.clone() })
        }
    }
}

fn no_user(user: &str, most: u32) -> UnknownUser {
    if is_number(user) {
        UnknownUser::LargeId { name: user.to_string(), most }
    } else {
        UnknownUser::User(user.to_string())
    }
}

fn lines(files: &AccountFiles<'_>, path: &str) -> Vec<Vec<String>> {
    String::from_utf8_lossy(&files(path))
        .lines()
        .map(|line| line.split(':').map(|field| field.trim().to_string()).collect())
        .filter(|line: &Vec<String>| line.len() >= 3)
        .collect()
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    fn files(path: &str) -> Vec<u8> {
        match path {
            PASSWD => "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n500:x:7:8::/seven:\nweb:x:1:1::/:\n",
            GROUP => "root:x:0:\nwww:x:34:\nextra:x:50:web,other\nmore:x:51:root,web\nwheel:x:10:root\n500:x:9:\n",
            _ => "",
        }
        .into()
    }

    fn nothing(_: &str) -> Vec<u8> {
        Vec::new()
    }

    #[test]
    fn user_accepts_names_numbers_and_groups() {
        let want = |uid, gid, groups: &[u32], home: Option<&str>| {
            Ok(Identity { uid, gid, groups: groups.to_vec(), home: home.map(str::to_string) })
        };
        for (spec, expected) in [
            ("", want(0, 0, &[0, 51, 10], Some("/root"))),
            ("root", want(0, 0, &[0, 51, 10], Some("/root"))),
            ("0", want(0, 0, &[0, 51, 10], Some("/root"))),
            (":www", want(0, 34, &[34], Some("/root"))),
            ("web", want(33, 34, &[34, 50, 51], Some("/srv"))),
            ("web:", want(33, 34, &[34, 50, 51], Some("/srv"))),
            ("33", want(33, 34, &[34, 50, 51], Some("/srv"))),
            ("web:extra", want(33, 50, &[50], Some("/srv"))),
            ("1000", want(1000, 0, &[0], None)),
            ("1000:7", want(1000, 7, &[7], None)),
            ("500", want(500, 0, &[0], None)),
            ("500:500", want(500, 500, &[500], None)),
            ("3000000000:4294967294", want(3000000000, 4294967294, &[4294967294], None)),
        ] {
            assert_eq!(identity(&files, spec), expected, "{spec}");
        }
        assert!(identity(&files, "nobody").unwrap_err().to_string().contains("no user `nobody`"));
        assert!(identity(&files, "web:none").unwrap_err().to_string().contains("no group `none`"));
        for spec in ["3000000000", "3000000000:www", "4294967295:1", "1:4294967295", "1:4294967296"] {
            assert!(identity(&files, spec).is_err(), "{spec}");
        }
        let large = |name: &str, most| Err(UnknownUser::LargeId { name: name.into(), most });
        for (spec, name, most) in [
            ("4294967295", "4294967295", 2147483647),
            ("web:2147483648", "2147483648", 2147483647),
            ("5000000000:0", "5000000000", 4294967294),
            ("0:4294967295", "4294967295", 4294967294),
        ] {
            assert_eq!(identity(&files, spec), large(name, most), "{spec}");
        }
        for (spec, name) in [("99999999999", "99999999999"), ("0:2147483648", "2147483648")] {
            assert_eq!(
                owner(&files, spec),
                Err(UnknownUser::LargeId { name: name.into(), most: 2147483647 }),
                "{spec}"
            );
        }
        assert_eq!(identity(&nothing, ""), want(0, 0, &[0], None));
        assert_eq!(identity(&nothing, "root:root"), want(0, 0, &[0], None));
    }

    /// The largest number means "unchanged" to the kernel, and there are no larger ones.
    #[test]
    fn accounts_with_invalid_ids_are_errors() {
        let files = |path: &str| {
            let text = match path {
                PASSWD => "a:x:4294967295:1::/:\nb:x:1:4294967295::/:\nc:x:99999999999:1::/:\nd:x:4294967294:1::/:\n",
                _ => "g:x:4294967295:d\nh:x:7:d\n",
            };
            text.into()
        };
        for (spec, file, name) in [
            ("a", "passwd", "a"),
            ("a:1", "passwd", "a"),
            ("b", "passwd", "b"),
            ("c", "passwd", "c"),
            ("1:g", "group", "g"),
            (":g", "group", "g"),
            ("d:g", "group", "g"),
        ] {
            let words = format!("the image's `/etc/{file}` gives `{name}` the ID ");
            let of_files = owner(&files, spec).unwrap_err().to_string();
            let of_a_command = identity(&files, spec).unwrap_err().to_string();
            assert!(of_files.starts_with(&words) && of_a_command == of_files, "{spec}: {of_files}");
        }
        assert_eq!(owner(&files, "b:7"), Ok(UidGid::new(1, 7)));
        assert_eq!(owner(&files, "d"), Ok(UidGid::new(4294967294, 1)));
        assert_eq!(identity(&files, "d").unwrap().groups, [1, 7]);
    }

    #[test]
    fn chown_accepts_names_numbers_and_groups() {
        for (spec, expected) in [
            ("33", (33, 33)),
            ("1000", (1000, 1000)),
            ("1000:7", (1000, 7)),
            ("1000:www", (1000, 34)),
            ("web", (33, 34)),
            ("web:", (33, 0)),
            ("1000:", (1000, 0)),
            ("web:1", (33, 1)),
            (":www", (0, 34)),
            ("500", (500, 500)),
        ] {
            assert_eq!(owner(&files, spec), Ok(UidGid::new(expected.0, expected.1)), "{spec}");
        }
        for spec in ["root", "root:root", "root:", ":root", ":", "0:0"] {
            assert_eq!(owner(&nothing, spec), Ok(UidGid::ROOT), "{spec}");
        }
        assert!(owner(&nothing, "web").unwrap_err().to_string().contains("no user `web`"));
        assert!(owner(&files, "1:none").unwrap_err().to_string().contains("no group `none`"));
    }

    #[test]
    fn messages_are_as_recorded() {
        let errors = [
            UnknownUser::User("web".into()),
            UnknownUser::Group("www".into()),
            UnknownUser::LargeId { name: "99999999999".into(), most: LARGEST_NUMBER },
            UnknownUser::NoId { file: PASSWD, name: "web".into(), id: "4294967295".into() },
        ];
        let variants = variants!(UnknownUser { User, Group, LargeId, NoId });
        assert_recorded!("UnknownUser", variants.table(&errors, |e| e, |e| Some(e.remedy())));
        let problem = "user ID 70000 is not mapped; mapped IDs: 0, 5 to 9";
        assert_recorded!("unavailable-users", unavailable("70000", problem));
    }
}
