use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_remedy::{FileRemedy, IsolationRemedy, MachineRemedy, Remedy, SessionLimit, sentence};

/// The object of a failed system call, as messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A file. Its path is shown in backticks.
    Path(PathBuf),
    /// A file in a place with a name. Its path is meaningless to users, so only the name of the
    /// place is shown. See `RootDir::named`.
    Within {
        /// The place, as a noun phrase.
        place: Arc<str>,
        /// Path of the file.
        path: PathBuf,
    },
    /// Anything else, as a noun phrase, for example "a pipe". See [`described`].
    Described(Cow<'static, str>),
}

/// Returns an object that has no path, from a noun phrase with its article.
pub fn described(noun: impl Into<Cow<'static, str>>) -> Object {
    Object::Described(noun.into())
}

impl Object {
    /// Returns the path, if the object is a file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Object::Path(path) | Object::Within { path, .. } => Some(path),
            Object::Described(_) => None,
        }
    }

    /// Returns the name of the place, if the object is a file of one.
    pub fn place(&self) -> Option<&str> {
        match self {
            Object::Within { place, .. } => Some(place),
            Object::Path(_) | Object::Described(_) => None,
        }
    }
}

impl From<&Path> for Object {
    fn from(path: &Path) -> Object {
        Object::Path(path.to_path_buf())
    }
}

impl From<PathBuf> for Object {
    fn from(path: PathBuf) -> Object {
        Object::Path(path)
    }
}

impl From<&PathBuf> for Object {
    fn from(path: &PathBuf) -> Object {
        Object::Path(path.clone())
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Path(path) => f.write_str(&quoted(path)),
            Object::Within { place, .. } => f.write_str(place),
            Object::Described(noun) => f.write_str(noun),
        }
    }
}

/// A failed system call: its name, its object, and the kernel's error.
#[derive(Debug)]
pub struct Error {
    call: &'static str,
    object: Box<Object>,
    source: io::Error,
    /// The cause, if it is an ID that is not mapped here.
    unmapped: Option<Box<UnmappedId>>,
}

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns the error of the system call `call` on `object`.
    pub fn new(call: &'static str, object: impl Into<Object>, source: impl Into<io::Error>) -> Self {
        Error { call, object: Box::new(object.into()), source: source.into(), unmapped: None }
    }

    /// Returns the error for an object that is read as a file but has another type.
    pub(crate) fn not_a_file(call: &'static str, object: impl Into<Object>, noun: &str) -> Self {
        Error::new(call, object, io::Error::other(format!("it is {noun}, not a regular file")))
    }

    /// Returns the error with the name of the place that the file belongs to, a noun phrase.
    pub fn within(self, place: impl Into<Arc<str>>) -> Error {
        let object = match *self.object {
            Object::Path(path) | Object::Within { path, .. } => Object::Within { place: place.into(), path },
            described @ Object::Described(_) => described,
        };
        Error { object: Box::new(object), ..self }
    }

    pub(crate) fn because(self, unmapped: Option<UnmappedId>) -> Self {
        Error { unmapped: unmapped.map(Box::new), ..self }
    }

    /// Returns the ID that is not mapped here, if that is the cause.
    pub fn unmapped(&self) -> Option<&UnmappedId> {
        self.unmapped.as_deref()
    }

    /// Returns the remedy, if there is one. There is none for a full disk: the files that can be
    /// removed depend on the purpose of the file system.
    pub fn remedy(&self) -> Option<Remedy> {
        if let Some(unmapped) = self.unmapped() {
            return Some(unmapped.remedy());
        }
        match self.errno() {
            Some(libc::EAGAIN) if self.call == "pthread_create" => {
                Some(Remedy::Machine(MachineRemedy::RaiseSessionLimit { limit: SessionLimit::Processes }))
            }
            _ => remedy_of(&self.source),
        }
    }

    /// Returns the error of the system call, or of the reader or writer in its place.
    pub fn cause(&self) -> &io::Error {
        &self.source
    }

    /// Returns the error of a reader or a writer that took the place of the kernel, if it has that
    /// type.
    pub fn carried<E: std::error::Error + Send + Sync + 'static>(&self) -> Option<&E> {
        carried(&self.source)
    }

    /// Returns the error of a reader or a writer, like [`Error::carried`].
    ///
    /// # Errors
    ///
    /// Fails with this error if it does not carry an error of that type.
    pub fn into_carried<E: std::error::Error + Send + Sync + 'static>(self) -> std::result::Result<E, Error> {
        let Error { call, object, source, unmapped } = self;
        into_carried(source).map_err(|source| Error { call, object, source, unmapped })
    }

    /// Returns the problem without the object, as the rest of a sentence, for messages that call
    /// the object by another name.
    pub fn of_object(&self) -> String {
        let own = |problem: &str| problem.to_string();
        match (self.errno(), self.unmapped()) {
            (_, Some(unmapped)) => unmapped.to_string(),
            (Some(libc::ELOOP), _) => own("too many levels of symbolic links"),
            (Some(libc::ENAMETOOLONG), _) => {
                own("a name in its path exceeds the file system's limit (usually 255 bytes)")
            }
            _ => sentence(&self.source),
        }
    }

    /// Removes the object, for errors that call it by another name.
    pub fn without_object(self) -> KernelProblem {
        KernelProblem(self)
    }

    /// Returns the kind of the cause.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Returns the raw `errno`, if the kernel reported the failure.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Returns the object.
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// Returns true if a file does not exist.
    pub fn is_not_found(&self) -> bool {
        self.kind() == io::ErrorKind::NotFound
    }

    /// Returns true if a path does not exist, or something on it is of another type than the call
    /// expects: a file in place of a directory, a directory in place of a file, a symbolic link.
    pub fn is_gone(&self) -> bool {
        let other_type = self.call == "readlinkat" && self.errno() == Some(libc::EINVAL);
        let gone = [libc::ENOENT, libc::ENOTDIR, libc::EISDIR, libc::ELOOP, libc::ESTALE];
        other_type || self.errno().is_some_and(|errno| gone.contains(&errno))
    }

    /// Returns true if the file system is full or the quota is exhausted.
    pub fn is_disk_full(&self) -> bool {
        is_disk_full(&self.source)
    }
}

/// A failed system call without its object: the cause of an error that calls the object by another
/// name.
#[derive(Debug)]
pub struct KernelProblem(Error);

impl KernelProblem {
    /// Returns the error with its object.
    pub fn whole(&self) -> &Error {
        &self.0
    }
}

impl fmt::Display for KernelProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.of_object())
    }
}

/// Ends the chain, as [`Error`] does.
impl std::error::Error for KernelProblem {}

/// Returns the error that a reader or a writer returned as an I/O error, if it has that type. An
/// [`Error`] may have been wrapped around it.
pub fn carried<E: std::error::Error + Send + Sync + 'static>(e: &io::Error) -> Option<&E> {
    let inner = e.get_ref()?;
    inner.downcast_ref().or_else(|| carried(&inner.downcast_ref::<Error>()?.source))
}

/// Returns the error that a reader or a writer returned as an I/O error, if it has that type, like
/// [`carried`].
///
/// # Errors
///
/// Fails with the same error if it does not carry an error of that type.
pub fn into_carried<E: std::error::Error + Send + Sync + 'static>(e: io::Error) -> std::result::Result<E, io::Error> {
    if carried::<E>(&e).is_none() {
        return Err(e);
    }
    e.downcast().or_else(|e| into_carried(e.downcast::<Error>()?.source))
}

/// Returns true if the error is a full file system or an exhausted quota.
pub fn is_disk_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Returns the remedy of an I/O error, which may be an [`Error`] that was converted. There is none
/// for a full disk.
pub fn remedy_of(e: &io::Error) -> Option<Remedy> {
    if e.get_ref().is_some() {
        return carried::<Error>(e)?.remedy();
    }
    match e.raw_os_error()? {
        libc::ELOOP => Some(FileRemedy::RemoveLinkLoop.into()),
        libc::ENAMETOOLONG => Some(FileRemedy::ShortenName.into()),
        libc::EMFILE => Some(Remedy::Machine(MachineRemedy::RaiseSessionLimit { limit: SessionLimit::Files })),
        _ => None,
    }
}

/// Number of characters shown at each end of a shortened path.
const SHOWN: usize = 100;

/// Formats a path for a message. A very long path is shortened to both ends and its depth.
pub fn shown_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    let length = text.chars().count();
    if length <= 3 * SHOWN {
        return text.into_owned();
    }
    let (start, end): (String, String) =
        (text.chars().take(SHOWN).collect(), text.chars().skip(length - SHOWN).collect());
    format!("{start}…{end} ({} directories deep)", path.components().count())
}

/// Formats a path for a message: in backticks, with control characters escaped. A very long path
/// is shortened.
pub fn quoted(path: impl AsRef<Path>) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
    format!("`{}`", shown_path(path.as_ref()).chars().map(escape).collect::<String>())
}

/// Returns the operation of a system call, as a verb that takes the object. Messages do not name
/// system calls.
fn operation(call: &'static str) -> &'static str {
    match call {
        "open" | "openat" | "openat2" | "open_tree" | "dup" | "pidfd_open" | "posix_openpt" | "socket" => "open",
        "read" | "pread" | "getdents64" | "getrandom" | "lseek" => "read",
        "write" | "pwrite" | "copy_file_range" | "ftruncate" => "write",
        "stat" | "statx" | "fstat" | "lstat" | "fcntl" | "llistxattr" | "lgetxattr" => "read the attributes of",
        "readlink" | "readlinkat" => "read the link",
        "realpath" | "getcwd" => "find",
        "creat" => "create",
        "mkdirat" => "create the directory",
        "mknodat" | "memfd_create" | "pipe2" | "socketpair" | "signalfd4" | "unshare" | "bind" => "create",
        "linkat" | "symlinkat" => "create the link",
        "unlinkat" => "remove",
        "rename" | "renameat" => "rename",
        "fchown" | "fchownat" | "recording the owner" => "set the owner of",
        "fchmod" | "fchmodat" => "set the mode of",
        "futimens" | "utimensat" => "set the times of",
        "setxattr" | "lsetxattr" | "lremovexattr" | "fcntl(F_SETFL)" => "set the attributes of",
        "mount" | "fsopen" | "fsconfig" | "fsconfig(CREATE)" | "fsmount" | "move_mount" | "mount_setattr" => "mount",
        "umount2" => "unmount",
        "fchdir" | "chdir" | "chroot" | "pivot_root" | "setns" | "walking" => "enter",
        "flock" => "lock",
        "fcntl(F_OFD_SETLK)" => "take",
        "fcntl(F_OFD_GETLK)" => "query",
        "fcntl(F_ADD_SEALS)" => "seal",
        "syncfs" => "sync",
        "execve" => "execute",
        "clone3" | "pthread_create" => "start",
        "wait4" | "poll" => "wait for",
        "setgroups" | "setresgid" | "setresuid" => "switch to",
        "sigprocmask" | "rt_sigaction" => "reset",
        "sethostname" | "setrlimit" | "prctl" => "set",
        "seccomp" => "install",
        "sendmsg" | "send" => "send to",
        "recvmsg" | "recv" => "receive from",
        "connect" => "connect to",
        "dup2" => "redirect",
        "faccessat" => "check the access to",
        "unlockpt" => "unlock",
        "ioctl(TIOCGPTPEER)" => "open the other end of",
        "ioctl(SIOCSIFFLAGS)" => "activate",
        _ => "use",
    }
}

/// Returns the verb for a failed operation on a place: the kind of access to it.
fn access(operation: &str, e: &io::Error) -> &'static str {
    match operation {
        _ if is_disk_full(e) || e.kind() == io::ErrorKind::ReadOnlyFilesystem => "write to",
        "open" | "read" | "read the attributes of" | "read the link" | "find" | "enter" => "read",
        "use" | "mount" | "unmount" | "lock" | "execute" | "check the access to" => "use",
        _ => "write to",
    }
}

/// An ID that the user namespace of this process does not map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmappedId {
    pub(crate) kind: &'static str,
    pub(crate) id: u32,
    /// The IDs that are mapped: first and last of each range.
    pub(crate) mapped: Vec<(u32, u32)>,
    /// The file that grants more of them.
    pub(crate) file: &'static str,
}

impl UnmappedId {
    /// Returns the remedy.
    pub fn remedy(&self) -> Remedy {
        Remedy::Isolation(IsolationRemedy::GrantIds { file: self.file.into() })
    }
}

impl fmt::Display for UnmappedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range =
            |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first} to {last}") };
        let mapped: Vec<String> = self.mapped.iter().map(range).collect();
        write!(f, "{} ID {} is not mapped; mapped IDs: {}", self.kind, self.id, mapped.join(", "))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = &self.object;
        if let Object::Within { place, .. } = &**object {
            return write!(f, "cannot {} {place}: {}", access(operation(self.call), &self.source), self.of_object());
        }
        match self.errno() {
            Some(libc::ELOOP) => write!(f, "cannot resolve {object}: too many levels of symbolic links"),
            Some(libc::ENAMETOOLONG) => {
                write!(f, "{object} has a name that exceeds the file system's limit (usually 255 bytes)")
            }
            Some(libc::EMFILE) => write!(f, "cannot open {object}: too many open files in this process"),
            _ => match &self.unmapped {
                Some(unmapped) => write!(f, "cannot {} {object}: {unmapped}", operation(self.call)),
                None => write!(f, "cannot {} {object}: {}", operation(self.call), sentence(&self.source)),
            },
        }
    }
}

/// The message contains the kernel's error, which is therefore not part of the source chain; see
/// [`Error::errno`]. The same applies to all causes of an error that a reader or a writer returned.
impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(e: Error) -> io::Error {
        io::Error::new(e.kind(), e)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};
    use rustix::io::Errno;

    use super::*;

    /// Calls, each with the noun of its object.
    const CALLS_OF_NOUNS: [(&str, &str); 44] = [
        ("fcntl(F_OFD_SETLK)", "a file lock"),
        ("fcntl(F_OFD_GETLK)", "a file lock"),
        ("fcntl(F_ADD_SEALS)", "the running program"),
        ("fcntl(F_SETFL)", "the pipes of the command"),
        ("flock", "a temporary directory of the store"),
        ("read", "file contents"),
        ("write", "file contents"),
        ("write", "a copy of the program"),
        ("memfd_create", "a file in memory"),
        ("pipe2", "a pipe"),
        ("pipe2", "a pipe for the command's output"),
        ("pipe2", "the pipes of the command"),
        ("socketpair", "a pair of sockets"),
        ("signalfd4", "a receiver of signals"),
        ("unshare", "a user namespace"),
        ("unshare", "a mount namespace"),
        ("unshare", "a network namespace"),
        ("setns", "the container's mount namespace"),
        ("pivot_root", "the new root directory"),
        ("mount", "the root directory without propagation"),
        ("fsopen", "a new tmpfs file system"),
        ("clone3", "a process in new namespaces"),
        ("pthread_create", "a thread"),
        ("wait4", "process 7"),
        ("setresuid", "user and group 0"),
        ("setresuid", "the user of the command"),
        ("setgroups", "user 7 and group 7"),
        ("sigprocmask", "the handling of signals"),
        ("setrlimit", "the limit `nofile`"),
        ("sethostname", "the host name `build`"),
        ("prctl", "the signal at the end of the parent process"),
        ("prctl", "the reaper of orphaned processes"),
        ("prctl", "the flag that keeps capabilities"),
        ("prctl", "the dumpable attribute of the process"),
        ("seccomp", "a seccomp filter"),
        ("seccomp", "a seccomp filter with a listener"),
        ("sendmsg", "the supervisor"),
        ("send", "the runner process"),
        ("recvmsg", "the terminal"),
        ("recv", "the builder process"),
        ("dup2", "standard input"),
        ("unlockpt", "a terminal"),
        ("ioctl(TIOCGPTPEER)", "a terminal"),
        ("ioctl(SIOCSIFFLAGS)", "the loopback interface"),
    ];

    /// Returns calls, each with an object that it may have.
    fn calls() -> Vec<(&'static str, Object)> {
        let path = || Object::from(Path::new("/d/a b\n"));
        let files = [
            "openat",
            "pread",
            "copy_file_range",
            "statx",
            "readlink",
            "realpath",
            "mkdirat",
            "mknodat",
            "linkat",
            "unlinkat",
            "renameat",
            "fchown",
            "recording the owner",
            "fchmod",
            "utimensat",
            "lsetxattr",
            "move_mount",
            "umount2",
            "pivot_root",
            "walking",
            "connect",
            "faccessat",
            "flock",
            "syncfs",
            "execve",
            "fsync",
        ];
        files
            .map(|call| (call, path()))
            .into_iter()
            .chain(CALLS_OF_NOUNS.map(|(call, noun)| (call, described(noun))))
            .collect()
    }

    #[test]
    fn a_converted_error_keeps_its_remedy() {
        let io = |errno| io::Error::from(Error::new("openat", Path::new("/d/f"), io::Error::from(errno)));
        assert_eq!(
            remedy_of(&io(Errno::MFILE)),
            Some(Remedy::Machine(MachineRemedy::RaiseSessionLimit { limit: SessionLimit::Files }))
        );
        assert_eq!(remedy_of(&Errno::NAMETOOLONG.into()), Some(FileRemedy::ShortenName.into()));
        assert_eq!(remedy_of(&io(Errno::ACCESS)), None);
        assert!(is_disk_full(&io(Errno::NOSPC)));
    }

    #[test]
    fn the_error_of_a_reader_is_carried_to_the_caller() {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        struct Odd;
        impl fmt::Display for Odd {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("odd")
            }
        }
        impl std::error::Error for Odd {}
        let read = |cause| Error::new("read", Path::new("/d/f"), cause);
        let direct = || io::Error::other(Odd);
        let wrapped = || io::Error::from(read(direct()));
        assert_eq!(
            (carried(&direct()), carried(&wrapped()), read(direct()).carried()),
            (Some(&Odd), Some(&Odd), Some(&Odd))
        );
        assert_eq!((into_carried(direct()).unwrap(), into_carried(wrapped()).unwrap()), (Odd, Odd));
        let other = || io::Error::from(read(Errno::IO.into()));
        assert_eq!(carried::<Odd>(&other()), None);
        assert_eq!(into_carried::<Odd>(other()).unwrap_err().to_string(), other().to_string());
        assert_eq!(wrapped().to_string(), "cannot read `/d/f`: odd");
        assert_eq!(read(Errno::LOOP.into()).without_object().to_string(), "too many levels of symbolic links");
    }

    #[test]
    fn paths_are_shown_as_recorded() {
        let rows =
            ["/a b/\u{e9}", "/a\n\t\u{7}", "", &"/d".repeat(150), &"/d".repeat(151)].map(|path| quoted(path) + "\n");
        assert_recorded!("paths", rows.concat());
    }

    #[test]
    fn messages_are_as_recorded() {
        let mut errors: Vec<Error> =
            calls().into_iter().map(|(call, object)| Error::new(call, object, Errno::ACCESS)).collect();
        let path = Path::new("/d/f");
        for errno in [Errno::LOOP, Errno::NAMETOOLONG, Errno::MFILE, Errno::NOSPC] {
            errors.push(Error::new("openat", path, errno));
        }
        errors.push(Error::new("pthread_create", described("a thread"), Errno::AGAIN));
        errors.push(Error::not_a_file("openat", path, "a FIFO"));
        let unmapped = UnmappedId { kind: "user", id: 70000, mapped: vec![(0, 0), (5, 9)], file: "/etc/subuid" };
        errors.push(Error::new("fchown", path, Errno::INVAL).because(Some(unmapped)));
        let within = |call, errno: Errno| Error::new(call, path, errno).within("the snapshots in the store `/s`");
        errors.extend(["openat", "creat", "renameat", "flock"].map(|call| within(call, Errno::ACCESS)));
        errors.extend([Errno::NOSPC, Errno::ROFS, Errno::LOOP, Errno::MFILE].map(|errno| within("openat", errno)));
        assert_recorded!("Error", variants!(Error).table(&errors, |e| e, Error::remedy));
    }
}
