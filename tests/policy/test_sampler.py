"""The sampler: its log-probabilities, and that a hypothesis depends on its source, index and seed alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rest.errors import UserError
from rest.learning.mesh import MachineSettings
from rest.model.attention import BLOCKED
from rest.policy.beam import BeamSettings, translate
from rest.policy.sampler import Hypotheses, SamplingSettings, sample
from rest.policy.slots import SamplingDistribution, draw_tokens

SETTINGS = SamplingSettings(temperature=0.8, max_target_tokens=12)
MACHINE = MachineSettings(rows=12)
SAMPLES = 3


@pytest.fixture(scope="module")
def split(corpus, policy):
    """Six short sources, so that one shape serves most tests."""
    short = [row for row, ids in enumerate(policy.encode_sources(corpus.train.sources)) if len(ids) <= 16]
    return corpus.train.take(short[:6])


def draws(policy, split, settings=SETTINGS, seed=3, grow_step=1, rows=12, samples=SAMPLES, first_index=0):
    where = {"grow_step": grow_step, "first_index": first_index, "machine": MachineSettings(rows=rows)}
    return sample(policy, split.sources, split.ids, samples, settings, seed=seed, **where)


@pytest.fixture(scope="module")
def drawn(lively, split):
    return draws(lively, split)


def same_tokens(a, b) -> bool:
    return all(np.array_equal(x, y) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def distribution(logits: np.ndarray, settings: SamplingSettings) -> np.ndarray:
    """Log-probabilities [V] of what is sampled from, by sorting and cutting the list of tokens."""
    cold = logits / settings.temperature
    ranked = np.argsort(-cold)
    ranked = ranked[: max(1, int((np.exp(log_softmax(cold)) >= settings.epsilon).sum()))]
    if settings.top_k:
        ranked = ranked[: settings.top_k]
    probabilities = np.exp(log_softmax(cold[ranked]))
    if settings.top_p < 1:
        ranked = ranked[: 1 + int(np.searchsorted(np.cumsum(probabilities), settings.top_p))]
    out = np.full(len(logits), -np.inf)
    out[ranked] = log_softmax(cold[ranked])
    return out


@pytest.mark.parametrize(
    "settings",  # each cut by itself is held to the same distribution below, on logits
    [SETTINGS, replace(SETTINGS, temperature=1.3, top_k=40, top_p=0.9, epsilon=0.001)],
    ids=["whole", "cut"],
)
def test_both_log_probabilities_are_those_of_a_teacher_forced_pass(lively, split, teacher_forced, settings):
    found = draws(lively, split, settings)
    for source, *columns in zip(split.sources, found.tokens, found.log_probs, found.behaviour_log_probs, strict=True):
        for tokens, own, behaviour in zip(*columns, strict=True):
            logits = teacher_forced(lively, source, tokens)
            at = np.arange(len(tokens)), tokens
            np.testing.assert_allclose(own, np.stack([log_softmax(row) for row in logits])[at], atol=1e-4)
            np.testing.assert_allclose(
                behaviour, np.stack([distribution(row, settings) for row in logits])[at], atol=1e-4
            )


def test_what_outgrows_the_cache_s_first_room_is_drawn_whole(lively, split, teacher_forced):
    long = replace(SETTINGS, max_target_tokens=44)  # sources of up to 16 tokens get room for 32 first
    found = draws(lively, split, long)
    lengths = np.asarray([[len(y) for y in samples] for samples in found.tokens])
    assert (lengths > 32).any() and (lengths <= 32).any() and lengths.max() == 44
    i, k = np.argwhere(lengths > 32)[0].tolist()
    logits = teacher_forced(lively, split.sources[i], found.tokens[i][k])
    forced = np.stack([log_softmax(row) for row in logits])[np.arange(lengths[i, k]), found.tokens[i][k]]
    np.testing.assert_allclose(found.log_probs[i][k], forced, atol=1e-4)
    alone = draws(lively, split.take([i]), long)
    assert same_tokens(alone.tokens, [found.tokens[i]])


@pytest.mark.parametrize("rows", [1, 64])
def test_a_hypothesis_does_not_depend_on_how_many_rows_are_decoded_at_once(lively, split, drawn, rows):
    other = draws(lively, split, rows=rows)
    assert same_tokens(other.tokens, drawn.tokens)
    assert other.texts == drawn.texts
    for ours, theirs in zip(drawn.log_probs, other.log_probs, strict=True):
        np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), atol=1e-5)


def test_a_hypothesis_does_not_depend_on_the_sources_beside_it(lively, corpus, split, drawn):
    backwards = draws(lively, split.take(slice(None, None, -1)))
    assert same_tokens(backwards.tokens[::-1], drawn.tokens)
    some = draws(lively, split.take([4, 1]))
    assert same_tokens(some.tokens, [drawn.tokens[4], drawn.tokens[1]])
    # among longer sources the short ones are padded wider
    long = corpus.train.take(np.argsort([-len(x) for x in corpus.train.sources])[:3])
    mixed = sample(
        lively,
        [*long.sources, *split.sources],
        np.concatenate([long.ids, split.ids]),
        SAMPLES,
        SETTINGS,
        seed=3,
        grow_step=1,
        machine=MACHINE,
    )
    assert same_tokens(mixed.tokens[3:], drawn.tokens)


def test_another_seed_grow_step_or_source_id_draws_others(lively, split, drawn):
    for other in (draws(lively, split, seed=4), draws(lively, split, grow_step=2)):
        assert not same_tokens(other.tokens, drawn.tokens)
    moved = replace(split, ids=split.ids + 2**32)  # the upper half of an id counts too
    assert not same_tokens(draws(lively, moved).tokens, drawn.tokens)
    first, second, third = drawn.tokens[0]
    assert not (np.array_equal(first, second) and np.array_equal(second, third))


def test_samples_from_a_further_index_on_are_those_that_more_samples_would_have_been(lively, split, drawn):
    first, rest = draws(lively, split, samples=1), draws(lively, split, samples=2, first_index=1)
    assert same_tokens(Hypotheses.beside([first, rest]).tokens, drawn.tokens)
    assert not same_tokens(draws(lively, split, samples=1, first_index=3).tokens, first.tokens)


def test_hypotheses_of_several_distributions_stand_beside_each_other(lively, split, drawn):
    hot = draws(lively, split, replace(SETTINGS, temperature=2.0), samples=2, first_index=3)
    both = Hypotheses.beside([drawn, hot])
    assert both.texts == [a + b for a, b in zip(drawn.texts, hot.texts, strict=True)]
    np.testing.assert_array_equal(both.finished, np.concatenate([drawn.finished, hot.finished], axis=1))
    for whole, a, b in zip(both.behaviour_log_probs, drawn.behaviour_log_probs, hot.behaviour_log_probs, strict=True):
        np.testing.assert_array_equal(np.concatenate(whole), np.concatenate([*a, *b]))
    assert both.decoder_steps == drawn.decoder_steps + hot.decoder_steps


def test_tokens_end_in_eos_exactly_when_finished_and_are_never_too_long(lively, split, drawn):
    eos, pad = lively.tokenizer.eos_id, lively.tokenizer.pad_id
    assert drawn.finished.any() and not drawn.finished.all()
    for i, samples in enumerate(drawn.tokens):
        for k, tokens in enumerate(samples):
            assert 1 <= len(tokens) <= SETTINGS.max_target_tokens
            assert (tokens[-1] == eos) == drawn.finished[i, k]
            assert eos not in tokens[:-1] and pad not in tokens
            assert drawn.finished[i, k] or len(tokens) == SETTINGS.max_target_tokens
            assert len(drawn.log_probs[i][k]) == len(drawn.behaviour_log_probs[i][k]) == len(tokens)
        assert drawn.texts[i] == lively.tokenizer.decode(samples)
    assert 0 < drawn.useful_steps <= 1


def test_slots_are_never_idle_while_rows_wait(lively, corpus, policy):
    short = [row for row, ids in enumerate(policy.encode_sources(corpus.train.sources)) if len(ids) <= 16]
    many = corpus.train.take(short[:40])
    told = []
    found = sample(lively, many.sources, many.ids, SAMPLES, SETTINGS, seed=3, machine=MACHINE, ended=told.append)
    tokens = sum(len(y) for samples in found.tokens for y in samples)
    # an eighth of the slots is filled at each of the first steps; the last rows leave theirs empty, and some of them
    # are drawn again in a quarter of the slots
    assert tokens < found.decoder_steps <= tokens + MACHINE.rows * (1.5 * SETTINGS.max_target_tokens + 8)
    assert sum(told) == len(many) * SAMPLES and len(told) > 5


def test_what_the_listener_raises_ends_the_sampling(lively, split):
    def stop(rows):
        raise InterruptedError(rows)

    with pytest.raises(InterruptedError):
        sample(lively, split.sources, split.ids, SAMPLES, SETTINGS, seed=3, machine=MACHINE, ended=stop)


def test_no_sources_give_no_hypotheses(lively):
    nothing = sample(lively, [], np.empty(0, np.int64), SAMPLES, SETTINGS, seed=0, machine=MACHINE)
    assert nothing.tokens == nothing.texts == []
    assert nothing.finished.shape == (0, SAMPLES)


def test_the_likeliest_token_alone_is_greedy_decoding(lively, split):
    sampled = draws(lively, split, replace(SETTINGS, top_k=1))
    greedy = translate(lively, split.sources, BeamSettings(1, max_target_tokens=12), MachineSettings(beam_rows=12))
    assert sampled.texts == [[text] * SAMPLES for text in greedy]
    for values in sampled.behaviour_log_probs:
        np.testing.assert_allclose(np.concatenate(values), 0, atol=1e-6)


jitted = jax.jit(draw_tokens)


def one_row(logits: np.ndarray, uniform: np.ndarray, temperature=1.0, top_k=0, top_p=1.0, epsilon=0.0):
    rows = np.broadcast_to(np.asarray(logits, np.float32), (len(uniform), len(logits)))
    wanted = SamplingDistribution(temperature, top_k, top_p, epsilon)
    drawn = jitted(jnp.asarray(rows), jnp.asarray(uniform, jnp.float32), wanted)
    return [np.asarray(part) for part in drawn]


def uneven_logits() -> np.ndarray:
    """V = 128 with every fifth token out of reach, and a whole run of them over the edge of the two blocks."""
    logits = np.random.default_rng(0).normal(size=128)
    logits[::5] = BLOCKED
    logits[56:70] = BLOCKED
    return logits


def test_frequencies_of_drawn_tokens_follow_the_tempered_softmax():
    logits, rows = uneven_logits(), 20_000
    uniform = np.random.default_rng(1).random(rows)
    counts = np.bincount(one_row(logits, uniform, temperature=0.8)[0], minlength=128)
    reachable = logits > BLOCKED / 2
    assert counts[~reachable].sum() == 0
    expected = rows * np.exp(log_softmax(logits[reachable] / 0.8))
    assert expected.min() > 5  # else the statistic is not chi-squared
    assert stats.chisquare(counts[reachable], expected, sum_check=False).pvalue > 0.01


@pytest.mark.parametrize(
    "cut",
    [{"top_k": 12, "top_p": 0.8}, {"temperature": 0.7, "epsilon": 0.02}, {"top_k": 9, "top_p": 0.9, "epsilon": 0.02}],
)
def test_frequencies_of_drawn_tokens_follow_the_truncated_distribution(cut):
    logits, rows = uneven_logits(), 20_000
    settings = SamplingSettings(**{"temperature": 1.0, **cut})
    tokens, _, behaviour = one_row(logits, np.random.default_rng(2).random(rows), **cut)
    wanted = distribution(logits, settings)
    counts = np.bincount(tokens, minlength=128)
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(np.isfinite(wanted)))
    kept = np.isfinite(wanted)
    assert stats.chisquare(counts[kept], rows * np.exp(wanted[kept]), sum_check=False).pvalue > 0.01
    np.testing.assert_allclose(behaviour, wanted[tokens], atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-4, 0.01, 0.03])
def test_no_token_below_epsilon_is_drawn_and_the_others_share_its_probability(epsilon):
    logits = uneven_logits()
    uniform = (np.arange(4000) + 0.5) / 4000  # all there is to draw, evenly
    tokens, log_probs, behaviour = one_row(logits, uniform, 0.8, epsilon=epsilon)
    probabilities = np.exp(log_softmax(logits / 0.8))
    likely = probabilities >= epsilon
    assert set(tokens) == set(np.flatnonzero(likely)) and len(set(tokens)) > 1
    np.testing.assert_allclose(np.exp(behaviour), (probabilities / probabilities[likely].sum())[tokens], rtol=1e-4)
    np.testing.assert_allclose(log_probs, log_softmax(logits)[tokens], atol=1e-5)


def test_where_every_token_is_below_epsilon_the_likeliest_stays():
    logits = uneven_logits()
    tokens, _, behaviour = one_row(logits, np.linspace(0, 0.999, 50), epsilon=0.9)
    assert set(tokens) == {logits.argmax()}
    np.testing.assert_allclose(behaviour, 0, atol=1e-6)


@pytest.mark.parametrize("epsilon", [-0.1, 1.0])
def test_an_epsilon_that_is_no_probability_is_refused(epsilon):
    with pytest.raises(UserError, match=f"epsilon must be at least 0 and below 1, not {epsilon}"):
        SamplingSettings(epsilon=epsilon)


@pytest.mark.parametrize("mass", [(0, 127), (3, 60), (64, 127), (65, 100), (63, 64), (77, 77)])
def test_the_ends_of_the_unit_interval_give_the_first_and_last_token_that_have_mass(mass):
    first, last = mass
    logits = np.full(128, BLOCKED)
    logits[first : last + 1] = 0.3
    uniform = np.array([0.0, np.nextafter(np.float32(1), np.float32(0))], np.float32)
    tokens, log_probs, behaviour = one_row(logits, uniform)
    assert tokens.tolist() == [first, last]
    np.testing.assert_allclose(log_probs, -np.log(last - first + 1), atol=1e-5)
    np.testing.assert_allclose(behaviour, log_probs, atol=1e-5)


def test_a_point_on_the_border_of_two_tokens_never_gives_one_without_mass():
    logits = np.full(128, BLOCKED)
    logits[[10, 50, 90, 120]] = 0.0  # a quarter of the mass each: the borders are exact in binary
    tokens = one_row(logits, np.array([0.0, 0.25, 0.5, 0.75]))[0]
    assert tokens.tolist() == [10, 50, 90, 120]
