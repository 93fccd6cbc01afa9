//! Splits a step's definition into named parts for its cache key.
//!
//! Inputs (parent, context files) are not included. The names are user-visible: they explain which
//! part changed when a step misses the cache. Steps are destructured field by field, so adding a
//! field does not compile until its effect on the key has been decided.

use std::borrow::Cow;

use rbuild_container::{NetworkMode, SecurityMode, Ulimit};

use crate::Chmod;
use crate::graph::{
    CacheRoot, CopySource, CopyStep, InlineFile, RunAgent, RunCache, RunMount, RunMountKind, RunSecret, RunStep, Step,
    WorkdirStep,
};
use StepPart::{Own, Variable};

/// Returns text in double quotes, so that it can be followed by other values in one part. The
/// encoding is part of keys: it must not change between versions.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Returns ` NAME="TEXT"`, or nothing if there is no text. Options that a step does not have are
/// not in its key, so a later version can add one without changing the keys of all other steps.
fn option(name: &str, text: Option<&str>) -> String {
    text.map_or(String::new(), |text| format!(" {name}={}", quoted(text)))
}

/// Returns the permission bits and the owner of a mounted file or directory.
fn owner(mode: u32, uid: u32, gid: u32) -> String {
    format!("mode={mode:04o} uid={uid} gid={gid}")
}

/// A part of a step's definition. Several parts may have one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepPart<'a> {
    /// A part with its name and value.
    Own(&'static str, &'a [u8]),
    /// An environment variable with its name and value.
    Variable(&'a str, &'a str),
}

impl<'a> StepPart<'a> {
    /// Name of the parts for environment variables.
    pub const VARIABLE: &'static str = "variable";

    /// Returns the name of the part.
    pub fn name(&self) -> &'static str {
        match self {
            Own(name, _) => name,
            Variable(..) => StepPart::VARIABLE,
        }
    }

    /// Returns the value as it enters keys.
    pub fn value(&self) -> Cow<'a, [u8]> {
        match self {
            Own(_, value) => Cow::Borrowed(value),
            Variable(name, value) => Cow::Owned(format!("{name}={value}").into_bytes()),
        }
    }
}

/// Receives one part.
pub type KeyPartSink<'a> = &'a mut dyn FnMut(StepPart<'_>);

impl Step {
    /// Passes every part of the step's definition to `add`, in a fixed order.
    pub fn parts(&self, add: KeyPartSink<'_>) {
        match self {
            Step::Run(run) => run.parts(add),
            Step::Copy(copy) => copy.parts(add),
            Step::Workdir(workdir) => workdir.parts(add),
            Step::Scratch | Step::Image { .. } => {}
        }
    }
}

impl RunStep {
    fn parts(&self, add: KeyPartSink<'_>) {
        let RunStep {
            platform,
            args,
            env,
            proxies: _,
            cwd,
            user,
            network,
            security,
            hostname,
            hosts,
            mounts,
            secrets,
            agents,
            shm_size,
            ulimits,
            script,
        } = self;
        add(Own("platform", platform.to_string().as_bytes()));
        args.iter().for_each(|arg| add(Own("command", arg.as_bytes())));
        for (name, value) in env.iter() {
            add(Variable(name, value));
        }
        add(Own("working directory", cwd.as_bytes()));
        add(Own("user", user.as_bytes()));
        add(Own(
            "network",
            match network {
                NetworkMode::Host => &b"host"[..],
                NetworkMode::Isolated => b"isolated",
                NetworkMode::None => b"none",
            },
        ));
        add(Own(
            "security",
            match security {
                SecurityMode::Sandbox => b"sandbox",
                SecurityMode::Insecure => b"insecure",
            },
        ));
        add(Own("host name", hostname.as_bytes()));
        // Only the names: an address may differ between builds without changing the result.
        hosts.iter().for_each(|(name, _)| add(Own("known host", name.as_bytes())));
        if let Some(bytes) = shm_size {
            add(Own("shm size", bytes.to_string().as_bytes()));
        }
        for Ulimit { resource, soft, hard } in ulimits {
            let name = resource.name().to_uppercase();
            add(Own("ulimit", format!("RLIMIT_{name} {soft} {hard}").as_bytes()));
        }
        if let Some(InlineFile { name, content }) = script {
            add(Own("script name", name.as_bytes()));
            add(Own("script", content.as_bytes()));
        }
        secrets.iter().for_each(|secret| secret.parts(add));
        agents.iter().for_each(|agent| agent.parts(add));
        mounts.iter().for_each(|mount| mount.parts(add));
    }
}

impl RunSecret {
    /// The mount options of a secret are part of the key; its content never is.
    fn parts(&self, add: KeyPartSink<'_>) {
        let RunSecret { id, target, env, required, mode, uid, gid, span: _ } = self;
        let (target, env) = (option("target", target.as_deref()), option("env", env.as_deref()));
        let (id, owner) = (quoted(id), owner(*mode, *uid, *gid));
        add(Own("secret", format!("{id}{target}{env} required={required} {owner}").as_bytes()));
    }
}

impl RunAgent {
    fn parts(&self, add: KeyPartSink<'_>) {
        let RunAgent { id, target, required, mode, uid, gid, span: _ } = self;
        let (id, target, owner) = (quoted(id), quoted(target), owner(*mode, *uid, *gid));
        add(Own("ssh agent", format!("{id} target={target} required={required} {owner}").as_bytes()));
    }
}

impl RunMount {
    fn parts(&self, add: KeyPartSink<'_>) {
        let RunMount { target, read_only, kind, from_name: _, span: _ } = self;
        let content = match kind {
            // The content of the source is an input with its own key; its name is not part of the
            // key.
            RunMountKind::Bind { from: _, source: _ } => "bind".to_string(),
            // The content of a cache is not part of the key, but the digest of its seed is an
            // input. "seeded" assigns that input to this cache.
            RunMountKind::Cache(RunCache { id, id_in_key, sharing: _, from, source, root }) => {
                let seed = if from.is_some() { "seeded" } else { "empty" };
                let id = option("id", id_in_key.then_some(id));
                let (CacheRoot::Stated { mode, uid, gid } | CacheRoot::OfSource { mode, uid, gid }) = root;
                format!("cache {seed} source={} {}{id}", quoted(source), owner(*mode, *uid, *gid))
            }
            RunMountKind::Tmpfs { size: Some(size) } => format!("tmpfs size={size}"),
            RunMountKind::Tmpfs { size: None } => "tmpfs".to_string(),
            // The path of a volume on the host is part of the key; its content never is.
            RunMountKind::Volume { id: _, source } => format!("volume source={}", quoted(source)),
        };
        let access = if *read_only { "read-only" } else { "writable" };
        add(Own("mount", format!("{} {access} {content}", quoted(target)).as_bytes()));
    }
}

impl CopyStep {
    fn parts(&self, add: KeyPartSink<'_>) {
        let CopyStep {
            from: _,
            sources: _,
            inline,
            dest,
            dest_is_dir,
            chown,
            chmod,
            exclude,
            parents,
            link,
            unpack,
            from_name: _,
        } = self;
        add(Own("destination", dest.as_bytes()));
        let yes_or_no = |on: bool| if on { &b"yes"[..] } else { b"no" };
        add(Own("destination is a directory", yes_or_no(*dest_is_dir)));
        add(Own("--parents", yes_or_no(*parents)));
        add(Own("--link", yes_or_no(*link)));
        add(Own("unpacks archives", yes_or_no(*unpack)));
        add(Own("--chown", chown.as_deref().unwrap_or("").as_bytes()));
        add(Own("--chmod", chmod.as_ref().map_or(String::new(), Chmod::key).as_bytes()));
        exclude.iter().for_each(|pattern| add(Own("--exclude", pattern.as_bytes())));
        for InlineFile { name, content } in inline {
            add(Own("here-document name", name.as_bytes()));
            add(Own("here-document", content.as_bytes()));
        }
    }

    /// Passes the source paths as written to `add`. Together with the key of the tree they are
    /// taken from, they determine the copied content.
    pub fn source_parts(&self, add: KeyPartSink<'_>) {
        let patterns = self.sources.iter().filter_map(CopySource::pattern);
        patterns.for_each(|pattern| add(Own("source", pattern.text().as_bytes())));
    }
}

impl WorkdirStep {
    fn parts(&self, add: KeyPartSink<'_>) {
        let WorkdirStep { path, user, time } = self;
        add(Own("directory", path.as_bytes()));
        add(Own("user", user.as_bytes()));
        add(Own("time", time.map_or(String::new(), |t| t.to_string()).as_bytes()));
    }
}

#[cfg(test)]
mod tests;
