//! Named containers. Those that `create` makes only refer to an image, whose files scripts copy.
//! Those that `run` starts have settings, a process and output as well.

mod documents;
mod output;
mod runs;

pub use documents::{Container, Containers, NewContainer};
pub use output::{OutputFrame, OutputReader, OutputStream, OutputWriter};
pub use runs::{ContainerState, Ended, RunLock, RunSettings, RunWatch, Started};
