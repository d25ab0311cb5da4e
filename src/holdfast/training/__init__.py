"""Policies trained: supervised, actor-critic, leave-one-out, and under constraints."""
