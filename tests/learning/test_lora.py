"""What trains and what stays: parts are frozen to the last bit, and additions start at nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.data.batches import Examples, training_batches
from rest.errors import UserError
from rest.learning.checkpoint import Checkpoints
from rest.learning.lora import LoRA, Trainable
from rest.learning.losses import NLL
from rest.learning.optimizers import Adam, Schedule
from rest.learning.train import TrainSettings, train
from rest.model.network import Network
from rest.policy.policy import Policy, PolicyObjective, transformer

SETTINGS = TrainSettings(
    max_steps=2, evaluate_every=1, average=2, schedule=Schedule(1e-2), optimizer=Adam(weight_decay=0.1)
)


def leaves(parameters):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(parameters)}


def learn(policy, corpus, batch, folder, trainable):
    """Two updates, with weight decay and an average of both at the end: every way for a parameter to move."""
    examples = Examples(
        policy.encode_sources(corpus.dev.sources[:12]), policy.encode_references(corpus.dev.references[:12])
    )
    scores = iter([0.0, 1.0, 2.0, 3.0])  # the average of steps 1 and 2 is kept
    batches, _ = training_batches(examples, batch, pad_id=policy.tokenizer.pad_id, seed=0)
    return train(
        policy,
        PolicyObjective(NLL()),
        batches,
        replace(SETTINGS, trainable=trainable),
        evaluate=lambda now: {"score": next(scores)},
        folder=folder,
        seed=0,
        description="learn",
    )


@pytest.fixture(scope="module")
def certain(lively):
    """The lively policy without dropout, which is quicker to compile."""
    settings = replace(lively.settings, dropout=0.0)
    shapes = Network.shaped(settings, lambda rngs: transformer(settings, lively.tokenizer, rngs))
    return lively.with_network(shapes.with_parameters(lively.network.parameters))


@pytest.mark.parametrize(
    ("trainable", "frozen"),
    [
        (Trainable(freeze_embeddings=True), ["['embedding']"]),
        (Trainable(freeze_encoder=True), ["['encoder']"]),
        (Trainable(freeze_layers=1), ["['encoder']", "['decoder']"]),
        (Trainable(lora=LoRA(2)), ["embedding", "bias", "norm", "feed_forward", "['output']", "['key']"]),
    ],
    ids=["embeddings", "encoder", "layers", "lora"],
)
def test_frozen_parts_do_not_move_by_one_bit_and_all_others_do(certain, corpus, batch, tmp_path, trainable, frozen):
    trained = learn(certain, corpus, batch, tmp_path, trainable)
    assert trained.score == 3.0  # the average
    before, after = leaves(certain.network.parameters), leaves(trained.best.network.parameters)
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        kept = any(part in name for part in frozen)
        assert (leaf.tobytes() == after[name].tobytes()) == kept, name
    if trainable.lora.rank:  # checkpoints hold the additions alone; what is saved in the end is a plain policy
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        additions, _ = trainable.split(certain.network.parameters, seed=0)
        assert leaves(checkpoints.parameters(2, additions)).keys() == leaves(additions).keys()
        checkpoints.close()
        trained.best.save(tmp_path / "policy")
        assert Policy.load(tmp_path / "policy").identity == trained.best.identity != certain.identity


@pytest.mark.parametrize(
    "trainable", [Trainable(), Trainable(freeze_encoder=True, freeze_embeddings=True), Trainable(lora=LoRA(3))]
)
def test_split_and_joined_again_is_the_policy_it_was(lively, trainable):
    trained, frozen = trainable.split(
        {**lively.network.parameters, "dual_variables": {"eta": jnp.float32(1.0)}}, seed=0
    )
    assert trained["dual_variables"] == {"eta": 1.0}
    joined = trainable.join(trained, frozen)
    assert joined.pop("dual_variables") == {"eta": 1.0}
    again = lively.with_network(lively.network.with_parameters(joined))
    assert again.identity == lively.identity  # zero additions change no bit


def test_everything_trained_is_the_same_tree_and_nothing_is_frozen(lively):
    trained, frozen = Trainable().split(lively.network.parameters, seed=0)
    assert frozen == {}
    assert jax.tree.structure(trained) == jax.tree.structure(lively.network.parameters)
    assert Trainable().join(trained, frozen) is trained


def test_what_is_frozen_is_shared_and_not_copied(lively):
    _, frozen = Trainable(lora=LoRA(2)).split(lively.network.parameters, seed=0)
    assert frozen["embedding"] is lively.network.parameters["embedding"]
    assert (
        frozen["decoder"][0]["cross"]["query"]["kernel"]
        is lively.network.parameters["decoder"][0]["cross"]["query"]["kernel"]
    )


def test_an_addition_by_hand():
    kernel = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    added = {"lora_a": jnp.asarray([[1.0], [2.0]]), "lora_b": jnp.asarray([[0.5, -1.0]])}
    # 4/1 (1, 2) x (0.5, -1) = ((2, -4), (4, -8))
    np.testing.assert_array_equal(LoRA(1, alpha=4.0).merged(kernel, added), [[3.0, -2.0], [7.0, -4.0]])


def test_only_the_layers_below_are_frozen():
    layer = {"query": {"kernel": jnp.ones((2, 2))}}
    parameters = {"encoder": dict.fromkeys(range(3), layer), "decoder": dict.fromkeys(range(11), layer)}
    trained, frozen = Trainable(freeze_layers=2).split(parameters, seed=0)
    assert (list(frozen["encoder"]), list(trained["encoder"])) == ([0, 1], [2])
    assert (list(frozen["decoder"]), len(trained["decoder"])) == ([0, 1], 9)


@pytest.mark.parametrize(
    ("trainable", "wrong"),
    [
        (Trainable(lora=LoRA(2, targets=())), r"nothing is left to train with .*targets=\(\)"),
        (Trainable(freeze_embeddings=True, freeze_layers=9, lora=LoRA(1)), "nothing is left to train"),
    ],
)
def test_nothing_to_train_is_refused(lively, trainable, wrong):
    with pytest.raises(UserError, match=wrong):
        trainable.split(lively.network.parameters, seed=0)
    with pytest.raises(UserError, match=r"lora.rank must be at least 0, not -1"):
        LoRA(-1)


def test_a_layer_that_there_is_not_is_refused():
    with pytest.raises(UserError, match=r"lora.targets: 'v_proj' is none of query, key, value"):
        LoRA(8, targets=("query", "v_proj"))
