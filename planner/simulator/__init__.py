"""vLLM's engine loop in virtual time, under the policy that serves."""
