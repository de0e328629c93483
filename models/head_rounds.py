"""Measures heads beside the draft model and writes `measurements/speculation-heads-cpu.json`.

    python models/head_rounds.py runs/heads    # what train_head.py wrote; several folders, too

Prompts, texts, temperatures and noise are those of `quire bench speculation-acceptance`, so that
its rows of the draft model can be checked against the ones here. Verification is coupled: the
text does not depend on who drafts, and a draft is judged only if all before it were the text's own
tokens. So whether draft i of a round that begins at some token is kept follows from the text
alone: what a head says after reading its own outputs i − 1 times, over the text's tokens. One
unrolled pass over each text (`head.unroll`) decides for all beginnings, and rounds are counted by
walking through the text.

`trained-<head>`: positions that it learned from. `round-<who>-k<k>-T<t>`: tokens a round,
acceptance by place. `cost-<who>-k<k>`: microseconds of k drafts at batch 1, `cost-verify-k<k>` of
the target's step over 1 + k tokens (`head_costs.py`). `speed-<who>-T<t>`: the speed-up that
tokens a round over the time of a round give, at the best k.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from decoder import Decoder
from head import HEADS, Head, target_features, unroll
from head_costs import Costs, measure_costs
from safetensors.torch import load_file
from torch import Tensor
from train import MODELS, load_decoder

from quire.bench.cache_compression import RESAMPLES
from quire.bench.measurement import Measurement, Row
from quire.bench.perplexity import heldout_texts
from quire.bench.speculation_rounds import (
    Rounds,
    Sizes,
    cpu_engine,
    interval,
    params_of,
    tokens_of,
)
from quire.kernels.noise import Purpose, exponential

ID = "speculation-heads-cpu"
TITLE = "Heads that draft from quire-mini's hidden states, beside quire-mini-draft"
COMMAND = "python models/head_rounds.py runs/heads"
SIZES = Sizes()
TEMPERATURES = (0.0, 1.0)
DRAFT = "draft"  # who drafts, beside the heads
PLACES = 8  # of a round
KS = range(1, PLACES + 1)


@dataclass(frozen=True)
class Said:
    """Texts of the target, with what decides who would have said their tokens, too.

    `ids` is int64 [num_texts, num_prompt + num_tokens], prompts and what the target said.
    `noise` is float32 [num_texts, num_tokens, V], of what it said; None where greedy.
    """

    ids: Tensor
    num_prompt: int
    noise: Tensor | None

    @classmethod
    def by(cls, model: str, prompts: list[list[int]], sizes: Sizes, temperature: float) -> Said:
        """Let the engine say them."""
        llm = cpu_engine(model)
        params = params_of(len(prompts), sizes.tokens, temperature)
        tokens = tokens_of(llm.generate(prompts, params, use_tqdm=False))
        ids = torch.cat((torch.tensor(prompts), tokens), 1)
        if temperature == 0:
            return cls(ids, len(prompts[0]), None)
        start, length = len(prompts[0]), ids.shape[1]
        seeds = torch.arange(len(ids)).repeat_interleave(length - start)
        positions = torch.arange(start, length).repeat(len(ids))
        noise = exponential(seeds, positions, Purpose.TOKEN, llm.model_config.vocab_size)
        return cls(ids, start, noise.view(len(ids), length - start, -1))

    def agrees(self, logits: Tensor) -> Tensor:
        """Return where logits choose the token that was said, bool [num_texts, num_tokens].

        logits: float32 [num_texts, num_prompt + num_tokens, V], each of the next token.
        """
        logits = logits[:, self.num_prompt - 1 : -1]
        weights = logits if self.noise is None else logits.softmax(-1) / self.noise
        return weights.argmax(-1) == self.ids[:, self.num_prompt :]


def walk(agreed: Tensor, k: int) -> Rounds:
    """Count the rounds of k drafts behind the first token, which the prompt's step says.

    agreed: bool [k or more places, num_texts, num_tokens], whether a draft of that place is the
        token that was said. Rounds without room for k drafts and a token are left out.
    """
    _, count, num_tokens = agreed.shape
    # kept[text, at]: of k drafts from `at` on, how many stand.
    kept = torch.stack([agreed[i].roll(-i, 1) for i in range(k)]).long().cumprod(0).sum(0).tolist()
    stood = torch.zeros(count, 1 + k, dtype=torch.int64)
    begins = torch.zeros(count, num_tokens, dtype=torch.bool)
    for text in range(count):
        at = 1
        while at + 1 + k <= num_tokens:
            stood[text, kept[text][at]] += 1
            begins[text, at] = True
            at += 1 + kept[text][at]
    return Rounds(stood, torch.zeros(count, dtype=torch.int64), begins)


@torch.inference_mode()
def head_agrees(head: Head, target: Decoder, said: Said) -> Tensor:
    """Return where a head's drafts of each place agree, bool [PLACES, num_texts, num_tokens]."""
    features, _ = target_features(target, head.shape, said.ids)
    cos, sin = (target.get_buffer(name)[: said.ids.shape[1]] for name in ("cos", "sin"))
    outputs = unroll(head, features, target.embed(said.ids), cos, sin, PLACES)
    matrix = target.model.embed_tokens.weight
    return torch.stack([said.agrees(F.linear(output, matrix)) for output in outputs])


@torch.inference_mode()
def model_agrees(model: Decoder, said: Said) -> Tensor:
    """Return the same of a model that reads tokens alone, and drafts at every place alike."""
    return said.agrees(model(said.ids)).expand(PLACES, -1, -1)


def round_row(who: str, k: int, temperature: float, rounds: Rounds) -> Row:
    """Return tokens a round, and acceptance by place."""
    low, high = interval(rounds.tokens, rounds.steps)
    parameters = {"k": k, "temperature": temperature, "low": low, "high": high}
    parameters |= {"texts": len(rounds.steps), "steps": int(rounds.steps.sum())}
    parameters |= rounds.conditional()
    case, value = f"round-{who}-k{k}-T{temperature:g}", rounds.tokens_a_step
    return Row(case, "tokens_per_round", value, "tokens", {}, parameters)


def load_heads(folder: Path) -> dict[str, Head]:
    """Return the heads that `train_head.py` wrote, in float32."""
    weights, heads = load_file(folder / "heads.safetensors"), {}
    for name in dict.fromkeys(key.split(".")[0] for key in weights):
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in weights.items()
            if key.startswith(f"{name}.")
        }
        heads[name] = Head(HEADS[name])
        heads[name].load_state_dict(own)
        heads[name].float().eval().requires_grad_(False)
    return heads


def training_rows(folder: Path) -> list[Row]:
    """Return how long each head of a folder was trained."""
    record = json.loads((folder / "heads.json").read_text())
    return [
        Row(
            f"trained-{name}",
            "positions",
            head["positions"],
            "positions",
            {},
            {key: head[key] for key in ("parameters", "seconds")}
            | {key: record["settings"][key] for key in ("unroll", "state_weight")},
        )
        for name, head in record["heads"].items()
    ]


def speed_rows(found: dict[tuple[str, int, float], Rounds], costs: Costs) -> list[Row]:
    """Return the formula's speed-up by who drafts and temperature, at the best k of each.

    Beside that of a head stands its ratio to the draft model's over the same texts, with where it
    lies with 95 % confidence: a bootstrap draws texts, for both at once.
    """
    best: dict[tuple[str, float], tuple[float, int]] = {}
    for (who, k, temperature), rounds in found.items():
        speed = rounds.tokens_a_step / costs.round(who, k), k
        best[who, temperature] = max(best.get((who, temperature), speed), speed)
    rows = []
    for (who, temperature), (speed, k) in best.items():
        parameters = {"k": k, "temperature": temperature}
        if who != DRAFT:
            other, other_k = best[DRAFT, temperature]
            ours, theirs = found[who, k, temperature], found[DRAFT, other_k, temperature]
            count = len(ours.steps)
            texts = torch.randint(
                count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0)
            )
            rates = [r.tokens[texts].sum(1) / r.steps[texts].sum(1) for r in (ours, theirs)]
            ratios = rates[0] / rates[1] * costs.round(DRAFT, other_k) / costs.round(who, k)
            low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
            parameters |= {"over_draft": speed / other, "low": low, "high": high}
        case = f"speed-{who}-T{temperature:g}"
        rows.append(Row(case, "speedup", speed, "1", {}, parameters))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("heads", type=Path, nargs="+", help="what train_head.py wrote")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cpu = torch.device("cpu")
    target, draft = (load_decoder(n, MODELS / n, cpu) for n in ("quire-mini", "quire-mini-draft"))
    heads: dict[str, Head] = {}
    trained: dict[str, Row] = {}
    for folder in options.heads:  # of two heads of one name the later counts
        heads |= load_heads(folder)
        trained |= {row.case: row for row in training_rows(folder)}
    prompts = heldout_texts(cpu_engine("quire-mini"), SIZES.texts, SIZES.prompt_tokens)
    rounds: dict[tuple[str, int, float], Rounds] = {}
    for temperature in TEMPERATURES:
        said = Said.by("quire-mini", prompts, SIZES, temperature)
        share = float(model_agrees(target, said)[0].double().mean())
        if share < 0.999:  # another order of additions may change a token in a thousand
            raise SystemExit(f"the target says {share:.4f} of its own tokens: the noise is not its")
        agreed = {DRAFT: model_agrees(draft, said)}
        agreed |= {name: head_agrees(head, target, said) for name, head in heads.items()}
        rounds |= {(who, k, temperature): walk(a, k) for who, a in agreed.items() for k in KS}
    costs = measure_costs(target, draft, heads)
    found = [*trained.values(), *(round_row(*key, counted) for key, counted in rounds.items())]
    found += [*costs.rows(), *speed_rows(rounds, costs)]
    print(Measurement(ID, TITLE, COMMAND, found).save(MODELS.parent / "measurements"))
    for row in found:
        print(f"{row.case:32} {row.value:9.4f} {row.unit}")


if __name__ == "__main__":
    main()
