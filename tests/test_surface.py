"""The public surface, frozen: other programs build on these names and signatures."""

import inspect
import subprocess
import sys

import udever
from udever import Embedder, errors

SIGNATURES = {
    "load": "(name, *, precision='auto', device='auto', revision=None, token=None)",
    "embed": "(self, texts, role='query', *, normalize=True, dimensions=None, max_tokens=None, truncate='error', "
    "progress=False, batch_tokens=None)",
    "embed_iter": "(self, texts, role='document', *, normalize=True, dimensions=None, max_tokens=None, "
    "truncate='error', progress=False, batch_tokens=None, block_texts=8192)",
    "count_tokens": "(self, texts, role='query')",
    "warm_up": "(self)",
    "tokenize": "(self, texts, role='query', *, max_tokens=None, truncate='error')",
    "forward": "(self, sequences, *, batch_tokens=None)",
    "finish": "(self, raw, *, normalize=True, dimensions=None)",
}
PROPERTIES = {
    "name", "config", "dimensions", "max_tokens", "precision", "device", "fingerprint", "matryoshka", "manifest",
    "batch_tokens",
}  # fmt: skip
CODES = {
    "udever_error", "invalid_input", "empty_text", "not_a_text", "too_many_tokens", "invalid_option",
    "invalid_dimensions", "invalid_file", "queue_error", "overloaded", "queue_closed", "text_failed",
    "evaluation_error", "invalid_dataset", "dataset_unavailable", "invalid_result_file", "model_error",
    "model_not_found", "not_bloom", "invalid_config", "not_an_embedder", "invalid_tokenizer", "tensor_names",
    "tensor_shape", "corrupt_file", "non_finite_weights",
    "invalid_delta", "training_error", "invalid_recipe", "invalid_examples", "run_changed", "diverged",
    "invalid_manifest",
    "bulk_error", "invalid_output", "job_changed",
}  # fmt: skip


def test_the_package_exports_what_it_says() -> None:
    assert udever.__all__ == ["Embedder", "Role", "UdeverError", "__version__"]
    assert all(hasattr(udever, name) for name in udever.__all__)


def test_the_embedder_has_exactly_these_members() -> None:
    public = {name for name in vars(Embedder) if not name.startswith("_")}
    assert public == PROPERTIES | SIGNATURES.keys()


def test_signatures() -> None:
    for name, expected in SIGNATURES.items():
        signature = inspect.signature(getattr(Embedder, name))
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        actual = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
        assert actual == expected, name


def test_every_error_has_a_stable_code_of_its_own() -> None:
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and not c.__name__.startswith("_")]
    assert {c.code for c in classes} == CODES
    assert len(classes) == len(CODES)


def test_importing_the_package_is_light() -> None:
    code = "import sys, udever; print(sorted({'torch', 'numpy', 'tokenizers', 'pyarrow'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
