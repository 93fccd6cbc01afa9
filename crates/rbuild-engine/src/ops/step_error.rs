//! Errors of attempts to execute a step.

use crate::error::BuildError;

/// The reason why an attempt to execute a step did not succeed.
#[derive(Debug)]
pub(crate) enum StepError {
    /// The context changed while the step read it. The key is computed again, and the step is
    /// executed again.
    ContextChanged,
    /// The step failed.
    Failed(BuildError),
}

/// The result of a part of an attempt to execute a step.
pub(crate) type Attempt<T> = std::result::Result<T, StepError>;

impl<E> From<E> for StepError
where
    BuildError: From<E>,
{
    fn from(e: E) -> StepError {
        StepError::Failed(e.into())
    }
}
