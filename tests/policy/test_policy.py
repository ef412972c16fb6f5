"""A policy on disk and in batches: the same identity, the same probabilities."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from rest.data.batches import Batch, Examples
from rest.data.tokenizer import SentencePieceSettings
from rest.errors import UserError
from rest.learning.learner import STATIC, updated
from rest.learning.lora import Trainable
from rest.learning.losses import NLL
from rest.learning.optimizers import Adam
from rest.model.layers import TransformerSettings
from rest.model.network import Network
from rest.model.transformer import Transformer
from rest.policy.policy import Policy, PolicyObjective, last_policy, sequence_log_probs


def test_a_saved_policy_keeps_its_identity_and_its_logits(lively, tmp_path, corpus, teacher_forced):
    lively.save(tmp_path / "a" / "policy")
    loaded = Policy.load(tmp_path / "a" / "policy")
    assert loaded.identity == lively.identity
    assert loaded.settings == lively.settings
    source, tokens = corpus.dev.sources[0], np.arange(3, 20)
    np.testing.assert_array_equal(teacher_forced(loaded, source, tokens), teacher_forced(lively, source, tokens))


def test_saving_again_replaces_what_was_there(policy, lively, tmp_path):
    policy.save(tmp_path)
    lively.save(tmp_path)
    assert Policy.load(tmp_path).identity == lively.identity


def test_a_folder_without_a_policy_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no policy there"):
        Policy.load(tmp_path / "nowhere")


def test_equal_seeds_give_equal_policies_and_others_do_not(policy):
    assert Policy.new(policy.settings, policy.tokenizer, seed=1).identity == policy.identity
    assert Policy.new(policy.settings, policy.tokenizer, seed=2).identity != policy.identity


def test_identity_changes_with_one_number_the_tokenizer_and_the_settings(policy, corpus):
    network = policy.network
    bias = np.array(network.parameters["output_bias"])
    bias[-1] = np.nextafter(bias[-1], np.float32(1))
    nudged = policy.with_network(network.with_parameters({**network.parameters, "output_bias": bias}))
    other_pieces = SentencePieceSettings(128).train([corpus.train.sources], 0)
    others = [
        nudged,
        replace(policy, tokenizer=other_pieces),
        # the same arrays, read in another way
        policy.with_network(replace(network, settings=replace(policy.settings, heads=1))),
    ]
    identities = {policy.identity, *(other.identity for other in others)}
    assert len(identities) == 4


def test_ids_of_sources_and_references_end_in_eos_once(policy, corpus):
    for ids in [*policy.encode_sources(corpus.dev.sources), *policy.encode_references(["", "a b"])]:
        assert ids[-1] == policy.tokenizer.eos_id
        assert policy.tokenizer.eos_id not in ids[:-1]


def test_packed_pairs_score_as_they_do_one_by_one(lively, corpus, batch, teacher_forced):
    sources, references = corpus.dev.sources[:12], corpus.dev.references[:12]
    targets = list(lively.encode_references(references))
    targets[5] = targets[5][:-1]  # a truncated one is scored without EOS
    examples = Examples(lively.encode_sources(sources), targets)
    wanted = []
    for source, tokens in zip(sources, targets, strict=True):
        logits = teacher_forced(lively, source, tokens)
        total = np.log(np.exp(logits - logits.max()).sum(1)) + logits.max()
        wanted.append((logits[np.arange(len(tokens)), tokens] - total).sum())
    found = sequence_log_probs(lively, examples, batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    # packed otherwise: other rows, other neighbours
    backwards = Examples(examples.sources[::-1], examples.targets[::-1])
    other = sequence_log_probs(lively, backwards, replace(batch, source_tokens=96, target_tokens=96))
    np.testing.assert_allclose(other[::-1], wanted, rtol=1e-5, atol=1e-4)


def test_an_update_never_holds_the_logits_of_a_whole_batch():
    rows, tokens, vocabulary = 128, 64, 8192
    settings = TransformerSettings(width=32, heads=2, feed_forward=64, encoder_layers=1, decoder_layers=1)
    network = Network.shaped(settings, lambda rngs: Transformer(settings, vocabulary, pad_id=1, rngs=rngs))
    parameters, empty = network.parameters, network.with_parameters(None)
    ids = jax.ShapeDtypeStruct((1, rows, tokens), np.int32)
    names = ("source", "source_segments", "source_positions", "target_input", "target", "target_segments")
    batch = Batch(
        **dict.fromkeys((*names, "target_positions", "target_sources"), ids),
        sequence_ids=jax.ShapeDtypeStruct((1, rows, 4), np.int32),
        columns={},
    )
    state = jax.eval_shape(Adam()().init, parameters)
    rate, key = jax.ShapeDtypeStruct((), np.float32), jax.eval_shape(lambda: jax.random.key(0))
    objective = PolicyObjective(NLL(), 0.1)
    given = objective, Adam(), Trainable(), empty, parameters, {}, state, batch, rate, key
    lowered = jax.jit(updated, static_argnames=STATIC).lower(*given)
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < rows * tokens * vocabulary * 4


# The policy that a folder stands for: a stage's, or the last of a run


@pytest.fixture
def found(tmp_path, policy, monkeypatch):
    """A function from the stages of a run, and a stage to ask for, to the one whose policy is loaded."""
    loaded = []
    monkeypatch.setattr("rest.policy.policy.Policy.load", lambda folder: loaded.append(folder) or policy)

    def last(*stages, ask=""):
        for stage in stages:
            (tmp_path / stage / "policy").mkdir(parents=True)
        last_policy(str(tmp_path / ask))  # a path, or the text of one
        return str(loaded[-1].relative_to(tmp_path))

    return last


def test_the_last_improve_step_of_the_last_grow_step(found):
    assert found("bc", "improve-2-1", "improve-10-1", "improve-9-3") == "improve-10-1/policy"


def test_steps_that_the_run_asks_for_no_more_do_not_count(found, tmp_path):
    rule = {"rule": {"thresholds": [0.7]}, "cap": 10}
    (tmp_path / "experiment.json").write_text(json.dumps({"grow_steps": 1, "improve": {"rule": rule}}))
    assert found("bc", "improve-1-1", "improve-1-2", "improve-2-1") == "improve-1-1/policy"


def test_side_branches_and_folders_that_are_no_stage_do_not_count(found):
    assert found("bc", "improve-1-1", "improve-2-0", "improve-2-1-old", "ppo") == "improve-1-1/policy"


def test_behavioural_cloning_where_nothing_was_improved(found):
    assert found("bc", "ppo") == "bc/policy"


def test_the_stage_that_is_named(found):
    assert found("bc", "improve-1-1", ask="bc") == "bc/policy"


def test_a_folder_without_a_policy(tmp_path):
    with pytest.raises(UserError, match="no policy there, neither a stage's nor a run's"):
        last_policy(tmp_path)


def test_changed_weights_are_refused_and_named(policy, tmp_path):
    policy.save(tmp_path / "policy")
    assert Policy.load(tmp_path / "policy").identity == policy.identity
    weights = max(
        (p for p in (tmp_path / "policy" / "parameters").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), bytes(content[: len(content) // 2])):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{weights.name} is damaged"):
            Policy.load(tmp_path / "policy")


def test_a_source_beyond_the_learned_positions_is_refused(corpus, policy):
    settings = TransformerSettings(
        width=8, heads=2, feed_forward=8, encoder_layers=1, decoder_layers=1, positions="learned", max_positions=4
    )
    short = Policy.new(settings, policy.tokenizer, 0)
    with pytest.raises(UserError, match=r"a source has \d+ tokens, the network learned 4 positions: "):
        short.encode_sources([" ".join(corpus.dev.sources[:3])])
