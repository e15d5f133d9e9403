"""When a step with prompts and decodes runs an attention kernel for each phase."""

SPLIT_ATTENTION_MAX_CONTEXT = 4096
"""Tokens before a step's prompt tokens, beyond which both phases share one attention kernel.

Without splits a short pass does not fill the SMs: one of 256 tokens takes 1.5 ms longer after so
many tokens, and one of 1,024 no more than 2.1 ms (8B on an H200). What is lost by then is about
what decodes of mixed lengths lose where both phases share a kernel.
"""
