"""The network: what a token may see, caching, packing, scores and variants."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rest.data.batches import Batch, BatchSettings, Examples, evaluation_batches
from rest.errors import UserError
from rest.model.layers import TransformerSettings, dropout
from rest.model.positions import distance_buckets, sinusoids
from rest.model.transformer import Scores, Transformer
from rest.policy.policy import hidden_states

pytestmark = pytest.mark.slow

VOCABULARY, PAD = 70, 0  # not a multiple of 64: the last block is filled up
SMALL = TransformerSettings(width=16, heads=2, feed_forward=24, encoder_layers=1, decoder_layers=2)
PRE_NORM = dataclasses.replace(SMALL, norm_first=True, norm="rms", gated=True, activation="gelu_tanh")
T5 = dataclasses.replace(
    PRE_NORM,
    head_width=6,
    biases=False,
    positions="relative",
    relative_buckets=8,
    relative_distance=6,
    relative_each_layer=True,
    scale_embedding=False,
    scale_attention=False,
    scale_output=True,
    tied_output=False,
    zero_start=False,
)
M2M100 = dataclasses.replace(
    SMALL, norm_first=True, positions="fairseq", output_bias=False, encoder_vocabulary=VOCABULARY + 10, zero_start=False
)
MBART = dataclasses.replace(SMALL, norm_first=True, positions="learned", max_positions=20, embedding_norm=True)
VARIANTS = {"Marian": SMALL, "T5": T5, "M2M100, two vocabularies": M2M100, "mBART": MBART}
variants = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)


@functools.cache
def network(settings: TransformerSettings = SMALL) -> Transformer:
    """A network whose biases and norms are not at their neutral start."""
    net = nnx.jit(lambda: Transformer(settings, VOCABULARY, pad_id=PAD, rngs=nnx.Rngs(0)))()
    graph, state = nnx.split(net)
    leaves, form = jax.tree.flatten(nnx.to_pure_dict(state))
    random = np.random.default_rng(0)
    moved = [leaf + 0.2 * random.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(form, moved))


def pairs(lengths: list[tuple[int, int]], seed: int = 0) -> Examples:
    random = np.random.default_rng(seed)
    return Examples(
        [random.integers(1, VOCABULARY, m) for m, _ in lengths],
        [random.integers(1, VOCABULARY, n) for _, n in lengths],
    )


def packed(examples: Examples, tokens: int = 16, rows: int = 1) -> Batch:
    settings = BatchSettings(batch_tokens=rows * tokens, source_tokens=tokens, target_tokens=tokens)
    (batch,) = evaluation_batches(examples, settings, pad_id=PAD)
    return jax.tree.map(jnp.asarray, batch)


hidden = nnx.jit(hidden_states)
cross_keys = nnx.jit(lambda net, ids, positions, mask: net.cross_keys(net.encode(ids, positions, mask[:, None])))
logits_of = nnx.jit(lambda net, states: jax.vmap(net.logits)(states))


@nnx.jit
def scored(net: Transformer, batch: Batch) -> Scores:
    return net.scores(hidden_states(net, batch, None), batch.target)


def by_pair(scores: Scores, batch: Batch, pair: int) -> np.ndarray:
    """Both scores of a pair's tokens [2, n], wherever the pair lies."""
    row, slot = np.argwhere(np.asarray(batch.sequence_ids) == pair)[0]
    own = np.asarray(batch.target_segments[row]) == slot + 1
    return np.stack([np.asarray(part)[row, own] for part in scores[:2]])


@variants
def test_packed_rows_score_as_one_pair_a_row(settings):
    net = network(settings)
    examples = pairs([(5, 4), (3, 6), (7, 5)])
    together = packed(examples)
    assert together.source.shape[0] == 1
    scores = scored(net, together)
    for pair in range(3):
        alone = packed(Examples([examples.sources[pair]], [examples.targets[pair]]))
        np.testing.assert_allclose(by_pair(scores, together, pair), by_pair(scored(net, alone), alone, 0), atol=1e-5)


def test_hypotheses_that_share_a_source_s_encoding_score_as_if_each_had_its_own():
    net, examples = network(), pairs([(5, 4), (3, 6), (3, 2), (5, 3)])
    of = np.array([0, 1, 1, 0])
    shared = packed(Examples(examples.sources[:2], examples.targets, source_of=of))
    alone = packed(Examples([examples.sources[k] for k in of], examples.targets))
    assert shared.source.shape[0] == 1 and (shared.source_segments > 0).sum() == 5 + 3
    for pair in range(4):
        one, other = by_pair(scored(net, shared), shared, pair), by_pair(scored(net, alone), alone, pair)
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_padding_changes_nothing():
    net, examples = network(), pairs([(5, 4)])
    exact, wide = packed(examples, tokens=5), packed(examples, tokens=32, rows=3)
    np.testing.assert_allclose(by_pair(scored(net, exact), exact, 0), by_pair(scored(net, wide), wide, 0), atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing():
    net, batch = network(), packed(pairs([(5, 4)]))
    dirty = dataclasses.replace(
        batch,
        source=jnp.where(batch.source_segments > 0, batch.source, 7),
        target_input=jnp.where(batch.target_segments > 0, batch.target_input, 7),
    )
    np.testing.assert_array_equal(by_pair(scored(net, batch), batch, 0), by_pair(scored(net, dirty), dirty, 0))


def test_a_token_does_not_see_what_follows_it():
    net, batch = network(), packed(pairs([(5, 6)]))
    changed = dataclasses.replace(batch, target_input=batch.target_input.at[0, 4].set(9))
    before, after = (hidden(net, b, None)[0, :6] for b in (batch, changed))
    np.testing.assert_array_equal(before[:4], after[:4])
    assert not np.allclose(before[4:], after[4:])


@variants
def test_decoding_step_by_step_gives_the_logits_of_teacher_forcing(settings):
    net, samples, steps = network(settings), 2, 6
    examples = pairs([(5, steps), (3, steps), (7, steps)])
    one_a_row = [packed(Examples([x], [y]), tokens=8) for x, y in zip(examples.sources, examples.targets, strict=True)]
    batch = jax.tree.map(lambda *rows: jnp.concatenate(rows), *one_a_row)
    forced = logits_of(net, hidden(net, batch, None))[:, :steps]

    mask = batch.source_segments > 0
    cross = cross_keys(net, batch.source, batch.source_positions, mask)
    cache = net.empty_cache(3 * samples, steps)
    step = nnx.jit(Transformer.decode_step)
    begins = np.array([0, 3, 1, 7, 0, 2])  # rows begin at different times, and the ring of slots goes round
    inputs, wanted, rows = np.repeat(batch.target_input, samples, 0), np.repeat(forced, samples, 0), np.arange(6)
    for t in range(steps + begins.max()):
        at = t - begins
        on = (at >= 0) & (at < steps)
        ids = np.where(on, inputs[rows, np.clip(at, 0, steps - 1)], 0)
        logits, cache = step(net, ids, np.where(on, at, 0), jnp.int32(t % steps), cache, cross, mask)
        np.testing.assert_allclose(logits[on], wanted[rows[on], at[on]], atol=1e-5, rtol=1e-5)


def test_padding_and_ids_beyond_the_vocabulary_are_never_likely():
    net = nnx.clone(network())
    net.output_bias[...] = net.output_bias[...].at[PAD].set(1e6).at[VOCABULARY:].set(1e6)
    logits = net.logits(jnp.ones((1, 16)))
    probabilities = np.asarray(jax.nn.softmax(logits))[0]
    assert logits.shape == (1, 128) and np.isfinite(logits).all()
    assert probabilities[PAD] == 0 and (probabilities[VOCABULARY:] == 0).all()
    assert (probabilities[1:VOCABULARY] > 0).all()


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_scores_in_chunks_are_those_of_a_direct_log_softmax(chunk):
    net = network()
    states = jnp.asarray(np.random.default_rng(1).standard_normal((3, 12, 16), np.float32))
    labels = jnp.asarray(np.random.default_rng(2).integers(1, VOCABULARY, (3, 12)))
    direct = np.asarray(jax.nn.log_softmax(logits_of(net, states), axis=-1))
    scores = nnx.jit(Transformer.scores, static_argnames="chunk")(net, states, labels, chunk=chunk)
    wanted = np.take_along_axis(direct, np.asarray(labels)[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores.log_probs, wanted, atol=1e-5)
    # the mean is over what can be produced: neither padding nor the ids that fill up the last block
    np.testing.assert_allclose(scores.mean_log_probs, direct[..., 1:VOCABULARY].mean(-1), atol=1e-4)


def test_scores_at_a_temperature_are_those_of_colder_logits_with_their_entropy():
    net = network()
    states = jnp.asarray(np.random.default_rng(1).standard_normal((3, 12, 16), np.float32))
    labels = jnp.asarray(np.random.default_rng(2).integers(1, VOCABULARY, (3, 12)))
    direct = np.asarray(jax.nn.log_softmax(logits_of(net, states) / 0.7, axis=-1), np.float64)
    graph, state = nnx.split(net)
    scores = jax.jit(lambda s: nnx.merge(graph, s).scores(states, labels, 7, temperature=0.7, entropy=True))(state)
    wanted = np.take_along_axis(direct, np.asarray(labels)[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores.log_probs, wanted, atol=1e-5)
    np.testing.assert_allclose(scores.entropies, -(np.exp(direct) * direct).sum(-1), atol=1e-5)


def test_the_chunk_does_not_change_the_gradient():
    graph, state = nnx.split(network())
    parameters = nnx.to_pure_dict(state)
    states = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 16), np.float32))
    labels = jnp.ones((2, 8), jnp.int32)

    def gradient(chunk: int):
        return jax.jit(jax.grad(lambda p: nnx.merge(graph, p).scores(states, labels, chunk).log_probs.sum()))(
            parameters
        )

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient(2), gradient(512))


@pytest.mark.parametrize(("temperature", "entropy", "groups"), [(1.0, False, 1), (3.0, False, 2), (0.7, True, 2)])
def test_the_gradient_of_scores_is_that_of_a_direct_log_softmax(temperature, entropy, groups):
    net = network()
    net.row_groups = groups
    graph, state = nnx.split(net)
    parameters = nnx.to_pure_dict(state)
    random = np.random.default_rng(3)
    states = jnp.asarray(random.standard_normal((2, 8, 16), np.float32))
    labels = jnp.asarray(random.integers(1, VOCABULARY, (2, 8)))
    given = [jnp.asarray(random.standard_normal((2, 8), np.float32)) for _ in range(3)]

    def joined(*of_token):
        return sum((weight * part).sum() for weight, part in zip(given, of_token, strict=False))

    def ours(parameters, states):
        found = nnx.merge(graph, parameters).scores(states, labels, 4, temperature=temperature, entropy=entropy)
        return joined(found.log_probs, found.mean_log_probs, *([found.entropies] if entropy else []))

    def direct(parameters, states):
        law = jax.nn.log_softmax(logits_of(nnx.merge(graph, parameters), states) / temperature, axis=-1)
        label = jnp.take_along_axis(law, labels[..., None], -1)[..., 0]
        entropies = -(jnp.exp(law) * law)[..., 1:VOCABULARY].sum(-1)
        return joined(label, law[..., 1:VOCABULARY].mean(-1), *([entropies] if entropy else []))

    found, expected = (jax.jit(jax.grad(f, argnums=(0, 1)))(parameters, states) for f in (ours, direct))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_padding_positions_give_no_gradient_that_is_not_a_number():
    graph, state = nnx.split(network())
    batch = packed(pairs([(5, 4)]), rows=2)  # the second row is all padding

    def loss(parameters):
        scores = scored(nnx.merge(graph, parameters), batch)
        return jnp.where(batch.target_segments > 0, scores.log_probs + scores.mean_log_probs, 0.0).sum()

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(nnx.to_pure_dict(state)))
    assert all(np.isfinite(g).all() for g in gradients)


def test_bfloat16_computes_in_half_precision_and_scores_in_single():
    settings = dataclasses.replace(SMALL, dtype="bfloat16")
    net, exact = network(settings), network()
    batch = packed(pairs([(5, 4), (3, 6)]))
    assert hidden(net, batch, None).dtype == jnp.bfloat16
    half, single = scored(net, batch).log_probs, scored(exact, batch).log_probs
    assert half.dtype == jnp.float32 and net.embedding[...].dtype == jnp.float32
    np.testing.assert_allclose(half, single, atol=0.5, rtol=0.1)
    assert net.empty_cache(2, 3)[0].keys.dtype == jnp.bfloat16


def test_dropout_follows_its_key_and_is_off_without_one():
    net, batch = network(), packed(pairs([(5, 4)]))
    keys = [jax.random.key(0), jax.random.key(0), jax.random.key(1)]
    first, again, other = (hidden(net, batch, key) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, hidden(net, batch, None))
    certain = network(dataclasses.replace(SMALL, dropout=0.0))
    np.testing.assert_array_equal(hidden(certain, batch, jax.random.key(0)), hidden(certain, batch, None))


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = jnp.ones((200, 200))
    dropped = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert np.unique(dropped).tolist() == pytest.approx([0.0, 4 / 3])
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)


def test_dropout_of_neighbours_is_independent_at_any_width():
    for width in (201, 200, 3):
        dropped = np.asarray(dropout(jnp.ones((40_000 // width, width)), 0.25, jax.random.key(1))) == 0
        assert (dropped.mean(0) > 0).all() and (dropped.mean(0) < 0.6).all()
        words = -(-width // 4)  # the bytes of one word lie this far apart
        for apart in {1, words} - {width}:
            both = (dropped[:, apart:] & dropped[:, :-apart]).mean()
            assert both == pytest.approx(0.25**2, abs=0.01)


def test_sinusoids_by_hand():
    # width 4: rates 1 and 1/100; sines first, then cosines
    positions = jnp.asarray([[0, 1, 50]])
    wanted = [
        [0, 0, 1, 1],
        [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)],
        [math.sin(50), math.sin(0.5), math.cos(50), math.cos(0.5)],
    ]
    np.testing.assert_allclose(sinusoids(positions, 4)[0], wanted, atol=1e-5)
    wanted[1][1], wanted[1][3] = math.sin(1e-4), math.cos(1e-4)  # the last rate is 1/10000
    wanted[2][1], wanted[2][3] = math.sin(5e-3), math.cos(5e-3)
    np.testing.assert_allclose(sinusoids(positions, 4, reached=True)[0], wanted, atol=1e-5)


@variants
def test_the_number_of_parameters_follows_from_the_settings(settings):
    width, inner = settings.width, settings.feed_forward
    linear = lambda m, n: m * n + (n if settings.biases else 0)  # noqa: E731
    norm = width * (2 if settings.norm == "layer" else 1)
    heads = settings.heads * (settings.head_width or width // settings.heads)
    attention = 3 * linear(width, heads) + linear(heads, width)
    feed_forward = linear(width, inner) * (2 if settings.gated else 1) + linear(inner, width)
    encoder = settings.encoder_layers * (attention + feed_forward + 2 * norm)
    decoder = settings.decoder_layers * (2 * attention + feed_forward + 3 * norm)
    # 70 ids and what fills up the second block of 64; the output's bias or its own weights
    tables = 1 + (not settings.tied_output) + (settings.encoder_vocabulary is not None)
    embedding = 128 * width * tables + (128 if settings.biases and settings.output_bias else 0)
    norms = 2 * norm * (settings.norm_first + settings.embedding_norm)
    layers = settings.encoder_layers + settings.decoder_layers
    relative = settings.relative_buckets * settings.heads * layers if settings.positions == "relative" else 0
    learned = 2 * (settings.max_positions + 2) * width if settings.positions == "learned" else 0
    leaves = jax.tree.leaves(nnx.state(network(settings)))
    assert sum(leaf.size for leaf in leaves) == embedding + encoder + decoder + norms + relative + learned


def test_padding_starts_the_decoder_as_nothing_or_as_it_is_embedded():
    for start, same in ((True, True), (False, False)):
        net = nnx.clone(network(dataclasses.replace(SMALL, zero_start=start)))
        before = net.decoder_input(jnp.full((1, 1), PAD), net.embedding, jnp.zeros((1, 1), int), None)
        net.embedding[...] = net.embedding[...].at[PAD].add(1.0)
        after = net.decoder_input(jnp.full((1, 1), PAD), net.embedding, jnp.zeros((1, 1), int), None)
        assert (np.asarray(before) == np.asarray(after)).all() == same


def test_relative_positions_by_hand():
    # of 8 buckets, 4 hold one distance each, the others grow by the fourth root of 12 / 4; the last has what is left
    wanted = [0, 1, 2, 3, *(4 + int(4 * math.log(d / 4) / math.log(3)) for d in range(4, 12)), 7]
    assert distance_buckets(8, 12).tolist() == wanted
    assert wanted == sorted(wanted) and set(wanted) == set(range(8))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="width 18 must be a multiple of twice the heads, 4"):
        network(dataclasses.replace(SMALL, width=18, heads=4))


def test_the_padding_of_targets_may_be_a_word_of_a_vocabulary_of_sources():
    def first_row_is_nothing(settings):
        network = Transformer(settings, VOCABULARY, pad_id=PAD, rngs=nnx.Rngs(0))
        table = network.embedding if network.encoder_embedding is None else network.encoder_embedding
        ids = jnp.array([[PAD, 5]])
        embedded = network.encoder_input(ids, table, jnp.zeros((1, 2), jnp.int32), None)
        nothing = sinusoids(jnp.zeros((1, 1), jnp.int32), settings.width)
        return bool(jnp.allclose(embedded[:, :1], nothing))

    assert first_row_is_nothing(SMALL)
    assert not first_row_is_nothing(dataclasses.replace(SMALL, encoder_vocabulary=VOCABULARY + 10))
