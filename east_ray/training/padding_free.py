"""Forward passes without padding: TRL hands over padded rows and gets back padded log-probabilities, and in between the
model sees the rows' tokens one after another, as one sequence in which every row attends only to itself.

A prompt that a chosen and a rejected completion have in common is computed once, and the output head sees only the
positions whose next token is trained on. Its first pass is made both ways; where they differ, rows stay padded.

Suffixes: R rows, T their padded length, N tokens of all rows, L labelled ones.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward, use_gqa_in_sdpa
from transformers.masking_utils import sdpa_mask

logger = logging.getLogger(__name__)

BY_ROW = "sdpa_by_row"  # our name among transformers' attention functions
REPLACED = "sdpa"  # the only one that we know how to replace
# Elements of a head's keys up to which attention is computed in float32 on a CPU: PyTorch 2.13's backward pass takes there
# two to four times as long in bfloat16.
SHORT = 4096
ROWS = ("input_ids", "attention_mask", "labels")
# Mean distance of a token's log-probability with and without padding: rounding stays below, another row's tokens do not.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


@dataclass(frozen=True)
class Span:
    """Tokens of one row among the N: `start` to `stop`, which attend to `shared` tokens from `prefix` on and to themselves."""

    start: int
    stop: int
    prefix: int
    shared: int


@dataclass(frozen=True)
class Layout:
    """Where the tokens of R padded rows lie in one sequence. `masks`: those of attention, made when first needed."""

    ids_N: torch.Tensor
    position_N: torch.Tensor
    spans: tuple[Span, ...]
    labelled_L: torch.Tensor  # for each trained token, the place of the one before it
    label_L: torch.Tensor
    label_mask_RT: torch.Tensor  # one column shorter than the rows, as log-probabilities are
    masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    @functools.cached_property
    def longest(self) -> int:
        """Most tokens that one attends to."""
        return max(span.shared + span.stop - span.start for span in self.spans)

    def mask(self, queries: int, keys: int, window: int | None) -> torch.Tensor:
        """Which of `keys` each of the last `queries` tokens may attend to, at most `window` back."""
        if (queries, keys, window) not in self.masks:
            back = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None]
            allowed = (back >= 0) & (back < (window or keys))
            self.masks[queries, keys, window] = allowed.to(self.ids_N.device)
        return self.masks[queries, keys, window]


def lay_out(input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, pairs: bool) -> Layout | None:
    """Lay rows that are padded on the right one after another; None for rows that are not, or without a label.

    With `pairs`, row i and row i + R / 2 share the tokens that they begin with.
    """
    rows, width = input_ids.shape
    mask_RT = attention_mask.bool()
    position_T = torch.arange(width, device=input_ids.device)
    length_R = mask_RT.sum(dim=1)
    label_mask_RT = labels[:, 1:] != -100
    shared_R = torch.zeros_like(length_R)
    if pairs:
        first, second = (part.chunk(2) for part in (input_ids, mask_RT))
        equal = (first[0] == first[1]) & second[0] & second[1]
        shared_R[rows // 2 :] = equal.long().cumprod(dim=1).sum(dim=1)
    is_usable = (mask_RT == (position_T < length_R[:, None])).all() & label_mask_RT.any()
    lengths, shared, usable = torch.stack([length_R, shared_R, is_usable.expand_as(length_R)]).tolist()
    if not usable[0]:
        return None
    spans, stop = list[Span](), 0
    for row in range(rows):
        start, stop = stop, stop + lengths[row] - shared[row]
        spans.append(Span(start, stop, spans[row - rows // 2].start if shared[row] else 0, shared[row]))
    own_RT = mask_RT & (position_T >= shared_R[:, None])
    start_R, prefix_R = (
        torch.tensor([getattr(span, name) for span in spans], device=input_ids.device) for name in ("start", "prefix")
    )
    is_shared_RT = position_T < shared_R[:, None]
    place_RT = torch.where(is_shared_RT, prefix_R[:, None] + position_T, (start_R - shared_R)[:, None] + position_T)
    return Layout(
        ids_N=input_ids[own_RT],
        position_N=position_T.expand(rows, -1)[own_RT],
        spans=tuple(spans),
        labelled_L=place_RT[:, :-1][label_mask_RT],
        label_L=labels[:, 1:][label_mask_RT],
        label_mask_RT=label_mask_RT,
    )


class PaddingFree:
    """Replaces the forward pass of a model that TRL has given its fused head.

    The first pass settles whether it is `enabled`: models with states, or attention of their own, give other
    log-probabilities without padding. All ranks must make it, and decide alike.
    """

    def __init__(self, model: Any, pairs: bool) -> None:
        self.pairs, self.enabled = pairs, model.config._attn_implementation == REPLACED
        self._model, self._is_settled = model, False
        self._labelled_L: torch.Tensor | None = None
        if not self.enabled:
            return
        AttentionInterface.register(BY_ROW, _attend)
        AttentionMaskInterface.register(BY_ROW, sdpa_mask)
        model.set_attn_implementation(BY_ROW)
        self._fused = model.forward
        model.base_model.register_forward_hook(self._select)

        @functools.wraps(type(model).forward)
        def forward(_model: Any, *args: Any, **kwargs: Any) -> Any:
            return self._forward(*args, **kwargs)

        model.forward = MethodType(forward, model)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.enabled and kwargs.get("fused_lm_head")):
            return self._fused(*args, **kwargs)
        layout = lay_out(kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"], pairs=self.pairs)
        if not self._is_settled:
            self._settle(layout, *args, **kwargs)
        if layout is None or not self.enabled:
            return self._fused(*args, **kwargs)
        return self._without_padding(layout, **kwargs)

    def _settle(self, layout: Layout | None, *args: Any, **kwargs: Any) -> None:
        """Compare this pass with and without padding, without a gradient or dropout; the worst rank decides."""
        was_training = self._model.training
        self._model.eval()
        gap, problem = 0.0, ""
        with torch.no_grad():
            padded = self._fused(*args, **kwargs)
            try:
                free = self._fused(*args, **kwargs) if layout is None else self._without_padding(layout, **kwargs)
                gap = float((padded.log_probs - free.log_probs).abs().sum() / padded.label_mask.sum().clamp_min(1))
            except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
                gap, problem = float("inf"), f" ({error})"
        self._model.train(was_training)
        state = torch.tensor([gap, float(layout is not None)], device=padded.log_probs.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(state, torch.distributed.ReduceOp.MAX)
        worst, has_compared = state.tolist()
        self._is_settled = bool(has_compared)
        if not worst <= TOLERANCES[self._model.dtype]:
            self.enabled = False
            logger.warning("rows stay padded: without padding log-probabilities are %.2g away%s", worst, problem)

    def _without_padding(self, layout: Layout, **kwargs: Any) -> Any:
        self._labelled_L = layout.labelled_L
        try:
            output = self._fused(
                **{name: value for name, value in kwargs.items() if name not in ROWS},
                input_ids=layout.ids_N[None],
                position_ids=layout.position_N[None],
                attention_mask=layout.ids_N.new_ones((1, 1, 1, 1)),  # four dimensions: transformers leaves it alone
                shift_labels=layout.label_L[None],
                rows=layout,
            )
        finally:
            self._labelled_L = None
        for name in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"):
            if (value_1L := getattr(output, name)) is not None:
                padded_RT = value_1L.new_zeros(layout.label_mask_RT.shape)
                setattr(output, name, padded_RT.masked_scatter(layout.label_mask_RT, value_1L[0]))
        output.label_mask = layout.label_mask_RT
        return output

    def _select(self, _module: Any, _args: Any, output: Any) -> Any:
        """Forward hook of the backbone: leave the head only what it needs."""
        if self._labelled_L is not None:
            output.last_hidden_state = output.last_hidden_state[:, self._labelled_L]
        return output


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    rows: Layout | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each row to itself and its shared prefix; PyTorch's usual one for padded rows."""
    if rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("attention with terms of its own")
    groups = getattr(module, "num_key_value_groups", 1)
    dtype = query.dtype
    if dtype == torch.bfloat16 and query.device.type == "cpu" and rows.longest * query.shape[3] <= SHORT:
        query, key, value = query.float(), key.float(), value.float()
    lengths, outputs = [span.stop - span.start for span in rows.spans], []
    parts = zip(rows.spans, *(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    for span, q, k, v in parts:
        if q.shape[2] == 0:
            continue
        if span.shared:
            prefix = slice(span.prefix, span.prefix + span.shared)
            k, v = torch.cat([key[:, :, prefix], k], dim=2), torch.cat([value[:, :, prefix], v], dim=2)
        queries, keys = q.shape[2], k.shape[2]
        mask = rows.mask(queries, keys, sliding_window) if span.shared or keys > (sliding_window or keys) else None
        has_gqa = groups > 1 and use_gqa_in_sdpa(mask, k, v)
        if groups > 1 and not has_gqa:
            k, v = repeat_kv(k, groups), repeat_kv(v, groups)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=mask is None, enable_gqa=has_gqa
        )
        outputs.append(attended.transpose(1, 2))
    return torch.cat(outputs, dim=1).to(dtype), None
