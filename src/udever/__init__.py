"""udever: one exact, fast text embedder for every language, human or programming.

    from udever import Embedder
    model = Embedder.load("udever-nano")
    vectors = model.embed(["how tall is K2?"], role="query")   # float32 [1, 256], unit length

The public surface is `__all__`; a test freezes it. Importing this package imports no torch until `Embedder` is used.
"""

from typing import TYPE_CHECKING, Any

from udever.errors import UdeverError

if TYPE_CHECKING:
    from udever.engine.embedder import Embedder
    from udever.tokenizer import Role

__version__ = "0.1.0"
__all__ = ["Embedder", "Role", "UdeverError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the heavy names on first use, so that `udever --help` stays instant."""
    if name == "Embedder":
        from udever.engine.embedder import Embedder

        return Embedder
    if name == "Role":
        from udever.tokenizer import Role

        return Role
    raise AttributeError(f"module 'udever' has no attribute {name!r}")
