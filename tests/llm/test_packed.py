"""The arithmetic of shared beginnings, without a model."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.llm.backends.packed import PrefixCache, common, pack

token_tuples = st.lists(st.integers(0, 2), max_size=12).map(tuple)
prompts_of = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=10).map(tuple), min_size=1, max_size=6)


@settings(deadline=None)
@given(token_tuples, token_tuples)
def test_common_beginning_is_the_longest(a, b):
    n = common(a, b)
    assert a[:n] == b[:n]
    assert a[n : n + 1] != b[n : n + 1] or n == len(a) == len(b)


@settings(deadline=None)
@given(prompts_of, st.data())
def test_every_prompt_reads_along_its_path_and_sees_its_ancestors_only(prompts, data):
    prompts = sorted(prompts)
    shared = common(prompts[0], prompts[-1])
    base = data.draw(st.integers(0, min(shared, *(len(p) - 1 for p in prompts)) if shared else 0))
    branches = [[(len(p) - 1, (7,)), (len(p) - 1, (7, 8)), (base, (9,))] for p in prompts]
    packed = pack(prompts, base, branches)
    texts = {}  # a node's tokens from `base` on, which must be what its mask lets it see, in order
    for prompt, path, nodes in zip(prompts, packed.paths, packed.branches):
        for i, node in enumerate(path):
            texts[int(node)] = prompt[base : base + i + 1]
        for (position, continuation), node in nodes.items():
            texts[node] = prompt[base : position + 1] + continuation
    assert sorted(texts) == list(range(len(packed.tokens)))
    assert packed.mask[:, :base].all()
    for node, text in texts.items():
        seen = np.flatnonzero(packed.mask[node, base:])
        seen = seen[np.argsort(packed.positions[seen])]
        assert tuple(packed.tokens[seen]) == text
        assert list(packed.positions[seen]) == list(range(base, base + len(text)))


@settings(deadline=None)
@given(prompts_of)
def test_each_distinct_beginning_is_computed_once(prompts):
    packed = pack(sorted(prompts), 0, [()] * len(prompts))
    beginnings = {prompt[:n] for prompt in prompts for n in range(1, len(prompt) + 1)}
    assert len(packed.tokens) == sum(packed.fresh) == len(beginnings)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), token_tuples), max_size=30), st.integers(1, 40))
def test_prefix_cache_gives_the_longest_match_it_holds_within_its_bytes(steps, limit):
    cache = PrefixCache[tuple[int, ...]](limit)
    for put, tokens in steps:
        if put and tokens:
            cache.put(tokens, tokens, len(tokens))
        else:
            length, value = cache.match(tokens)
            best = max((common(key, tokens) for key in cache._entries), default=0)
            assert length == best
            assert (value is None) if length == 0 else (value is not None and value[:length] == tokens[:length])
        held = list(cache._entries)
        assert cache.bytes == sum(map(len, held)) <= limit
        assert not any(a != b and b[: len(a)] == a for a in held for b in held)


def test_least_recently_used_beginning_goes_first():
    cache = PrefixCache[str](4)
    cache.put((1, 1), "one", 2)
    cache.put((2, 2), "two", 2)
    assert cache.match((1, 9)) == (1, "one")
    cache.put((3, 3), "three", 2)
    assert cache.match((2, 2)) == (0, None)
    assert cache.match((1, 1)) == (2, "one")
    cache.put((4,) * 9, "too large", 9)
    assert cache.match((4,)) == (0, None)
