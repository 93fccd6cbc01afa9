//! Names of users and groups, as the image's own /etc/passwd and /etc/group have them.

use rbuild_linux::RootDir;

/// Who a command runs as, or who owns files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// With the primary one.
    pub groups: Vec<u32>,
    pub home: Option<String>,
}

impl Identity {
    /// Who commands run as where no USER was given.
    pub fn root() -> Identity {
        Identity { uid: 0, gid: 0, groups: vec![0], home: Some("/root".into()) }
    }
}

const MAX_FILE: u64 = 16 << 20;

/// Reads `user[:group]`, by name or number. Numbers need not be in the files; a name that is not there is an
/// error that says which. An explicit group takes the place of all supplementary ones.
pub fn identity(root: &RootDir, spec: &str) -> Result<Identity, String> {
    // No user at all is root.
    let spec = if spec.is_empty() { "0" } else { spec };
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let passwd = lines(root, "etc/passwd");
    let entry = passwd.iter().find(|f| f.first().map(String::as_str) == Some(user)).or_else(|| {
        let number: u32 = user.parse().ok()?;
        passwd.iter().find(|f| f.get(2).and_then(|n| n.parse().ok()) == Some(number))
    });
    let field = |i: usize| entry.and_then(|f| f.get(i)).and_then(|n| n.parse::<u32>().ok());
    let uid = match (user.parse().ok(), field(2)) {
        (_, Some(uid)) => uid,
        (Some(uid), None) => uid,
        (None, None) => return Err(format!("the image has no user `{user}` in /etc/passwd")),
    };
    let group_lines = lines(root, "etc/group");
    let (gid, groups) = match group {
        Some(group) => {
            let gid = group_id(&group_lines, group)?;
            (gid, vec![gid])
        }
        None => {
            let name = entry.and_then(|f| f.first()).map_or(user, String::as_str);
            let member = |f: &&Vec<String>| f.get(3).is_some_and(|m| m.split(',').any(|m| m == name));
            let gid = field(3).unwrap_or(0);
            let named = group_lines.iter().filter(member).filter_map(|f| f.get(2)?.parse::<u32>().ok());
            let mut groups = vec![gid];
            groups.extend(named.filter(|g| *g != gid));
            (gid, groups)
        }
    };
    let home = entry.and_then(|f| f.get(5)).filter(|h| !h.is_empty()).cloned();
    Ok(Identity { uid, gid, groups, home })
}

/// The owner that `--chown` names: a user by number alone owns with the group of the same number.
pub fn owner(root: &RootDir, spec: &str) -> Result<(u32, u32), String> {
    if let Ok(number) = spec.parse::<u32>() {
        return Ok((number, number));
    }
    let who = identity(root, spec)?;
    Ok((who.uid, who.gid))
}

fn group_id(groups: &[Vec<String>], group: &str) -> Result<u32, String> {
    let by_name = groups.iter().find(|f| f.first().map(String::as_str) == Some(group));
    by_name
        .and_then(|f| f.get(2)?.parse().ok())
        .or_else(|| group.parse().ok())
        .ok_or_else(|| format!("the image has no group `{group}` in /etc/group"))
}

fn lines(root: &RootDir, path: &str) -> Vec<Vec<String>> {
    let text = root.read(path, MAX_FILE).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .map(|l| l.split(':').map(str::to_string).collect())
        .filter(|f: &Vec<String>| f.len() >= 3)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_groups() {
        let dir = std::env::temp_dir().join(format!("rbuild-users-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        std::fs::write(dir.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n").unwrap();
        std::fs::write(dir.join("etc/group"), "root:x:0:\nwww:x:34:\nextra:x:50:web,other\n").unwrap();
        let root = RootDir::open(&dir).unwrap();
        let id = |spec| identity(&root, spec);
        let want = |uid, gid, groups: &[u32], home: Option<&str>| {
            Ok(Identity { uid, gid, groups: groups.to_vec(), home: home.map(str::to_string) })
        };
        assert_eq!(id(""), want(0, 0, &[0], Some("/root")));
        assert_eq!(id("web"), want(33, 34, &[34, 50], Some("/srv")));
        assert_eq!(id("33"), want(33, 34, &[34, 50], Some("/srv")));
        assert_eq!(id("web:extra"), want(33, 50, &[50], Some("/srv")));
        assert_eq!(id("1000"), want(1000, 0, &[0], None));
        assert_eq!(id("1000:7"), want(1000, 7, &[7], None));
        assert!(id("nobody").unwrap_err().contains("no user `nobody`"));
        assert!(id("web:none").unwrap_err().contains("no group `none`"));
        assert_eq!(owner(&root, "1000"), Ok((1000, 1000)));
        assert_eq!(owner(&root, "web"), Ok((33, 34)));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
