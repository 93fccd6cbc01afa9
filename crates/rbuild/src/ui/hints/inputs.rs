//! Words of hints about build contexts, Dockerfiles and archives that are read.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::ui::hints::hint::Hint;

/// A correction of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputRemedy {
    /// Pass the Dockerfile or the context as a path.
    PassOneAsPath,
    /// Pass the Dockerfile and the context as paths.
    PassBothAsPaths,
    /// Pass the directory of the file.
    PassParent,
    /// Pass an existing build context.
    PassContext,
    /// Omit the Dockerfile, or pass the URL of a context.
    OmitFileOrPassUrl,
    /// Omit the Dockerfile, or pipe a context in.
    OmitFileOrPipe,
    /// Omit the Dockerfile.
    OmitFile,
    /// Use the path of the Dockerfile from the working directory.
    PathFromHere { path: PathBuf },
    /// Pass the path of a Dockerfile, or another context.
    PassDockerfile,
    /// Use the form of a named context.
    NamedContextForm,
    /// Pass an existing directory, or an image in its form.
    PassDirectoryOrImage { name: String, image: String },
    /// Correct the path of a file.
    CorrectPath,
    /// Build the target of a bake file first.
    BuildTarget,
    /// Download a context that is a directory.
    DownloadDirectory,
    /// Clone a git repository.
    CloneRepository,
    /// Download a context or a Dockerfile.
    DownloadInput,
    /// Download a file.
    DownloadFile,
    /// Copy a file into the context.
    CopyIntoContext,
    /// Use a regular file.
    RegularFile,
    /// Pipe a Dockerfile in.
    PipeDockerfile,
    /// Pipe a context in.
    PipeContext,
    /// Pass an archive, or pipe one in.
    PipeArchive,
    /// Pass a cache to builds.
    UseCacheFrom,
}

impl From<InputRemedy> for Hint {
    fn from(remedy: InputRemedy) -> Hint {
        Hint(remedy.words())
    }
}

impl InputRemedy {
    fn words(&self) -> Cow<'static, str> {
        match self {
            InputRemedy::PassOneAsPath => "pass one of them as a path".into(),
            InputRemedy::PassBothAsPaths => "pass the Dockerfile and the context as paths".into(),
            InputRemedy::PassParent => "pass the directory that contains it".into(),
            InputRemedy::PassContext => "pass the directory with the Dockerfile and the files to copy".into(),
            InputRemedy::OmitFileOrPassUrl => "omit -f, or pass the URL of a tar archive".into(),
            InputRemedy::OmitFileOrPipe => "omit -f, or pipe a tar archive in".into(),
            InputRemedy::OmitFile => "omit -f for ./Dockerfile".into(),
            InputRemedy::PathFromHere { path } => {
                format!("use the path from the working directory: -f {}", path.display()).into()
            }
            InputRemedy::PassDockerfile => "pass another Dockerfile with -f FILE, or another context".into(),
            InputRemedy::NamedContextForm => "use a form such as app=./dir or base=docker-image://IMAGE".into(),
            InputRemedy::PassDirectoryOrImage { name, image } => {
                format!("pass an existing directory, or an image in the form {name}=docker-image://{image}").into()
            }
            InputRemedy::CorrectPath => "correct the path, or create the file".into(),
            InputRemedy::BuildTarget => "build the other target first, and pass its directory or image".into(),
            InputRemedy::DownloadDirectory => "download it and pass the directory".into(),
            InputRemedy::CloneRepository => "clone it and pass the path".into(),
            InputRemedy::DownloadInput => "download it and pass the path".into(),
            InputRemedy::DownloadFile => "download the file and pass its path".into(),
            InputRemedy::CopyIntoContext => "copy the file into the context".into(),
            InputRemedy::RegularFile => "use a regular file".into(),
            InputRemedy::PipeDockerfile => "pipe the Dockerfile in: … | rbuild build -".into(),
            InputRemedy::PipeContext => "pipe the context in: tar -c . | rbuild build -".into(),
            InputRemedy::PipeArchive => "pass a file, or pipe an archive in".into(),
            InputRemedy::UseCacheFrom => "pass it to builds with --cache-from".into(),
        }
    }
}
