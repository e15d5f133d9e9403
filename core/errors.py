"""Every error that a user can cause, in one tree.

::

    NexusError
    └── UserError            exit code 2, one line on stderr
        ├── DocumentError    a profile or plan that is not what it should be
        ├── MismatchError    a plan or profile made for another model or machine
        ├── EngineError      vLLM is missing, or refuses the given options
        ├── PartitionError   the GPU or driver cannot give the SMs asked for
        └── InfeasibleError  exit code 3: no plan meets the bounds
"""


class NexusError(Exception):
    """Base of all errors that Nexus raises on purpose."""

    exit_code = 1


class UserError(NexusError):
    """A mistake or a limit that the user can act on; the message is one line."""

    exit_code = 2


class DocumentError(UserError):
    """A profile or plan file is unreadable, of another schema, or has a bad field."""


class MismatchError(UserError):
    """A plan or profile belongs to another model or machine than the one at hand."""


class EngineError(UserError):
    """vLLM is absent, cannot load the model, or refuses an option."""


class PartitionError(UserError):
    """The GPU, its driver or a library cannot give the partition asked for."""


class InfeasibleError(UserError):
    """No measured way to share the GPU meets the bounds."""

    exit_code = 3
