"""What a network is given beside the texts: in batches, samples and beams, and in no log-probability and no length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.data.batches import BatchSettings, Examples, pad
from rest.data.tokenizer import Prompt, SentencePieceTokenizer
from rest.learning.mesh import MachineSettings
from rest.model.layers import TransformerSettings
from rest.policy.beam import BeamSettings, n_best
from rest.policy.policy import Policy, token_log_probs
from rest.policy.sampler import SamplingSettings, sample

PROMPT = Prompt(start=3, forced=(5, 9), source=(7,))
BATCH = BatchSettings(batch_tokens=256, source_tokens=64, target_tokens=64)


@pytest.fixture(scope="module")
def told(lively) -> Policy:
    """The lively policy with a prompt of three ids, where tokens see how far they are from it."""
    settings = dataclasses.replace(lively.settings, zero_start=False)
    policy = Policy.new(settings, lively.tokenizer.prompted(PROMPT), seed=0)
    return policy.with_network(policy.network.with_parameters(lively.network.parameters))


@jax.jit
def plain(network, source, length, target_input):
    """Logits of one pair that is not packed; what stands after either is not looked at."""
    module, here, there = network.module, jnp.arange(source.shape[1])[None], jnp.arange(target_input.shape[1])[None]
    mask = (here < length)[:, None]
    encoded = module.encode(source, here, mask)
    causal = jnp.tril(jnp.ones((target_input.shape[1],) * 2, bool))[None]
    return module.logits(module.decode(target_input, there, causal, encoded, mask)[0])


def by_hand(policy: Policy, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """log π of each token, from the source and the whole input of the decoder written out."""
    given = [PROMPT.start, *PROMPT.forced, *target[:-1]]
    wide = pad([source, np.asarray(given, np.int32)], 72, policy.tokenizer.pad_id)  # one program serves all pairs
    logits = plain(policy.network, wide[:1], len(source), wide[1:])[len(PROMPT.forced) :]
    return np.asarray(jax.nn.log_softmax(logits))[np.arange(len(target)), target]


def test_packed_targets_see_the_prompt_and_only_their_own(told, corpus):
    sources, targets = told.encode_sources(corpus.dev.sources[:5]), told.encode_references(corpus.dev.references[:5])
    found = token_log_probs(told, Examples(sources, targets), BATCH)
    assert [len(row) for row in found] == [len(target) for target in targets]
    for source, target, row in zip(sources, targets, found, strict=True):
        assert source[0] == 7
        np.testing.assert_allclose(row, by_hand(told, source, target), atol=2e-5)


def test_hypotheses_that_share_a_source_see_the_prompt_too(told, corpus):
    sources, targets = told.encode_sources(corpus.dev.sources[:2]), told.encode_references(corpus.dev.references[:4])
    source_of = np.array([0, 0, 1, 1])
    shared = token_log_probs(told, Examples(sources, targets, source_of=source_of), BATCH)
    for pair, row in enumerate(shared):
        np.testing.assert_allclose(row, by_hand(told, sources[source_of[pair]], targets[pair]), atol=2e-5)


def test_samples_are_of_the_distribution_after_the_prompt(told, corpus):
    texts = corpus.dev.sources[:6]
    settings = SamplingSettings(temperature=1.0, max_target_tokens=14)
    ids = np.arange(len(texts))
    drawn = sample(told, texts, ids, 3, settings, seed=0, machine=MachineSettings(rows=8))
    again = sample(told, texts, ids, 3, settings, seed=0, machine=MachineSettings(rows=64))
    lengths = [len(y) for of_source in drawn.tokens for y in of_source]
    assert min(lengths) < max(lengths) == 14
    for i, source in enumerate(told.encode_sources(texts)):
        for y, log_probs, behaviour, other in zip(
            drawn.tokens[i], drawn.log_probs[i], drawn.behaviour_log_probs[i], again.tokens[i], strict=True
        ):
            np.testing.assert_array_equal(y, other)
            np.testing.assert_allclose(log_probs, by_hand(told, source, y), atol=5e-5)
            np.testing.assert_allclose(log_probs, behaviour, atol=5e-5)


def test_beams_follow_the_prompt(told, corpus):
    texts = corpus.dev.sources[:4]
    found = n_best(told, texts, BeamSettings(beams=3, max_target_tokens=12), machine=MachineSettings(beam_rows=12))
    for source, rows, log_probs in zip(told.encode_sources(texts), found.tokens, found.log_probs, strict=True):
        for y, of_tokens in zip(rows, log_probs, strict=True):
            assert len(y) <= 12
            np.testing.assert_allclose(of_tokens, by_hand(told, source, y), atol=5e-5)


def test_another_prompt_gives_another_distribution(told, lively, corpus):
    targets = lively.encode_references(corpus.dev.references[:2])
    plain_sources, told_sources = (policy.encode_sources(corpus.dev.sources[:2]) for policy in (lively, told))
    one, other = (
        token_log_probs(lively, Examples(plain_sources, targets), BATCH),
        token_log_probs(told, Examples(told_sources, targets), BATCH),
    )
    assert all(np.abs(a - b).max() > 1e-2 for a, b in zip(one, other, strict=True))


def test_the_prompt_is_known_by_the_network_of_a_policy(told):
    assert told.network.module.prompt == (3, 5, 9)
    settings = TransformerSettings(width=16, heads=2, feed_forward=16, encoder_layers=1, decoder_layers=1)
    model, _ = told.tokenizer.models
    assert Policy.new(settings, SentencePieceTokenizer(model), 0).network.module.prompt == (0,)
