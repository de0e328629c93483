"""`Worker`: the device half of an engine: model, cache and runner on one device.

Every rank builds one from the same arguments. It knows nothing of requests that wait, of
policies or of text: messages come in, answers go out.
"""

from __future__ import annotations

from pathlib import Path

import torch

from quire.attention.interface import AttentionBackend
from quire.attention.torch_backend import TorchAttention
from quire.components import Components
from quire.config import EngineConfig
from quire.errors import QuireError
from quire.kernels.runtime import runs_triton
from quire.kv.host.storage import HostBlocks
from quire.kv.spec import CacheLayout
from quire.kv.storage import KVStorage, require_one_request
from quire.layers.linear import MethodFactory
from quire.layers.moe import MoE
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder
from quire.models.loader import initialize_random, load_weights
from quire.parallel.comm import Solo
from quire.parallel.place import Place
from quire.quantization.factory import methods
from quire.runner.memory import default_num_blocks
from quire.runner.model_runner import ModelRunner
from quire.runner.round_costs import measure_round_costs
from quire.runner.warm_up import warm_up
from quire.sampling.rejection_sampler import RejectionSampler
from quire.sampling.sampler import Sampler, TorchSampler
from quire.speculation.costs import RoundCosts
from quire.speculation.factory import DraftSource, make_proposer
from quire.speculation.proposer import Proposer


class Worker:
    """Loads the model first; `allocate` follows, since ranks must agree on the cache's size."""

    runner: ModelRunner  # from `allocate` on
    round_costs: RoundCosts | None  # of steps with guesses, where their number varies

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        layout: CacheLayout,
        folder: Path | None,
        components: Components,
        draft: DraftSource | None = None,
        place: Place | None = None,
    ) -> None:
        """Load the model onto the device, and the draft model where there is one.

        Args:
            folder: the checkpoint; None gives random weights.
            place: what of the model this rank has; None: all of it. A draft model is small:
                every rank has all of that.

        Raises:
            QuireError: an attention backend that does not serve an option of the cache.
            CheckpointError: the checkpoint cannot be loaded.
        """
        device = config.model.device
        self._config = config
        place = place or Place.of(config.parallel, config.expert_placements, Solo(), Solo(), device)
        layers = place.layers(model_config)
        if place.pipeline.size > 1:
            layout = layout.part(layers.start, layers.stop)
        self._layout = layout
        self._backend = (components.attention or _default_attention(device))()
        _require_served(config, self._backend, layout)
        self.round_costs = None
        self._sampler: Sampler = (components.sampler or _default_sampler(device))()
        if config.speculation is not None and config.speculation.needs_probabilities:
            verification = config.speculation.verification
            if components.sampler is not None:
                raise QuireError(
                    f"speculative_config: verification={verification!r} with a sampler of your "
                    "own: it judges drafts itself; leave one of the two away"
                )
            self._sampler = RejectionSampler(verification, self._sampler)
        self._gives_logprobs = components.sampler is None
        self._proposer: Proposer | None = None
        if config.speculation is not None and draft is None:
            self._proposer = (components.proposer or make_proposer)(config.speculation)
        options = config.model
        own = components.quant_method
        if own is not None and options.quantization is not None:
            raise QuireError(
                f"quantization={options.quantization!r} with a quant_method of your own, which "
                "decides how layers are stored: leave one of the two away"
            )
        self._model = self._load(
            model_config,
            folder,
            own or methods(model_config, options.quantization, options.dtype, device),
            place,
        )
        self._draft: tuple[Decoder, TorchSampler] | None = None
        if draft is not None:
            method_for = methods(draft.config, None, options.dtype, device)
            draft_model = self._load(draft.config, draft.folder, method_for, Place())
            self._draft = draft_model, _default_sampler(device)()

    def _load(
        self,
        model_config: ModelConfig,
        folder: Path | None,
        method_for: MethodFactory,
        place: Place,
    ) -> Decoder:
        options = self._config.model
        model = Decoder(
            model_config,
            self._backend,
            options.max_model_len,
            options.dtype,
            options.device,
            method_for,
            place,
        )
        if folder is None:
            initialize_random(model)
        else:
            load_weights(model, folder)
        return model

    def most_blocks(self) -> int:
        """Return how many blocks the cache can have here, the null block included.

        Raises:
            QuireError: no memory is left for any.
        """
        return default_num_blocks(self._config, self._model, self._backend, self._layout)

    def allocate(self, num_blocks: int) -> None:
        """Allocate the cache and make the runner, which captures its graphs and is warmed up.

        Raises:
            QuireError: the blocks do not hold one request of the longest kind, or do not fit
                into memory.
        """
        config = self._config
        require_one_request(num_blocks, config.max_blocks_per_request, config.cache.block_size)
        storage = KVStorage(
            self._layout.specs,
            self._layout.groups,
            num_blocks,
            config.cache.block_size,
            config.model.device,
        )
        if config.cache.num_host_blocks > 0:
            storage.host = HostBlocks(storage, self._layout.groups, config.cache.num_host_blocks)
        self.runner = ModelRunner(
            config,
            self._model,
            storage,
            self._backend,
            self._sampler,
            self._layout,
            self._proposer,
            self._draft,
        )
        mixtures = list(self._mixtures().values())
        if runs_triton(config.model.device):
            warm_up(
                self.runner,
                config,
                self._layout.num_groups,
                gives_logprobs=self._gives_logprobs,
                moe=self._model.config.moe,
                num_slots=len(mixtures[0].experts.held) if mixtures else None,
                num_experts=len(mixtures[0].experts.slots) if mixtures else None,
            )
            for mixture in mixtures[:1]:  # the others' kernels are the same
                mixture.warm_up()
        if config.speculation is not None and config.speculation.is_adaptive:
            self.round_costs = measure_round_costs(self.runner, config, self._layout.num_groups)
        for mixture in mixtures:
            mixture.routes.forget()  # what those steps have counted

    def expert_loads(self) -> dict[int, list[int]]:
        """Return how many tokens each expert was sent, by layer, of what this rank has counted.

        Ranks that route the same tokens leave it to the first of them: the sum over all ranks
        counts every pair of token and expert once.
        """
        counted = {number: m.routes.loads for number, m in self._mixtures().items()}
        return {number: loads.tolist() for number, loads in counted.items() if loads is not None}

    def _mixtures(self) -> dict[int, MoE]:
        """Return the layers with experts that are here, by their numbers in the model."""
        numbers, layers = self._model.layer_numbers, self._model.layers
        found = {n: layer.mlp for n, layer in zip(numbers, layers, strict=True)}
        return {number: mlp for number, mlp in found.items() if isinstance(mlp, MoE)}


def _require_served(config: EngineConfig, backend: AttentionBackend, layout: CacheLayout) -> None:
    """Refuse an option of the cache that a swapped backend would silently ignore."""
    name, cache = type(backend).__name__, config.cache
    if cache.kv_sinks > 0 and not getattr(backend, "sees_sinks", False):
        raise QuireError(
            f"kv_sinks={cache.kv_sinks}: {name} does not look at AttentionBatch.sinks; let it do "
            "so and set sees_sinks = True"
        )
    if layout.has_scales and not getattr(backend, "reads_scales", False):
        raise QuireError(
            f"kv_cache_dtype={cache.kv_cache_dtype!r}: {name} does not read scales; let it use "
            "LayerKV.key_scale and value_scale and set reads_scales = True"
        )


def _default_attention(device: torch.device) -> type[AttentionBackend]:
    """Return Triton's kernels where they pay, else torch's."""
    if runs_triton(device):
        from quire.attention.triton_backend import TritonAttention  # needs Triton

        return TritonAttention
    return TorchAttention


def _default_sampler(device: torch.device) -> type[TorchSampler]:
    if runs_triton(device):
        from quire.sampling.triton_sampler import TritonSampler  # needs Triton

        return TritonSampler
    return TorchSampler
