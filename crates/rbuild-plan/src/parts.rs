//! What a step contributes to its cache key, inputs aside: parts, each with a name that people understand, so that what
//! changed between two builds can be said.
//!
//! Each step is taken apart field by field, so that a new field does not compile until somebody decides.

use crate::Chmod;
use crate::graph::{
    AgentStep, CacheStep, CopyStep, InlineFile, MountKindStep, MountStep, Network, RunStep, SecretStep, Security,
    SourceNames, Step, Ulimit, WorkdirStep,
};

/// Takes one part: its name and its value. A name may come several times.
pub type Tell<'a> = &'a mut dyn FnMut(&'static str, &[u8]);

impl Step {
    /// Tells everything that the step is, but what it reads.
    pub fn parts(&self, tell: Tell<'_>) {
        match self {
            Step::Run(run) => run.parts(tell),
            Step::Copy(copy) => copy.parts(tell),
            Step::Workdir(workdir) => workdir.parts(tell),
            Step::Scratch | Step::Image { .. } => {}
        }
    }
}

impl RunStep {
    fn parts(&self, tell: Tell<'_>) {
        let RunStep {
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
        args.iter().for_each(|arg| tell("command", arg.as_bytes()));
        for (name, value) in env.iter() {
            tell("variable", format!("{name}={value}").as_bytes());
        }
        tell("working directory", cwd.as_bytes());
        tell("user", user.as_bytes());
        tell(
            "network",
            match network {
                Network::Host => &b"host"[..],
                Network::Isolated => b"isolated",
                Network::None => b"none",
            },
        );
        tell(
            "security",
            match security {
                Security::Sandbox => b"sandbox",
                Security::Insecure => b"insecure",
            },
        );
        tell("host name", hostname.as_bytes());
        // Where a host is may change from day to day; that it has a name counts.
        hosts.iter().for_each(|(name, _)| tell("known host", name.as_bytes()));
        if let Some(bytes) = shm_size {
            tell("shm size", bytes.to_string().as_bytes());
        }
        for Ulimit { name, soft, hard } in ulimits {
            tell("ulimit", format!("{name} {soft} {hard}").as_bytes());
        }
        if let Some(InlineFile { name, content }) = script {
            tell("script name", name.as_bytes());
            tell("script", content.as_bytes());
        }
        // Which secrets there are counts; what they are never does.
        for SecretStep { id, target, env, required, mode, uid, gid, span: _ } in secrets {
            tell("secret", format!("{id:?} {target:?} {env:?} {required} {mode:o} {uid} {gid}").as_bytes());
        }
        for AgentStep { id, target, required, mode, uid, gid, span: _ } in agents {
            tell("ssh agent", format!("{id:?} {target:?} {required} {mode:o} {uid} {gid}").as_bytes());
        }
        for MountStep { target, read_only, kind, span: _ } in mounts {
            let what = match kind {
                // What is mounted counts, and not where it comes from.
                MountKindStep::Bind { from: _, source: _ } => "bind".to_string(),
                // What a cache holds never counts, and so neither does which one it is; what it began with does, and which of
                // several caches the seeds of the key belong to is said here.
                MountKindStep::Cache(CacheStep { id: _, sharing: _, from, source, mode, uid, gid }) => {
                    let seed = if from.is_some() { "seeded" } else { "empty" };
                    format!("cache {seed} {source:?} {mode:o} {uid} {gid}")
                }
                MountKindStep::Tmpfs { size } => format!("tmpfs {size:?}"),
                // What a volume holds never counts; which one it is does.
                MountKindStep::Volume { index: _, source } => format!("volume {source:?}"),
            };
            let access = if *read_only { "read-only" } else { "writable" };
            tell("mount", format!("{target:?} {access} {what}").as_bytes());
        }
    }
}

impl CopyStep {
    fn parts(&self, tell: Tell<'_>) {
        let CopyStep {
            from: _,
            sources: _,
            inline,
            dest,
            dest_is_dir,
            chown,
            chmod,
            exclude,
            names,
            link,
            unpack,
            source_spans: _,
            from_name: _,
        } = self;
        tell("destination", dest.as_bytes());
        let answer = |on: bool| if on { &b"yes"[..] } else { b"no" };
        tell("destination is a directory", answer(*dest_is_dir));
        tell(
            "--parents",
            match names {
                SourceNames::Patterns => b"no",
                SourceNames::Parents => b"yes",
                SourceNames::Literal => b"literal",
            },
        );
        tell("--link", answer(*link));
        tell("unpacks archives", answer(*unpack));
        tell("--chown", chown.as_deref().unwrap_or("").as_bytes());
        tell("--chmod", chmod.as_ref().map_or(String::new(), Chmod::key).as_bytes());
        exclude.iter().for_each(|pattern| tell("--exclude", pattern.as_bytes()));
        for InlineFile { name, content } in inline {
            tell("here-document name", name.as_bytes());
            tell("here-document", content.as_bytes());
        }
    }

    /// The sources as they are written: with the key of what they are taken from, they stand for their content.
    pub fn source_parts(&self, tell: Tell<'_>) {
        self.sources.iter().for_each(|source| tell("source", source.as_bytes()));
    }
}

impl WorkdirStep {
    fn parts(&self, tell: Tell<'_>) {
        let WorkdirStep { path, user, time } = self;
        tell("directory", path.as_bytes());
        tell("user", user.as_bytes());
        tell("time", time.map_or(String::new(), |t| t.to_string()).as_bytes());
    }
}
