"""quire: the inference engine that the book LLM Inference Systems builds."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from quire.errors import CheckpointError, InvalidRequestError, QuireError, UnsupportedModelError
from quire.outputs import CompletionOutput, RequestMetrics, RequestOutput
from quire.sampling.params import SamplingParams
from quire.trace import Trace

if TYPE_CHECKING:
    from quire.async_engine import AsyncEngine
    from quire.components import Components
    from quire.llm import LLM
    from quire.progress import RequestHandle

__version__ = version("quire")
__all__ = [
    "LLM",
    "AsyncEngine",
    "CheckpointError",
    "CompletionOutput",
    "Components",
    "InvalidRequestError",
    "QuireError",
    "RequestHandle",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "Trace",
    "UnsupportedModelError",
]


# What imports model code or a tokenizer, which takes seconds; arithmetic and plotting do without.
_LATER = {
    "AsyncEngine": "quire.async_engine",
    "Components": "quire.components",
    "LLM": "quire.llm",
    "RequestHandle": "quire.progress",
}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
