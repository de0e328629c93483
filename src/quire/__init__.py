"""quire: the inference engine that the book LLM Inference Systems builds."""

from importlib.metadata import version
from typing import TYPE_CHECKING

from quire.components import Components
from quire.errors import CheckpointError, InvalidRequestError, QuireError, UnsupportedModelError
from quire.outputs import CompletionOutput, RequestMetrics, RequestOutput
from quire.progress import RequestHandle
from quire.sampling.params import SamplingParams
from quire.trace import Trace

if TYPE_CHECKING:
    from quire.async_engine import AsyncEngine
    from quire.llm import LLM

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


def __getattr__(name: str) -> object:
    # The model code takes seconds to import; arithmetic and plotting do without it.
    if name == "LLM":
        from quire.llm import LLM

        return LLM
    if name == "AsyncEngine":
        from quire.async_engine import AsyncEngine

        return AsyncEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
