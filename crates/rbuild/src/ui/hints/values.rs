//! Words of hints about values of flags, variables and the configuration file.

use std::borrow::Cow;

use crate::ui::hints::hint::Hint;

/// A correction of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueRemedy {
    /// Use the form of a platform.
    PlatformForm,
    /// Use the form of a list of platforms.
    PlatformsForm,
    /// Use the form of a host with its address.
    HostForm,
    /// Use the form of a resource limit.
    UlimitForm,
    /// Use a number as the limit, or none.
    NumberOrUnlimited,
    /// Swap the soft and the hard limit.
    SwapLimits { resource: String, soft: String, hard: String },
    /// Raise the hard limit of the session.
    RaiseHardLimit,
    /// Use the form of a volume.
    VolumeForm,
    /// Create the source of a mount, or correct its path.
    CreateSource,
    /// Pass a directory instead of the name of a volume.
    PassDirectory { name: String },
    /// Use the form of a device.
    DeviceForm,
    /// Mount a file with another flag.
    MountFile,
    /// Let containers share the network of this machine.
    ShareNetwork,
    /// Use a valid name for a volume.
    VolumeName,
    /// Mount a directory or a volume.
    BindDirectory,
    /// Use the form of a mount.
    MountForm,
    /// Mount something at another path of the container.
    OtherTarget,
    /// Add the value of an annotation.
    AnnotationForm,
    /// Omit the type of an annotation.
    OmitType,
    /// Annotate the manifest.
    ManifestOrOmitType,
    /// Use the form of a secret.
    SecretForm,
    /// Add the ID of a secret.
    AddSecretId,
    /// Permit this user to read a file.
    PermitFile,
    /// Pass a file.
    PassFile,
    /// Create a file, or correct its path.
    CreateFile,
    /// Start an SSH agent, or pass a key.
    StartAgent,
    /// Pass each socket of an agent under its own ID.
    SeparateSockets,
    /// Use another policy than `newer`.
    PullAlways,
    /// Use the form of an address.
    AddressForm,
    /// Use a mode in octal digits.
    ModeForm,
    /// Use the form of a tmpfs.
    TmpfsForm,
    /// Use the name of a capability.
    CapabilityForm,
    /// Run the command with most system calls.
    Privileged,
    /// Use the form of a port.
    PortForm,
    /// Use the form of a published port.
    PublishForm,
    /// Publish another port.
    OtherPort { publish: String },
    /// Use the form of a signal.
    SignalForm,
    /// Use a number of lines, or all.
    LinesForm,
    /// Use the form of a duration or a time.
    MomentForm,
    /// Use a name with the ending of a page.
    HtmlName,
    /// Use the form of a size.
    SizeForm,
    /// Use the form of a cache that is read.
    CacheSourceForm,
    /// Use the form of a cache that is written.
    CacheTargetForm,
    /// Write the cache before it is required.
    WriteCacheFirst,
    /// Import no cache before one was exported.
    SkipFirstImport,
    /// Use a number of processors.
    CpusForm,
    /// Add the name of a cache in a registry.
    CacheRefForm,
    /// Use the form of a cache in a bucket of S3.
    CacheBucketForm,
    /// Use the form of a cache in a container of Azure.
    CacheContainerForm,
    /// Use version 2 of GitHub's cache service.
    CacheServiceVersion,
    /// Use a number of shards.
    CacheShardsRange { most: u32 },
    /// Sign a cache, or trust the key of its writer.
    TrustWriter,
    /// Sign a cache that is exported, or trust the key of its writer.
    SignExport,
    /// Verify a cache that is read.
    VerifySource,
    /// Pass the name of a file instead of a key.
    KeyInFile,
    /// Name a scope.
    ScopeForm,
    /// Write a cache to one scope.
    OneScope,
    /// Add the type of a cache in a registry.
    CacheRegistryForm,
    /// Pass the variables of a job to a step.
    PassJobVariables,
    /// Use a URL with its scheme.
    UrlForm,
    /// Make a key that signs caches.
    CreateSigningKey,
    /// Pass a public key.
    PublicKeyForm,
    /// Use the form of a line in a file of values.
    LineForm,
    /// Use a time with a unit.
    CheckTimeForm,
    /// Use a number of failed checks.
    RetriesForm,
    /// Use a number of seconds.
    SecondsForm,
    /// Use a number above zero.
    AtLeastOne,
    /// Use a number or a size.
    LimitForm,
    /// Add the value of a limit.
    LimitPair { name: &'static str },
    /// Quote a string of the configuration file.
    QuoteString,
    /// Write a number of the configuration file without quotation marks.
    UnquoteNumber,
    /// Correct a line of the configuration file.
    CorrectLine { line: usize },
    /// Write a list of the configuration file in brackets.
    BracketList,
    /// Write the settings of a registry as a table with its host.
    RegistryTable,
    /// Write a list of places of mirrors.
    MirrorForm,
    /// Write a truth value.
    TrueOrFalse,
    /// Use an absolute path.
    AbsolutePath,
    /// Use the form of a name with a digest.
    DigestForm,
    /// Use the form of a name with its value.
    PairForm { flag: String },
    /// Pass a value before the context.
    PassPair { flag: String, context: String },
    /// Omit a flag that needs a terminal.
    OmitInScripts,
    /// Permit an output to delete files.
    PermitDelete,
    /// Correct the path of a file with logins, or create it.
    LoginFile,
    /// Name a repository without a tag.
    OmitTag,
    /// Pass a directory with certificates.
    CertificateDirectory,
    /// Log in to each registry.
    LogInToEach,
}

impl From<ValueRemedy> for Hint {
    fn from(remedy: ValueRemedy) -> Hint {
        Hint(remedy.words())
    }
}

impl ValueRemedy {
    fn words(&self) -> Cow<'static, str> {
        match self {
            ValueRemedy::PlatformForm => "use a form such as linux/arm64".into(),
            ValueRemedy::PlatformsForm => "use a form such as linux/arm64, or linux/amd64,linux/arm64".into(),
            ValueRemedy::HostForm => "use the form NAME:ADDRESS, for example db:10.0.0.1".into(),
            ValueRemedy::UlimitForm => "use a form such as nofile=1024:2048".into(),
            ValueRemedy::NumberOrUnlimited => "use a number, or -1 for no limit".into(),
            ValueRemedy::SwapLimits { resource, soft, hard } => format!("use {resource}={hard}:{soft}").into(),
            ValueRemedy::RaiseHardLimit => "raise the session's limit (ulimit -H, limits.conf, LimitNOFILE=)".into(),
            ValueRemedy::VolumeForm => {
                "pass the directory and its path in the container, for example ./data:/data".into()
            }
            ValueRemedy::CreateSource => "create it, or correct the path".into(),
            ValueRemedy::PassDirectory { name } => {
                format!("pass a directory such as ./{name}; only containers have volumes with names").into()
            }
            ValueRemedy::DeviceForm => "use a form such as /dev/fuse or /dev/ttyUSB0:/dev/modem:rw".into(),
            ValueRemedy::MountFile => "mount it with -v".into(),
            ValueRemedy::ShareNetwork => "run both with --network host; they reach each other at localhost".into(),
            ValueRemedy::VolumeName => {
                "use at least two letters, digits, `_`, `.` and `-`, and begin with a letter or a digit".into()
            }
            ValueRemedy::BindDirectory => "use type=bind with a directory, type=volume or type=tmpfs".into(),
            ValueRemedy::MountForm => "use the form type=bind,source=PATH,target=PATH".into(),
            ValueRemedy::OtherTarget => "mount one of them at another path of the container".into(),
            ValueRemedy::AnnotationForm => "add a value, such as org.example.team=web".into(),
            ValueRemedy::OmitType => "omit the type".into(),
            ValueRemedy::ManifestOrOmitType => "use manifest, or omit the type".into(),
            ValueRemedy::SecretForm => "use a form such as id=NAME,src=FILE or id=NAME,env=VARIABLE".into(),
            ValueRemedy::AddSecretId => "add id=NAME".into(),
            ValueRemedy::PermitFile => "change the owner or the mode of the file, or pass another".into(),
            ValueRemedy::PassFile => "pass a file".into(),
            ValueRemedy::CreateFile => "correct the path, or create the file".into(),
            ValueRemedy::StartAgent => "start ssh-agent and add a key, or pass a key: --ssh default=FILE".into(),
            ValueRemedy::SeparateSockets => "pass each socket with its own id".into(),
            ValueRemedy::PullAlways => {
                "use always, which downloads an image only if the registry has another one".into()
            }
            ValueRemedy::AddressForm => "use an address, such as 10.0.0.1".into(),
            ValueRemedy::ModeForm => "use a mode in octal digits, such as 1777".into(),
            ValueRemedy::TmpfsForm => "use the form type=tmpfs,target=PATH".into(),
            ValueRemedy::CapabilityForm => "use a name of capabilities(7), such as NET_ADMIN, or ALL".into(),
            ValueRemedy::Privileged => "pass --privileged for a command that needs more system calls".into(),
            ValueRemedy::PortForm => "use a number from 1 to 65535, for example 80 or 53/udp".into(),
            ValueRemedy::PublishForm => {
                "pass a port of this machine and one of the container, for example -p 8080:80 or -p 127.0.0.1:8080:80"
                    .into()
            }
            ValueRemedy::OtherPort { publish } => format!("publish another port: -p {publish}").into(),
            ValueRemedy::SignalForm => "use a name or a number, such as TERM or 15".into(),
            ValueRemedy::HtmlName => "use a name such as build.html".into(),
            ValueRemedy::MomentForm => {
                "use a duration such as 10s or 1h30m, or a time such as 2026-01-31T12:00:00Z".into()
            }
            ValueRemedy::LinesForm => "use a number, or all".into(),
            ValueRemedy::SizeForm => "use a number with a unit, such as 64m or 10g".into(),
            ValueRemedy::CacheSourceForm => "use a form such as type=local,src=DIR".into(),
            ValueRemedy::SkipFirstImport => {
                "correct the path, or omit the import until a job has exported the cache (`rbuild help ci`)".into()
            }
            ValueRemedy::WriteCacheFirst => "correct the path, or write the cache with --cache-to before".into(),
            ValueRemedy::CacheTargetForm => "use a form such as type=local,dest=DIR,mode=max".into(),
            ValueRemedy::CpusForm => "use a number, such as 1.5".into(),
            ValueRemedy::CacheRefForm => "add the name of the cache, such as ref=ghcr.io/me/app:cache".into(),
            ValueRemedy::CacheBucketForm => "use a form such as type=s3,bucket=NAME,region=eu-central-1".into(),
            ValueRemedy::CacheContainerForm => {
                "use a form such as type=azblob,account_url=https://NAME.blob.core.windows.net".into()
            }
            ValueRemedy::CacheServiceVersion => "set ACTIONS_RESULTS_URL, or use another type of cache".into(),
            ValueRemedy::CacheShardsRange { most } => format!("use a number from 1 to {most}").into(),
            ValueRemedy::TrustWriter => {
                "write the cache with sign=KEYFILE, and pass the public keys of all of its writers with verify=".into()
            }
            ValueRemedy::SignExport => {
                "write the cache with --sign KEYFILE, and pass the public keys of all of its writers with --verify"
                    .into()
            }
            ValueRemedy::KeyInFile => {
                "write the key to a file that only this job can read, and pass its name; where secrets are variables, \
                 use one of type file"
                    .into()
            }
            ValueRemedy::ScopeForm => {
                "check the variable that states the scope, or omit scope= for the cache without one".into()
            }
            ValueRemedy::OneScope => "name one scope; --cache-from can read several".into(),
            ValueRemedy::CacheRegistryForm => "add type=registry".into(),
            ValueRemedy::PassJobVariables => {
                "pass both variables of the job to the step; `rbuild help ci` shows how".into()
            }
            ValueRemedy::UrlForm => "write it with its scheme, such as https://HOST:PORT".into(),
            ValueRemedy::VerifySource => "add verify= with the public keys of its writers".into(),
            ValueRemedy::CreateSigningKey => {
                "make a key, for example with `ssh-keygen -t ed25519 -N '' -f KEYFILE`".into()
            }
            ValueRemedy::PublicKeyForm => "pass the file of a public key, such as KEYFILE.pub".into(),
            ValueRemedy::LineForm => "write one NAME=VALUE per line, without blanks in the name".into(),
            ValueRemedy::CheckTimeForm => "use a time with a unit, such as 30s, 1m30s or 500ms".into(),
            ValueRemedy::RetriesForm => "use a number, such as 3".into(),
            ValueRemedy::SecondsForm => "use a number, such as 60".into(),
            ValueRemedy::AtLeastOne => "use 1 or more".into(),
            ValueRemedy::LimitForm => "use a number, with or without a unit, such as 1000 or 10g".into(),
            ValueRemedy::LimitPair { name: name @ "bytes" } => {
                format!("use the form NAME=VALUE, for example {name}=20g").into()
            }
            ValueRemedy::LimitPair { name } => format!("use the form NAME=VALUE, for example {name}=5000").into(),
            ValueRemedy::QuoteString => "put the value into quotation marks".into(),
            ValueRemedy::UnquoteNumber => "write a number without quotation marks, for example 4".into(),
            ValueRemedy::CorrectLine { line } => {
                format!("correct line {line}; a setting has the form NAME = VALUE, with strings in quotation marks")
                    .into()
            }
            ValueRemedy::BracketList => "put the strings into brackets: [\"NAME=VALUE\"]".into(),
            ValueRemedy::RegistryTable => "write a table with a host, for example [registry.\"docker.io\"]".into(),
            ValueRemedy::MirrorForm => "name hosts without a scheme, for example [\"mirror.io:5000/hub\"]".into(),
            ValueRemedy::TrueOrFalse => "write true or false, without quotation marks".into(),
            ValueRemedy::AbsolutePath => "begin the path with /".into(),
            ValueRemedy::DigestForm => "use the form NAME@sha256: followed by the 64 digits of the digest".into(),
            ValueRemedy::PairForm { flag } => format!("use the form {flag} NAME=VALUE").into(),
            ValueRemedy::PassPair { flag, context } => {
                format!("pass a value for {flag}: {flag} NAME=VALUE {context}").into()
            }
            ValueRemedy::OmitInScripts => "omit it in scripts".into(),
            ValueRemedy::PermitDelete => "add --allow local.delete to permit it".into(),
            ValueRemedy::LoginFile => "correct the path, or log in with `rbuild login --authfile FILE`".into(),
            ValueRemedy::CertificateDirectory => "pass a directory with *.crt, or *.cert and *.key".into(),
            ValueRemedy::OmitTag => "pass the name of the repository alone, or omit --all-tags".into(),
            ValueRemedy::LogInToEach => "log in to each with `rbuild login REGISTRY`".into(),
        }
    }
}
