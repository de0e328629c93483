"""The arithmetic of inference: memory, FLOPs, bytes, time and price, from a config alone.

Pure Python and numpy, no torch. Every function is a formula of the chapter "Autoregressive
decoding", "Speculative decoding" or "Quantization", with its units; sources in brackets are keys of
`book/references.bib`.
"""

from quire.analysis.catalog import catalog_config, catalog_json
from quire.analysis.cost import (
    electricity_usd_per_million_tokens,
    joules_per_token,
    usd_per_million_tokens,
)
from quire.analysis.hardware import Hardware, find_hardware, load_hardware
from quire.analysis.latency import MemoryLedger, Prediction, memory_ledger, predict
from quire.analysis.memory import (
    DTYPE_BYTES,
    ParameterCount,
    activation_bytes,
    active_parameters,
    count_parameters,
    dtype_bytes,
    experts_touched,
    kv_bytes_per_token,
    kv_cache_bytes,
    logit_bytes,
    mla_kv_bytes_per_token,
    short_dtype,
    weight_bytes,
)
from quire.analysis.quantization import (
    LayerTime,
    crossings,
    linear_weights,
    quantized_weight_bytes,
    rounding_error,
)
from quire.analysis.roofline import achieved_mbu, achieved_mfu, binding_ceiling, roofline_time
from quire.analysis.speculation import (
    agreement_bound,
    argmax_agreement,
    best_k,
    coupled_agreement,
    expected_tokens,
    independent_agreement,
    rejection_acceptance,
    speedup,
    total_variation,
)
from quire.analysis.work import Work, decode_work, prefill_work, recompute_work

__all__ = [
    "DTYPE_BYTES",
    "Hardware",
    "LayerTime",
    "MemoryLedger",
    "ParameterCount",
    "Prediction",
    "Work",
    "achieved_mbu",
    "achieved_mfu",
    "activation_bytes",
    "active_parameters",
    "agreement_bound",
    "argmax_agreement",
    "best_k",
    "binding_ceiling",
    "catalog_config",
    "catalog_json",
    "count_parameters",
    "coupled_agreement",
    "crossings",
    "decode_work",
    "dtype_bytes",
    "electricity_usd_per_million_tokens",
    "expected_tokens",
    "experts_touched",
    "find_hardware",
    "independent_agreement",
    "joules_per_token",
    "kv_bytes_per_token",
    "kv_cache_bytes",
    "linear_weights",
    "load_hardware",
    "logit_bytes",
    "memory_ledger",
    "mla_kv_bytes_per_token",
    "predict",
    "prefill_work",
    "quantized_weight_bytes",
    "recompute_work",
    "rejection_acceptance",
    "roofline_time",
    "rounding_error",
    "short_dtype",
    "speedup",
    "total_variation",
    "usd_per_million_tokens",
    "weight_bytes",
]
