//! WORKDIR: creates the directory in a new tree, which the caller commits.

use std::path::Path;

use rbuild_linux::{FileKind, Timestamp, UidGid};
use rbuild_plan::{VertexId, WorkdirStep};
use rbuild_remedy::FileRemedy;

use crate::env::StepEnv;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::ops::copy_step::unknown_user;
use crate::ops::new_dirs::inherit_group;
use crate::ops::users;

pub(crate) fn workdir_step(env: &StepEnv<'_>, id: VertexId, step: &WorkdirStep, path: &Path) -> Result<()> {
    let working = env.rootfs.writable(&env.rootfs.trees_below(id)?, path)?;
    let root = &working.root;
    // The user is resolved only if a directory must be created.
    let owner = match root.stat_follow(&step.path) {
        Ok(there) if there.kind == FileKind::Dir => UidGid::ROOT,
        _ => users::owner(&users::in_root(root), &step.user).map_err(|e| unknown_user(env, id, e))?,
    };
    let now = Timestamp { sec: step.time.unwrap_or(env.request.now), nsec: 0 };
    let mut made = Vec::new();
    // Resolves dangling links, too.
    let real = root.resolve(&step.path).map_err(BuildError::kernel(ErrorContext::CreateDirectory(&step.path)))?;
    let result = root.create_dir_all(&real, 0o755, Some(owner), |p| made.push(p.to_path_buf()));
    result.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotADirectory | std::io::ErrorKind::AlreadyExists => {
            let reason = format!("`{}` is not a directory in the image", step.path);
            env.failure(id, reason, Vec::new()).with_help(Some(FileRemedy::OtherDirectory.into()))
        }
        _ => BuildError::Kernel { context: ErrorContext::CreateDirectory(&step.path).into(), source: e },
    })?;
    // As in BuildKit, directories that belong to no user inherit the group of their parents.
    let given = Some(owner).filter(|_| !step.user.is_empty());
    inherit_group(root, &made, given).map_err(BuildError::kernel(ErrorContext::CreateDirectory(&step.path)))?;
    for path in made.iter().rev() {
        let fail = || BuildError::kernel(ErrorContext::DirectoryTime(path));
        let (dir, name) = root.parent(path).map_err(fail())?;
        dir.set_mtime(&name, now).map_err(fail())?;
    }
    Ok(working.finish(&path.join("fs"))?)
}
