"""Every error udever raises on purpose, drawn as a tree; each has a stable code and a hint that says the way out.

UdeverError
├── InputError                 what the caller passed
│   ├── EmptyTextError           an empty text has no embedding
│   ├── TextTypeError            not a string, or a string that is no valid Unicode
│   ├── TooManyTokensError       longer than max_tokens and truncate="error"
│   ├── OptionError              a role, precision, device, … that does not exist
│   │   └── DimensionsError        a prefix size this model was not trained for
│   └── FileInputError           a file that cannot be read as texts
├── QueueError                 a queue before a model cannot take or finish work
│   ├── OverloadedError          more is queued than can be done in time; says when to come again
│   ├── QueueClosedError         the queue is closing, or its model thread died
│   └── SequenceFailedError      one text failed inside the model; its neighbours did not
├── TrainingError              a training run cannot start or go on
│   ├── RecipeError              a recipe that cannot be run
│   ├── ExamplesError            training data in another shape than it must have
│   ├── RunChangedError          a run is resumed with another recipe or other data
│   └── DivergedError            NaN or infinity in a loss or gradient
├── BulkError                  a bulk run cannot start or go on
│   ├── OutputError              a folder that is no bulk output, or a damaged one
│   └── JobChangedError          a run is resumed with other inputs, options or another model
├── CatalogError               a manifest of a model that cannot be used; says the file and the field
├── EvaluationError            a measurement cannot be made, or its result cannot be used
│   ├── DatasetError             data in another shape than the task needs
│   ├── DatasetUnavailableError  data that must be downloaded and cannot be
│   └── ResultFileError          a file that is no result, or one of another format
└── ModelError                 what stands behind a model name
    ├── ModelNotFoundError       no built-in, folder or hub model of that name
    ├── NotBloomError            config.json describes another architecture, or none
    ├── ConfigError              a BLOOM config whose numbers cannot be
    ├── NotAnEmbedderError       a tokenizer without the four markers (a base BLOOM)
    ├── TokenizerError           tokenizer.json missing or unreadable
    ├── TensorNamesError         missing or extra tensors
    ├── TensorShapeError         a tensor of another shape than the config says
    ├── CorruptFileError         a truncated or unreadable weights file
    ├── NonFiniteWeightsError    NaN or infinity among the weights
    └── DeltaError               a delta whose base is missing or another, or that is none

This module knows nothing of texts, models or the command line.
"""


class UdeverError(Exception):
    """Base of all errors raised on purpose. `code` is stable across releases; `hint` says what to do."""

    code = "udever_error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(UdeverError, ValueError):
    """What the caller passed cannot be embedded."""

    code = "invalid_input"


class _TextError(InputError):
    """An error about one text. `index` is its position in the caller's list."""

    def __init__(self, message: str, *, index: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.index = index


class EmptyTextError(_TextError):
    """A text of no characters."""

    code = "empty_text"


class TextTypeError(_TextError, TypeError):
    """Not a string, or a string holding a lone surrogate."""

    code = "not_a_text"


class TooManyTokensError(_TextError):
    """A text longer than `max_tokens` under truncate="error". `tokens` and `max_tokens` both count the two markers."""

    code = "too_many_tokens"

    def __init__(self, *, index: int, tokens: int, max_tokens: int) -> None:
        super().__init__(
            f"text {index} has {tokens} tokens, markers included; the limit is {max_tokens}",
            index=index,
            hint='shorten it, or pass truncate="end" or truncate="start" to cut its body',
        )
        self.tokens = tokens
        self.max_tokens = max_tokens


class OptionError(InputError):
    """An option has a value that does not exist; the message lists those that do."""

    code = "invalid_option"


class DimensionsError(OptionError):
    """The model was not trained for a prefix of this size."""

    code = "invalid_dimensions"


class FileInputError(InputError):
    """A file cannot be read as texts."""

    code = "invalid_file"


class TrainingError(UdeverError):
    """A training run cannot start or go on."""

    code = "training_error"


class RecipeError(TrainingError):
    """A recipe that cannot be run; the message names the key."""

    code = "invalid_recipe"


class ExamplesError(TrainingError):
    """Training data in another shape than it must have; the message names file and row."""

    code = "invalid_examples"


class RunChangedError(TrainingError):
    """A run is resumed with another recipe or other data; the message shows the difference."""

    code = "run_changed"


class DivergedError(TrainingError):
    """NaN or infinity in a loss or gradient."""

    code = "diverged"


class BulkError(UdeverError):
    """A bulk run cannot start or go on."""

    code = "bulk_error"


class OutputError(BulkError):
    """A folder that is no output of a bulk run, or one that is damaged."""

    code = "invalid_output"


class JobChangedError(BulkError):
    """A bulk run is resumed with other inputs, options or another model; the message shows the difference."""

    code = "job_changed"


class CatalogError(UdeverError):
    """A manifest of the catalogue that cannot be used; the message names the file and the field."""

    code = "invalid_manifest"


class EvaluationError(UdeverError):
    """A measurement cannot be made, or its result cannot be used."""

    code = "evaluation_error"


class DatasetError(EvaluationError):
    """Data in another shape than the task needs; the message names the file and what is wrong with it."""

    code = "invalid_dataset"


class DatasetUnavailableError(EvaluationError):
    """Data that must be downloaded and cannot be."""

    code = "dataset_unavailable"


class ResultFileError(EvaluationError):
    """A file that is no result of an evaluation, or one of another format."""

    code = "invalid_result_file"


class QueueError(UdeverError):
    """A queue before a model cannot take or finish work."""

    code = "queue_error"


class OverloadedError(QueueError):
    """More is queued than can be done in time. `retry_after_seconds` is the estimate of when there is room again."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message, hint=f"try again in {retry_after_seconds:.1f} s")
        self.retry_after_seconds = retry_after_seconds


class QueueClosedError(QueueError):
    """The queue is closing, or its model thread died under this work."""

    code = "queue_closed"


class SequenceFailedError(QueueError):
    """One text failed inside the model; `index` is its position in the caller's list."""

    code = "text_failed"

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class ModelError(UdeverError):
    """The model's files cannot serve as a Udever embedder."""

    code = "model_error"


class ModelNotFoundError(ModelError):
    """No built-in model, local folder or reachable hub model has this name."""

    code = "model_not_found"


class NotBloomError(ModelError):
    """`config.json` is missing or describes another architecture."""

    code = "not_bloom"


class ConfigError(ModelError):
    """A BLOOM configuration with impossible numbers."""

    code = "invalid_config"


class NotAnEmbedderError(ModelError):
    """The tokenizer lacks the markers: this is a base model."""

    code = "not_an_embedder"


class TokenizerError(ModelError):
    """`tokenizer.json` is missing or unreadable."""

    code = "invalid_tokenizer"


class TensorNamesError(ModelError):
    """Tensors are missing from the checkpoint, or it holds tensors that BLOOM has not."""

    code = "tensor_names"


class TensorShapeError(ModelError):
    """A tensor's shape is not what the configuration says."""

    code = "tensor_shape"


class CorruptFileError(ModelError):
    """A weights file is truncated or cannot be parsed."""

    code = "corrupt_file"


class NonFiniteWeightsError(ModelError):
    """A tensor holds NaN or infinity."""

    code = "non_finite_weights"


class DeltaError(ModelError):
    """A delta whose base is missing or another one, or a folder that is no delta."""

    code = "invalid_delta"
