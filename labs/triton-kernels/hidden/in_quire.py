"""quire with the products and norms of a decode step made elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .driving import half, normed
from .packing import Matrix, rounded

GROUP, SPLITS = 64, 2
PROMPTS = ["def add(a, b):\n    return", "import os\n\n\nclass", "for i in range("]


class Kernels(Protocol):
    """What a step asks for; each returns what an oracle says, once the kernel agrees."""

    def norm(self, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float) -> Any: ...
    def gemv(self, matrix: Matrix, x: np.ndarray) -> np.ndarray: ...
    def head(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray: ...


class Engine:
    """quire-mini-draft on rounded weights; made once for all submissions of a variant."""

    def __init__(self, variant: str) -> None:
        from quire import LLM, Components
        from quire.quantization.unquantized import Unquantized

        self.variant, self.kernels = variant, None
        self.asked: list[Any] = []  # the first two are those of the first layer's attention
        self._steps = 0
        engine = self

        class Asking(Unquantized):
            """Loads weights as they are, rounds them, and has the products of one row made."""

            def __init__(self, names: Any) -> None:
                self.matrix: Any = None

            def finish_load(self, layer: Any) -> None:
                rng = np.random.default_rng(0)
                self.matrix = rounded(variant, layer.weight.double().numpy(), GROUP, rng)
                engine.asked.append(layer)

            def apply(self, layer: Any, x: Any) -> Any:
                rows = x.double().numpy()
                is_asked = layer is engine.asked[0] or layer is engine.asked[1]
                if len(rows) == 1 and is_asked and engine.kernels is not None:
                    return _tensor(engine.kernels.gemv(self.matrix, half(rows[0]))[None], x)
                return _tensor(half(half(rows) @ self.matrix.weights.T), x)

        self.llm = LLM(
            "quire-mini-draft", device="cpu", dtype="float32", max_model_len=64, max_num_seqs=1,
            enable_prefix_caching=False, components=Components(quant_method=Asking),
        )  # fmt: skip

    def tokens(self, kernels: Kernels, seed: int) -> list[int]:
        """The tokens of a prompt's end and of one decode step."""
        import torch

        import quire.layers.norm as norms
        from quire import SamplingParams
        from quire.layers.embedding import Vocabulary

        add, logits, threads = norms.add_rms_norm, Vocabulary.logits, torch.get_num_threads()

        def add_rms_norm(x: Any, residual: Any, weight: Any, eps: float) -> Any:
            if len(x) > 1:
                return add(x, residual, weight, eps)
            arrays = [half(each.double().numpy()) for each in (x, residual, weight)]
            found = kernels.norm(*arrays, eps)
            return _tensor(found[1], x), _tensor(found[0], x)

        def head(vocabulary: Any, hidden: Any) -> Any:
            table = half(vocabulary.embedding.double().numpy())
            rows, self._steps = half(hidden.double().numpy()), self._steps + 1
            if self._steps == 1:  # the prompt's end
                return _tensor(half(rows @ table.T), hidden)
            return _tensor(kernels.head(rows, table), hidden)

        norms.add_rms_norm = add_rms_norm
        Vocabulary.logits = head
        self.kernels, self._steps = kernels, 0
        torch.set_num_threads(1)
        try:
            params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
            prompt = PROMPTS[seed % len(PROMPTS)]
            outputs = self.llm.generate([prompt], params, use_tqdm=False)
        except BaseException:
            engine.cache_clear()  # a request is left in it
            raise
        finally:
            norms.add_rms_norm = add
            Vocabulary.logits = logits
            self.kernels = None
            torch.set_num_threads(threads)
        return list(outputs[0].outputs[0].token_ids)


def _tensor(values: np.ndarray, like: Any) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype)


class Judged:
    """The reader's kernels, each beside its oracle; `records` are those of the launches."""

    def __init__(self, student: Any, variant: str, order: int, run: Callable[..., Any]) -> None:
        self.student, self.variant, self.order, self.run = student, variant, order, run
        self.records: list[dict[str, Any]] = []

    def norm(self, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float) -> Any:
        """Sum and norm of a row."""
        size = x.shape[1]
        stored = half(weight - 1) if self.variant == "words" else weight
        self.run("norm", x, residual, stored, eps, size)
        total, norm = normed(self.variant, x, residual, stored, eps, size)
        return total, half(norm)

    def gemv(self, matrix: Matrix, x: np.ndarray) -> np.ndarray:
        """A row of products."""
        self.run("gemv", matrix, x)
        return half(matrix.weights @ x)

    def head(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The logits."""
        self.run("head", x, weight)
        return half(x @ weight.T)


@functools.cache
def engine(variant: str) -> Engine:
    """The engine of a variant."""
    return Engine(variant)
