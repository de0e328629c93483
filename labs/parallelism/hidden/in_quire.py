"""quire-mini-draft whose linear layers are computed by unequal ranks, one term after another."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .driving import Steps, asked, messages, ran, words_of
from .shards_oracle import cut, shards, split

RATIO = [4, 2, 1]  # of two query heads the last rank has none
TEXTS = ["def add(a, b):\n    return", "x = [1, 2,", "import"]
TOLERANCE = 1e-6


class Engine:
    """Made once for all submissions of a variant; `products` says who computes a layer."""

    def __init__(self, variant: str) -> None:
        from quire import LLM, Components
        from quire.quantization.unquantized import Unquantized

        self.variant, self.products = variant, None
        self.weights: dict[str, np.ndarray] = {}
        engine = self

        class Asking(Unquantized):
            """Loads weights as they are, and has the products made elsewhere."""

            def __init__(self, names: Any) -> None:
                self.name = names[0].removeprefix("model.")

            def finish_load(self, layer: Any) -> None:
                engine.weights[self.name] = layer.weight.double().numpy()

            def apply(self, layer: Any, x: Any) -> Any:
                import torch

                if engine.products is None:
                    return super().apply(layer, x)
                made = engine.products(self.name, x.double().numpy())
                return torch.from_numpy(made).to(x.dtype)

        self.llm = LLM(
            "quire-mini-draft", device="cpu", dtype="float32", max_model_len=64, max_num_seqs=3,
            components=Components(quant_method=Asking),
        )  # fmt: skip
        config = self.llm.model_config
        self.model = {
            "hidden": config.hidden_size, "heads": config.num_heads,
            "kv_heads": config.num_kv_heads, "head_size": config.head_size,
            "ffn": config.intermediate_size, "vocab": config.vocab_size,
        }  # fmt: skip

    def judge(self, student: Any, seed: int, is_whole: bool) -> None:
        """Greedy tokens with `project` on three ranks; with `is_whole` all tasks are the reader's.

        Raises:
            Wrong: a part, a term or a sum is another than that of the whole weight.
        """
        reference = self._tokens(None, seed)
        kept = shards(self.variant, self.model, RATIO)
        if is_whole:
            found = student.call("shards", self.model, RATIO)
            student.compare(student.said("shards", self.model, RATIO), found, kept)
        parts = self._cut(student, kept, is_whole)

        def products(name: str, x: np.ndarray) -> np.ndarray:
            whole = x @ self.weights[name].T
            if name.endswith(("q_proj", "gate_proj")):
                return whole  # cut by rows: `_cut` has compared them
            key = "heads" if name.endswith("o_proj") else "ffn"
            width = self.model["head_size"] if key == "heads" else 1
            ends = [(one[key][0] * width, sum(one[key]) * width) for one in kept]
            own = [x[:, begin:end] for begin, end in ends]
            calls = [(x_, w, None) for x_, w in zip(own, parts[name], strict=True)]
            values, events = self._sums(student, calls, is_whole)
            terms = [x_ @ self.weights[name][:, b:e].T
                     for x_, (b, e) in zip(own, ends, strict=True)]  # fmt: skip
            words = f"project in {name} of quire-mini-draft, ranks of the ratio {RATIO}"
            student.compare(f"{words}: what each rank gives", events[0][1], terms, TOLERANCE)
            student.compare(f"{words}: the sums", values, [whole] * len(kept), TOLERANCE)
            return values[0]  # type: ignore[no-any-return]

        tokens = self._tokens(products, seed)
        student.compare("quire-mini-draft on three ranks: the tokens", tokens, reference)

    def _sums(self, student: Any, calls: Any, is_whole: bool) -> Any:
        if not is_whole:
            values, events = ran(student, "project", calls)
            asked(student, events, ["AllReduce"], words_of(student, "project", calls))
            return values, events
        ranks = [student.new("Rank", "project", *args) for args in calls]
        wishes = [Steps(student, rank).step(None) for rank in ranks]
        if any(wish[0] != "AllReduce" for wish in wishes):
            kinds = [wish[0] for wish in wishes]
            student.fail(f"called project on three ranks\nexpected AllReduce\ngot {kinds}")
        shape = wishes[0][1].shape
        sizes = [size for _, size in split(self.variant, int(np.prod(shape)), RATIO)]
        flat = [(rank, np.asarray(wish[1]).reshape(-1), sizes) for rank, wish in enumerate(wishes)]
        sums, events = ran(student, "all_reduce", flat)
        messages(student, events, "all_reduce")
        whole = [np.asarray(one) for one in sums]
        if any(one.shape != flat[0][1].shape for one in whole):
            shapes = [one.shape for one in whole]
            student.fail(f"called all_reduce\nexpected sums of {flat[0][1].shape}\ngot {shapes}")
        ends = [
            Steps(student, rank).step(one.reshape(shape))
            for rank, one in zip(ranks, whole, strict=True)
        ]
        return [end[-1] for end in ends], [("AllReduce", [wish[1] for wish in wishes])]

    def _cut(self, student: Any, kept: Any, is_whole: bool) -> dict[str, list[np.ndarray]]:
        """The columns of `o_proj` and `down_proj` of each rank, by layer; rows are compared."""
        found: dict[str, list[np.ndarray]] = {}
        for name, weight in self.weights.items():
            short = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}.get(
                name.rpartition(".")[2], name.rpartition(".")[2]
            )
            if short == "gate_up_proj":
                weight = self._stored(weight)
            wanted = [cut(self.variant, short, weight, self.model, one) for one in kept]
            found[name] = wanted
            if is_whole:
                found[name] = [student.call("cut", short, weight, self.model, s) for s in kept]
                words = f"cut({short!r}, …) of {name} of quire-mini-draft"
                student.compare(words, found[name], wanted)
        return found

    def _stored(self, weight: np.ndarray) -> np.ndarray:
        """Rows of the gate, then of up, as the variant's checkpoint has them."""
        gate, up = np.split(weight, 2)
        if self.variant == "ring":
            return np.stack([gate, up], 1).reshape(weight.shape)
        return np.concatenate([gate, up] if self.variant == "experts" else [up, gate])

    def _tokens(self, products: Any, seed: int) -> list[list[int]]:
        import torch

        from quire import SamplingParams

        self.products = products
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small products: threads would wait for one another
        try:
            params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
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
