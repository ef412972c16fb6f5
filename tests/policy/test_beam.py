"""Beam search against exhaustive search over a small language, and greedy decoding against its definition."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from rest.errors import UserError
from rest.learning.mesh import MachineSettings, places
from rest.model.attention import BLOCKED
from rest.policy.beam import BeamSettings, longest, n_best, translate
from rest.policy.sampler import SamplingSettings

LONGEST = 4


@pytest.fixture(scope="module")
def sources(corpus, policy):
    return [
        x
        for x, ids in zip(corpus.dev.sources, policy.encode_sources(corpus.dev.sources), strict=True)
        if len(ids) <= 32
    ][:10]


def biased(policy, bias: np.ndarray):
    """The policy with another bias of the output."""
    return policy.with_network(policy.network.with_parameters({**policy.network.parameters, "output_bias": bias}))


def spoken(policy, words: int, eos_bias: float):
    """A policy that knows only so many words and EOS, so that its text tells its tokens; and the words' ids."""
    pieces = range(3, policy.tokenizer.vocabulary_size)
    ids = [i for i in pieces if policy.tokenizer.decode([[5, i]])[0].count(" ") == 1]
    ids = [i for i in ids if policy.tokenizer.decode([[i]])[0].isalpha()][:words]
    bias = np.full(policy.network.parameters["output_bias"].shape, BLOCKED, np.float32)
    bias[ids] = 0
    bias[policy.tokenizer.eos_id] = eos_bias
    return biased(policy, bias), ids


@pytest.fixture(scope="module")
def three_words(lively):
    return spoken(lively, 3, 0.0)


@pytest.fixture(scope="module")
def many_words(lively):
    return spoken(lively, 40, 2.0)


def settings_of(beams: int) -> BeamSettings:
    return BeamSettings(beams, length_penalty=0.0, max_target_tokens=8)


def found(policy, sources, beams: int) -> list[str]:
    """With all sources at once, whose number is 10."""
    return translate(policy, sources, settings_of(beams), MachineSettings(beam_rows=10 * beams))


def tokens_of(policy, ids, text: str, longest: int) -> list[int]:
    """The tokens behind a text: its words, and EOS unless it was cut."""
    words = {policy.tokenizer.decode([[i]])[0]: i for i in ids}
    tokens = [words[word] for word in text.split()]
    return tokens if len(tokens) == longest else [*tokens, policy.tokenizer.eos_id]


def log_probs(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def log_prob(teacher_forced, policy, source: str, tokens: list[int]) -> float:
    return float(log_probs(teacher_forced(policy, source, tokens))[np.arange(len(tokens)), tokens].sum())


def test_one_beam_takes_the_likeliest_token_at_every_step(many_words, sources, teacher_forced):
    policy, ids = many_words
    texts = found(policy, sources, 1)
    lengths = set()
    for source, text in zip(sources, texts, strict=True):
        tokens: list[int] = []
        while len(tokens) < 8 and policy.tokenizer.eos_id not in tokens:
            tokens.append(int(teacher_forced(policy, source, [*tokens, 0])[-1].argmax()))
        assert tokens_of(policy, ids, text, 8) == tokens
        lengths.add(len(tokens))
    assert len(lengths) > 2  # some end early, some late


def every_hypothesis(policy, ids):
    """All that end within LONGEST tokens."""
    for words in range(LONGEST):
        for tokens in product(ids, repeat=words):
            yield [*tokens, policy.tokenizer.eos_id]


@pytest.fixture(scope="module")
def exhaustive(three_words, sources, teacher_forced):
    """For each source, every hypothesis with its log-probability."""
    policy, ids = three_words
    return [[(y, log_prob(teacher_forced, policy, x, y)) for y in every_hypothesis(policy, ids)] for x in sources[:4]]


def winners(exhaustive, penalty: float) -> list[list[int]]:
    return [max(ys, key=lambda entry: entry[1] / len(entry[0]) ** penalty)[0] for ys in exhaustive]


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_a_wide_beam_finds_the_best_of_all_hypotheses(three_words, sources, exhaustive, penalty):
    policy, ids = three_words
    # 128 beams hold the 27 x 4 candidates of the last step: nothing is pruned
    settings = BeamSettings(128, penalty, max_target_tokens=LONGEST)
    texts = translate(policy, sources[:4], settings, MachineSettings(beam_rows=512))
    assert [tokens_of(policy, ids, text, LONGEST) for text in texts] == winners(exhaustive, penalty)


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_the_n_best_of_a_wide_beam_are_all_hypotheses_in_order(three_words, sources, exhaustive, penalty):
    policy, ids = three_words
    # 40 hypotheses end within four tokens and 81 are cut there: 121 in all, and so many beams prune none
    settings = BeamSettings(121, penalty, max_target_tokens=LONGEST)
    found = n_best(policy, sources[:4], settings, machine=MachineSettings(beam_rows=242))
    for tokens, finished, known in zip(found.tokens, found.finished, exhaustive, strict=True):
        assert finished.tolist() == [True] * 40 + [False] * 81
        wanted = sorted(known, key=lambda entry: -entry[1] / len(entry[0]) ** penalty)
        assert [y.tolist() for y in tokens[:40]] == [y for y, _ in wanted]
        assert {tuple(y) for y in tokens[40:]} == set(product(ids, repeat=LONGEST))


def test_more_beams_than_there_are_hypotheses_are_refused(lively, sources):
    policy, _ = spoken(lively, 1, 0.0)
    settings = BeamSettings(5, 1.5, max_target_tokens=LONGEST)  # four hypotheses end, and one is cut
    found = n_best(policy, sources[:2], settings)
    assert found.finished.tolist() == [[True] * 4 + [False]] * 2
    with pytest.raises(UserError, match="beams 6: some source has fewer hypotheses"):
        n_best(policy, sources[:2], replace(settings, beams=6))


def test_the_n_best_begin_with_the_best_and_have_the_log_probabilities_of_their_tokens(
    many_words, sources, teacher_forced
):
    policy, _ = many_words
    told = []
    settings, machine = settings_of(4), MachineSettings(beam_rows=40)
    found = n_best(policy, sources, settings, machine=machine, ended=told.append)
    assert [texts[0] for texts in found.texts] == translate(policy, sources, settings, machine)
    assert sum(told) == 4 * len(sources) and found.finished.any() and not found.finished.all()
    assert {mu for of_source in found.behaviour_log_probs for mu in of_source} == {None}
    for i, (source, hypotheses) in enumerate(zip(sources, found.tokens, strict=True)):
        assert len({tuple(y) for y in hypotheses}) == 4
        sums = [values.sum() for values in found.log_probs[i]]
        ends = int(found.finished[i].sum())
        assert found.finished[i].tolist() == [True] * ends + [False] * (4 - ends)
        assert sums[:ends] == sorted(sums[:ends], reverse=True) and sums[ends:] == sorted(sums[ends:], reverse=True)
        for tokens, values, ended in zip(hypotheses, found.log_probs[i], found.finished[i], strict=True):
            assert (tokens[-1] == policy.tokenizer.eos_id) == ended and len(tokens) <= 8
            assert ended or len(tokens) == 8
            forced = log_probs(teacher_forced(policy, source, tokens.tolist()))[np.arange(len(tokens)), tokens]
            np.testing.assert_allclose(values, forced, atol=1e-4)


def test_the_n_best_do_not_depend_on_batches_order_or_device(many_words, sources):
    policy, _ = many_words
    together = n_best(policy, sources, settings_of(4), machine=MachineSettings(beam_rows=40))
    (place,) = places()
    apart = n_best(policy, sources[::-1], settings_of(4), machine=MachineSettings(beam_rows=8), place=place)
    assert apart.texts == together.texts[::-1]
    for ours, theirs in zip(together.log_probs, apart.log_probs[::-1], strict=True):
        np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), atol=1e-4)


def test_the_length_penalty_changes_which_hypothesis_wins(exhaustive):
    """Else the test above would say nothing of the formula."""
    short, long = winners(exhaustive, 0.0), winners(exhaustive, 1.5)
    assert sum(map(len, short)) < sum(map(len, long))


def test_batches_and_order_change_no_output(many_words, sources):
    policy, _ = many_words
    together = found(policy, sources, 4)
    assert len(set(together)) >= 5
    assert found(policy, sources[::-1], 4) == together[::-1]
    # pairs of sources, some padded less wide
    assert translate(policy, sources, settings_of(4), MachineSettings(beam_rows=8)) == together


def test_more_beams_find_hypotheses_that_are_likelier(many_words, sources, teacher_forced):
    policy, ids = many_words
    scores = {}
    for beams in (1, 4):
        texts = found(policy, sources, beams)
        tokens = [tokens_of(policy, ids, text, 8) for text in texts]
        pairs = zip(sources, tokens, strict=True)
        scores[beams] = np.asarray([log_prob(teacher_forced, policy, x, y) for x, y in pairs])
    assert (scores[4] >= scores[1] - 1e-4).all()
    assert scores[4].sum() > scores[1].sum()


def test_what_never_ends_is_cut_at_the_longest_length(many_words, sources):
    policy, _ = many_words
    bias = policy.network.parameters["output_bias"].copy()
    bias[policy.tokenizer.eos_id] = BLOCKED
    talker = biased(policy, bias)
    for beams in (1, 4):
        texts = found(talker, sources, beams)
        assert [len(text.split()) for text in texts] == [8] * len(sources)


def test_what_needs_more_room_than_its_source_suggests_is_searched_again(many_words, sources):
    policy, _ = many_words
    bias = policy.network.parameters["output_bias"].copy()
    bias[policy.tokenizer.eos_id] = BLOCKED
    short = [source for source in sources if len(policy.encode_sources([source])[0]) <= 16]
    for beams in (1, 2):
        talks, ends = (
            n_best(each, short, BeamSettings(beams, max_target_tokens=40), machine=MachineSettings(beam_rows=8))
            for each in (biased(policy, bias), policy)
        )
        assert {len(ids) for of_source in talks.tokens for ids in of_source} == {40} and not talks.finished.any()
        assert ends.finished.any()


def by_hand(teacher_forced, policy, source: str, settings: BeamSettings) -> list[int]:
    """The best hypothesis, by a search that is written out."""
    going, ended, eos = [(0.0, [])], [], policy.tokenizer.eos_id
    for length in range(1, settings.max_target_tokens + 1):
        found = []
        for score, tokens in going:
            of_next = log_probs(teacher_forced(policy, source, [*tokens, 0])[-1])
            found += [(score + of_next[i], [*tokens, int(i)]) for i in np.argsort(-of_next)[: 2 * settings.beams]]
        found = sorted(found, key=lambda each: -each[0])[: 2 * settings.beams]
        for score, tokens in found[: settings.beams]:
            if tokens[-1] == eos:
                ended.append((score / length**settings.length_penalty, tokens))
        ended = sorted(ended, key=lambda each: -each[0])[: settings.beams]
        going = [each for each in found if each[1][-1] != eos][: settings.beams]
        furthest = settings.max_target_tokens if settings.exhaustive else length
        if len(ended) == settings.beams and going[0][0] / furthest**settings.length_penalty <= ended[-1][0]:
            break
    return ended[0][1] if ended else going[0][1]


@pytest.mark.parametrize("exhaustive_search", [False, True])
def test_a_search_ends_where_one_that_is_written_out_does(many_words, sources, teacher_forced, exhaustive_search):
    policy, _ = many_words
    settings = BeamSettings(2, 1.5, max_target_tokens=20, exhaustive=exhaustive_search)
    best = n_best(policy, sources[:5], settings, machine=MachineSettings(beam_rows=6)).tokens
    wanted = [by_hand(teacher_forced, policy, source, settings) for source in sources[:5]]
    assert [of_source[0].tolist() for of_source in best] == wanted
    lengths = {len(tokens) for tokens in wanted}
    assert max(lengths) > 8 if exhaustive_search else min(lengths) < 8  # which stops earlier


def test_outputs_may_be_as_long_as_samples_where_nothing_is_said():
    assert longest(BeamSettings()) == SamplingSettings().max_target_tokens == 64
    assert longest(BeamSettings(max_target_tokens=8)) == 8


def test_no_sources_give_no_translations(policy):
    assert translate(policy, [], BeamSettings()) == []
