"""Attention work divided for a partition's SMs, where vLLM divides it for the device's.

FlashAttention 3 decides before a step how to split the keys of each sequence among
SMs, and takes the device's number unless told to leave some out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def attention_sized_for(sms: int, total_sms: int) -> Iterator[None]:
    """Let FlashAttention plan for ``sms`` of ``total_sms`` SMs inside the block.

    Other backends size their work as they do.
    """
    from vllm.v1.attention.backends import flash_attn

    plan = getattr(flash_attn, "get_scheduler_metadata", None)
    if plan is None or sms >= total_sms:
        yield
        return
    flash_attn.get_scheduler_metadata = partial(plan, sm_margin=total_sms - sms)
    try:
        yield
    finally:
        flash_attn.get_scheduler_metadata = plan
