"""Prompts that begin alike: what the model remembers of a beginning that several share is kept, and the rest is read after a copy of it.

The prompts stand in a radix tree (Zheng et al. 2024); where two part, the state of what they share is kept, if it is long enough to be worth its
bytes. The least recently used states go where the bytes are used up. A prompt that is asked again whole finds all but its last token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.engines.decode.base import Decoding, DecodingState

LEAST = 16                                                              # shared tokens that are worth keeping


@dataclass(eq=False)
class PrefixNode:
    """A stretch of tokens after the parent's. `state`: what the model remembers up to its end (None: not kept), `bytes` of it, when it was `used`."""

    tokens: np.ndarray
    parent: PrefixNode | None = None
    children: dict[int, PrefixNode] = field(default_factory=dict)
    state: DecodingState | None = None
    bytes: int = 0
    used: int = 0

    @property
    def depth(self) -> int:
        """Tokens from the root to its end."""
        return len(self.tokens) + (self.parent.depth if self.parent is not None else 0)


class PrefixCache:
    """States of shared beginnings, in `limit` bytes at most; `most` prompts are remembered as tokens. One prompt at a time, no padding.

    The answers are those of `Decoding.start`, up to the rounding of a step of another width. Raises InputError for a limit below zero; what the
    engine cannot copy, it declines when the first state is to be kept.
    """

    def __init__(self, decoding: Decoding, limit: int, *, least: int = LEAST, most: int = 4096) -> None:
        if limit < 0 or least < 1:
            raise InputError(f"A prefix cache of {limit} bytes that keeps {least} tokens or more is none.", "Give bytes >= 0 and tokens >= 1.")
        self.decoding, self.limit, self.least, self.most = decoding, limit, least, most
        self.root = PrefixNode(np.empty(0, np.int64))
        self.held = self.prompts = self.clock = self.hits = self.read = self.saved = 0

    def start(self, inputs: Mapping[str, np.ndarray], room: int) -> tuple[DecodingState, np.ndarray]:
        """State and logits [1, V] after the prompt `input_ids` [1, T]: as `Decoding.start` of it, less of it read. Raises InputError for several rows
        or padding."""
        tokens = np.asarray(inputs["input_ids"], np.int64)
        if len(tokens) != 1 or not np.asarray(inputs.get("attention_mask", 1)).all():
            raise InputError(f"{len(tokens)} prompts with padding cannot share a beginning.", "Ask one prompt at a time, without padding.")
        prompt = tokens[0]
        self.clock += 1
        known = self._known(prompt)
        if known is not None and known.state is not None:
            known.used, depth = self.clock, min(known.depth, len(prompt) - 1)
            state = self.decoding.copied(known.state, depth, room)
            logits = self.decoding.step(state, tokens[:, depth:])[:, -1]
            self.hits, self.saved, self.read = self.hits + 1, self.saved + depth, self.read + len(prompt) - depth
        else:
            state, logits = self.decoding.start(inputs, room)
            self.read += len(prompt)
        self._remember(prompt, state)
        return state, logits

    def close(self) -> None:
        """Forget everything."""
        self.root, self.held, self.prompts = PrefixNode(np.empty(0, np.int64)), 0, 0

    def _known(self, prompt: np.ndarray) -> PrefixNode | None:
        """The deepest node with a state that the prompt passes through; a state may end behind the prompt's last token but one, and is cut then."""
        node, at, found = self.root, 0, None
        while (child := node.children.get(int(prompt[at])) if at < len(prompt) else None) is not None:
            if shared(child.tokens, prompt[at:]) < len(child.tokens):
                break
            node, at = child, at + len(child.tokens)
            found = node if node.state is not None else found
        return found

    def _remember(self, prompt: np.ndarray, state: DecodingState) -> None:
        """Put the prompt into the tree; where it parts from another, or repeats one, keep the state of what they share."""
        node, at = self.root, 0
        while at < len(prompt):
            child = node.children.get(int(prompt[at]))
            if child is None:
                node.children[int(prompt[at])] = PrefixNode(prompt[at:].copy(), node)
                self.prompts += 1
                break
            same = shared(child.tokens, prompt[at:])
            if same < len(child.tokens):
                child = self._split(child, same)
            node, at = child, at + same
            if same and (at == len(prompt) or int(prompt[at]) not in node.children):
                self._keep(node, state)
        if self.prompts > self.most:
            self.close()                                                # the tree is small beside the states; what is asked often is back at once

    def _split(self, child: PrefixNode, same: int) -> PrefixNode:
        """A new node for the first `same` tokens of `child`, which becomes its child."""
        assert child.parent is not None
        upper = PrefixNode(child.tokens[:same], child.parent, {int(child.tokens[same]): child})
        child.parent.children[int(upper.tokens[0])] = upper
        child.parent, child.tokens = upper, child.tokens[same:]
        return upper

    def _keep(self, node: PrefixNode, state: DecodingState) -> None:
        depth = node.depth
        if node.state is not None or depth < self.least:
            return
        size = round(self.decoding.state_bytes(state) * depth / max(1, state.seen))
        if size > self.limit:
            return
        node.state, node.bytes, node.used = self.decoding.copied(state, depth), size, self.clock
        self.held += size
        while self.held > self.limit:
            oldest = min((one for one in self._nodes() if one.state is not None and one is not node), key=lambda one: one.used)
            self.held, oldest.state, oldest.bytes = self.held - oldest.bytes, None, 0

    def _nodes(self) -> list[PrefixNode]:
        found = [self.root]
        for node in found:
            found += node.children.values()
        return found


def shared(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two texts have in common from the first on."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size
