//! Contexts of errors.

use std::fmt;
use std::path::Path;

use rbuild_linux::quoted;

/// The object or operation with which the message of an error of the kernel, of a layer or of a
/// stream begins. Paths are those in the image or in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorContext<'a> {
    BuildContext,
    ContextMount,
    StepDirectory,
    StepFiles,
    ImageFiles,
    ContainerFiles,
    Result,
    Layer,
    LayerComparison,
    SecretSearch,
    AgentSocket,
    OutputArchive,
    OutputTar,
    CopiedTar,
    Output(&'a Path),
    OutputDirectory(&'a Path),
    OutputFile(&'a Path),
    CopiedFile(&'a Path),
    CopyInto(&'a str),
    UnpackInto(&'a str),
    CreateDirectory(&'a str),
    DirectoryTime(&'a Path),
    CacheMount(&'a str),
    CacheDirectory { id: &'a str, part: &'a str },
}

impl fmt::Display for ErrorContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ErrorContext::BuildContext => f.write_str("the build context"),
            ErrorContext::ContextMount => f.write_str("the files of the context mount"),
            ErrorContext::StepDirectory => f.write_str("the step's directory"),
            ErrorContext::StepFiles => f.write_str("the step's files"),
            ErrorContext::ImageFiles => f.write_str("the image's files"),
            ErrorContext::ContainerFiles => f.write_str("the container's files"),
            ErrorContext::Result => f.write_str("the files of the result"),
            ErrorContext::Layer => f.write_str("a layer"),
            ErrorContext::LayerComparison => f.write_str("comparing the layers"),
            ErrorContext::SecretSearch => f.write_str("searching for secrets"),
            ErrorContext::AgentSocket => f.write_str("the socket of the SSH agent"),
            ErrorContext::OutputArchive => f.write_str("cannot write the output archive"),
            ErrorContext::OutputTar => f.write_str("the output tar"),
            ErrorContext::CopiedTar => f.write_str("the tar"),
            ErrorContext::Output(path) => write!(f, "the output {}", quoted(path)),
            ErrorContext::OutputDirectory(path) => write!(f, "the output directory {}", quoted(path)),
            ErrorContext::OutputFile(path) => write!(f, "writing the output file {}", quoted(path)),
            ErrorContext::CopiedFile(path) => write!(f, "writing {}", quoted(path)),
            ErrorContext::CopyInto(dest) => write!(f, "copying into `{dest}`"),
            ErrorContext::UnpackInto(dest) => write!(f, "unpacking into `{dest}`"),
            ErrorContext::CreateDirectory(path) => write!(f, "creating `{path}`"),
            ErrorContext::DirectoryTime(path) => write!(f, "setting the time of {}", quoted(path)),
            ErrorContext::CacheMount(id) => write!(f, "the cache mount `{id}`"),
            ErrorContext::CacheDirectory { id, part } => write!(f, "`{part}` in the cache mount `{id}`"),
        }
    }
}

impl From<ErrorContext<'_>> for String {
    fn from(context: ErrorContext<'_>) -> String {
        context.to_string()
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn contexts_are_as_recorded() {
        let path = Path::new("out/a\nb");
        let contexts = [
            ErrorContext::BuildContext,
            ErrorContext::ContextMount,
            ErrorContext::StepDirectory,
            ErrorContext::StepFiles,
            ErrorContext::ImageFiles,
            ErrorContext::ContainerFiles,
            ErrorContext::Result,
            ErrorContext::Layer,
            ErrorContext::LayerComparison,
            ErrorContext::SecretSearch,
            ErrorContext::AgentSocket,
            ErrorContext::OutputArchive,
            ErrorContext::OutputTar,
            ErrorContext::CopiedTar,
            ErrorContext::Output(path),
            ErrorContext::OutputDirectory(path),
            ErrorContext::OutputFile(path),
            ErrorContext::CopiedFile(path),
            ErrorContext::CopyInto("/app"),
            ErrorContext::UnpackInto("/app"),
            ErrorContext::CreateDirectory("/app"),
            ErrorContext::DirectoryTime(path),
            ErrorContext::CacheMount("go"),
            ErrorContext::CacheDirectory { id: "go", part: "mod" },
        ];
        let variants = variants!(ErrorContext {
            BuildContext,
            ContextMount,
            StepDirectory,
            StepFiles,
            ImageFiles,
            ContainerFiles,
            Result,
            Layer,
            LayerComparison,
            SecretSearch,
            AgentSocket,
            OutputArchive,
            OutputTar,
            CopiedTar,
            Output,
            OutputDirectory,
            OutputFile,
            CopiedFile,
            CopyInto,
            UnpackInto,
            CreateDirectory,
            DirectoryTime,
            CacheMount,
            CacheDirectory,
        });
        assert_recorded!("ErrorContext", variants.words(&contexts, ToString::to_string));
    }
}
