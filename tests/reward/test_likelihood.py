"""Likelihoods of texts: against the policy's own log-probability, in either direction."""

import numpy as np
import pytest

from rest.data.batches import BatchSettings, Examples
from rest.errors import UserError
from rest.policy.policy import sequence_log_probs
from rest.reward.likelihood import Likelihood, PolicyLogProb, Reconstruction


def a_token(policy, sources, targets, batch):
    written = policy.encode_references(targets)
    total = sequence_log_probs(policy, Examples(policy.encode_sources(sources), written), batch)
    return total / [len(ids) for ids in written]


def test_log_probability_is_the_policys_a_token(policy, corpus, batch):
    sources, texts = corpus.dev.sources[:3], corpus.dev.references[:3]
    expected = a_token(policy, sources, texts, batch)
    np.testing.assert_allclose(PolicyLogProb(policy, batch)(sources, texts, None), expected, rtol=1e-6)
    cut = PolicyLogProb(policy, BatchSettings(64, 8, 8))(sources, texts, None)  # long texts are no error
    assert np.isfinite(cut).all()


def test_reconstruction_is_the_likelihood_of_the_source_given_the_hypothesis(policy, corpus, batch, tmp_path):
    policy.save(tmp_path / "bc" / "policy")
    sources, texts = corpus.dev.sources[:3], corpus.dev.references[:3]
    given = Reconstruction(tmp_path, batch)
    sources, texts = [*sources, sources[0], sources[1]], [*texts, texts[0], texts[2]]  # one twice, one for another
    found = given(sources, texts)
    np.testing.assert_allclose(found, a_token(policy, texts, sources, batch), rtol=1e-5)
    assert found.dtype == np.float32
    assert found[3] == found[0]
    other = Likelihood(tmp_path, batch)(sources, texts)
    np.testing.assert_allclose(other, a_token(policy, sources, texts, batch), rtol=1e-5)
    scored = given.reward(sources, texts, None)
    np.testing.assert_allclose(scored.reward, np.clip(1 + found / 5, 0, 1), rtol=1e-5)


def test_an_empty_hypothesis_says_nothing_of_its_source_and_is_no_error(policy, corpus, batch, tmp_path):
    policy.save(tmp_path / "policy")
    assert np.isfinite(Reconstruction(tmp_path, batch)([corpus.dev.sources[0]], [""])).all()


def test_identity_is_of_what_is_read_not_of_where_it_lies(policy, lively, batch, tmp_path):
    for name, one in (("a", policy), ("b", policy), ("c", lively)):
        one.save(tmp_path / name / "policy")
    a, b, c = (Reconstruction(tmp_path / name, batch).reward.identity for name in "abc")
    assert a == b != c
    assert a != Reconstruction(tmp_path / "a", BatchSettings(64, 8, 8)).reward.identity
    assert a != Likelihood(tmp_path / "a", batch).reward.identity


def test_a_folder_without_a_policy_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no policy there"):
        Reconstruction(tmp_path / "none")(["a"], ["b"])
