"""quire with a method that asks whoever is given for each layer's products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .pack_oracle import changed, places

BITS, GROUP, BLOCK = 4, 48, 3
TEXTS = ["def add(a, b):\n    return", "x = [1, 2,", "import"]
Ask = Callable[[int, np.ndarray], np.ndarray]


def packed(variant: str, codes: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Words of many codes at once."""
    where, count = places(variant, bits, codes.shape[1], group)
    words = np.zeros((len(codes), count), np.int64)
    for column, (word, low) in enumerate(where):
        words[:, word] += codes[:, column] << low
    return words - (words >> 31 << 32)


def rounded_shard(variant: str, weights: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """A shard of weights rounded on plain grids, and what it stands for."""
    rows, columns = weights.shape
    groups, blocks = -(-columns // GROUP), -(-rows // BLOCK)
    scales, zeros = np.zeros((blocks, groups)), np.zeros((blocks, groups), np.int64)
    for b in range(blocks):
        for g in range(groups):
            part = weights[b * BLOCK : (b + 1) * BLOCK, g * GROUP : (g + 1) * GROUP]
            low, high = min(part.min(), 0), max(part.max(), 0)
            scales[b, g] = np.float16(max((high - low) / 15, 2**-14))
            zeros[b, g] = min(15, max(0, round(-low / scales[b, g])))
    block_of, group_of = np.arange(rows) // BLOCK, np.arange(columns) // GROUP
    scale, zero = scales[block_of][:, group_of], zeros[block_of][:, group_of]
    codes = np.clip(np.round(weights / scale) + zero, 0, 15).astype(np.int64)
    stored = np.array([[changed(variant, int(z), BITS) for z in row] for row in zeros])
    made = {
        "rows": rows, "columns": columns, "bits": BITS, "group": GROUP, "block": BLOCK,
        "words": packed(variant, codes, BITS, GROUP), "scales": scales,
        "zeros": packed(variant, stored, BITS, groups),
    }  # fmt: skip
    return made, (codes - zero) * scale


class Engine:
    """quire-mini-draft whose linear layers ask; made once for all submissions of a variant."""

    def __init__(self, variant: str) -> None:
        from quire import LLM, Components
        from quire.quantization.unquantized import Unquantized

        self.ask: Ask | None = None
        self.shards: list[list[dict[str, Any]]] = []
        self.weights: list[np.ndarray] = []
        engine = self

        class Asking(Unquantized):
            """Loads weights as they are, rounds them, and has the products made elsewhere."""

            def __init__(self, names: Any) -> None:
                self.number = -1

            def finish_load(self, layer: Any) -> None:
                weights = layer.weight.double().numpy()
                parts = [weights[b : b + rows] for b, rows in layer.shard_rows.values()]
                made = [rounded_shard(variant, part) for part in parts]
                self.number = len(engine.shards)
                engine.shards.append([shard for shard, _ in made])
                engine.weights.append(np.concatenate([numbers for _, numbers in made]))

            def apply(self, layer: Any, x: Any) -> Any:
                import torch

                assert engine.ask is not None
                return torch.from_numpy(engine.ask(self.number, x.double().numpy())).to(x.dtype)

        self.llm = LLM(
            "quire-mini-draft", device="cpu", dtype="float32", max_model_len=64, max_num_seqs=3,
            components=Components(quant_method=Asking),
        )  # fmt: skip

    def tokens(self, ask: Ask, seed: int) -> list[list[int]]:
        """Greedy tokens, with the products of `ask`."""
        import torch

        from quire import SamplingParams

        self.ask = ask
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small products: threads would wait for one another
        try:
            params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
            prompts = [f"# {seed % 97}\n{text}" for text in TEXTS]
            outputs = self.llm.generate(prompts, params, use_tqdm=False)
        except BaseException:
            engine.cache_clear()  # requests are left in it
            raise
        finally:
            torch.set_num_threads(threads)
        return [list(output.outputs[0].token_ids) for output in outputs]


@functools.cache
def engine(variant: str) -> Engine:
    """The engine of a variant."""
    return Engine(variant)
