"""The handle of a network: written and read bit for bit, built from shapes alone, shared and never copied."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rest.data.batches import BatchSettings, Examples, evaluation_batches
from rest.errors import UserError
from rest.learning.losses import NLL
from rest.model.families.xlmr import XLMR, XLMRSettings
from rest.model.network import Build, Network
from rest.model.transformer import Transformer, TransformerSettings
from rest.policy.policy import PolicyObjective
from rest.policy.value import ValueNetwork
from rest.reward.learned.network import RewardNetwork, RewardShape

VOCABULARY, PAD = 70, 0
SMALL = TransformerSettings(width=16, heads=2, feed_forward=24, encoder_layers=1, decoder_layers=1)
T5 = dataclasses.replace(
    SMALL, norm_first=True, norm="rms", gated=True, biases=False, positions="relative", tied_output=False
)
ENCODER = XLMRSettings(VOCABULARY, PAD, 1, width=16, heads=2, feed_forward=24, layers=1, max_positions=20)
BESIDE, JOINTLY = RewardShape(SMALL, heads=3), RewardShape(ENCODER, given=2)


def transformer(rngs: nnx.Rngs, settings: TransformerSettings = SMALL) -> Transformer:
    return Transformer(settings, VOCABULARY, pad_id=PAD, rngs=rngs)


@dataclass(frozen=True)
class Kind:
    """A network of the system: settings, and what builds it."""

    settings: Any
    build: Build


KINDS = {
    "transformer": Kind(SMALL, transformer),
    "T5": Kind(T5, lambda rngs: transformer(rngs, T5)),
    "encoder": Kind(ENCODER, lambda rngs: XLMR(ENCODER, rngs=rngs)),
    "value": Kind(SMALL, lambda rngs: ValueNetwork(transformer(rngs), rngs=rngs)),
    "reward": Kind(BESIDE, lambda rngs: RewardNetwork(BESIDE, transformer(rngs), rngs=rngs)),
    "joint reward": Kind(JOINTLY, lambda rngs: RewardNetwork(JOINTLY, XLMR(ENCODER, rngs=rngs), rngs=rngs)),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.new(SMALL, transformer, 0)


@pytest.fixture(scope="module")
def other() -> Network:
    return Network.new(SMALL, transformer, 1)


def equal(one: Any, other: Any) -> bool:
    """The same tree, to the last bit."""

    def same(a: jax.Array, b: jax.Array) -> bool:
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(jax.tree.map(same, one, other))


def together(one: Any, other: Any) -> bool:
    """The same arrays in the same memory."""
    return jax.tree.all(jax.tree.map(lambda a, b: a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer(), one, other))


@kinds
def test_a_network_is_read_as_it_was_written_and_shares_its_programs(kind, tmp_path, monkeypatch):
    network = Network.new(kind.settings, kind.build, 3)
    network.save(tmp_path / "a" / "network")

    drawn = []  # whether there were numbers in each array that was drawn

    def watched(draw):
        def watching(*given, **named):
            array = draw(*given, **named)
            drawn.append(not isinstance(array, jax.core.Tracer))
            return array

        return watching

    for name in ("bits", "normal", "truncated_normal", "uniform"):
        monkeypatch.setattr(jax.random, name, watched(getattr(jax.random, name)))
    loaded = Network.load(tmp_path / "a" / "network", kind.settings, kind.build)
    assert drawn and not any(drawn)  # built for its shapes, which nothing is drawn for
    kind.build(nnx.Rngs(0))
    assert any(drawn)  # else this would not have seen it

    assert equal(loaded.parameters, network.parameters)
    assert loaded.settings == network.settings
    # with equal graphs they are the same to a compiled function
    assert loaded.graph == network.graph and hash(loaded.graph) == hash(network.graph)
    assert jax.tree.structure(loaded) == jax.tree.structure(network)
    shaped = Network.shaped(kind.settings, kind.build)
    assert shaped.graph == network.graph and jax.tree.structure(shaped) == jax.tree.structure(network)
    for shape, leaf in zip(jax.tree.leaves(shaped), jax.tree.leaves(network), strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct) and (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)


def test_a_folder_without_parameters_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere/parameters: no parameters there"):
        Network.load(tmp_path / "nowhere", SMALL, transformer)


def test_equal_seeds_give_equal_networks_and_others_do_not(network, other):
    assert equal(Network.new(SMALL, transformer, 0).parameters, network.parameters)
    assert not equal(other.parameters, network.parameters)
    assert other.graph == network.graph


def test_a_function_is_compiled_once_for_all_parameters_and_again_for_another_graph(network, other):
    traced = []

    @jax.jit
    def embedded(network: Network) -> jax.Array:
        traced.append(network.settings)
        return network.module.embedding[...][3]

    for given in (network, other, Network.of(SMALL, network.module)):
        np.testing.assert_array_equal(embedded(given), given.parameters["embedding"][3])
    assert traced == [SMALL]
    wide = dataclasses.replace(SMALL, feed_forward=32)
    embedded(Network.new(wide, lambda rngs: transformer(rngs, wide), 0))
    assert traced == [SMALL, wide]


def test_a_module_and_its_network_share_their_arrays(network):
    module = network.module
    assert together(nnx.to_pure_dict(nnx.state(module)), network.parameters)
    assert together(Network.of(SMALL, module).parameters, network.parameters)


@pytest.mark.parametrize(
    ("name", "settings", "around"),
    [
        ("value", SMALL, lambda body: ValueNetwork(body, rngs=nnx.Rngs(0))),
        ("reward", BESIDE, lambda body: RewardNetwork(BESIDE, body, rngs=nnx.Rngs(0))),
    ],
)
def test_a_network_inside_another_shares_its_arrays_with_it(network, name, settings, around):
    outer = network.inside(settings, around)
    assert together(outer.parameters["body"], network.parameters)
    assert outer.parameters.keys() == {"body", "head"}
    assert outer.settings == settings
    assert outer.graph == Network.shaped(settings, KINDS[name].build).graph  # what is read back shares its programs


def test_one_part_is_replaced_and_the_others_are_shared(network):
    value = network.inside(SMALL, lambda body: ValueNetwork(body, rngs=nnx.Rngs(0)))
    changed = value.with_part("head", {"kernel": np.full((16, 1), 0.5), "bias": [2.0]})
    assert together(changed.parameters["body"], network.parameters)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(changed.parameters["head"])} == {"float32"}
    head = changed.module.head
    assert head.kernel[...].tolist() == [[0.5]] * 16 and head.bias[...].tolist() == [2.0]
    assert not np.asarray(value.parameters["head"]["kernel"]).any()  # the one before is as it was


def test_what_lies_between_two_networks(network, other):
    assert equal(network.towards(other, 0.0).parameters, network.parameters)
    assert equal(network.towards(other, 1.0).parameters, other.parameters)
    quarter = network.towards(other, 0.25)
    assert quarter.graph == network.graph
    for found, a, b in zip(*(jax.tree.leaves(n.parameters) for n in (quarter, network, other)), strict=True):
        np.testing.assert_allclose(found, 0.75 * a + 0.25 * b, atol=1e-6)


def test_the_identity_is_of_every_parameter_its_name_and_what_is_known(network, other):
    parameters = network.parameters
    bias = np.array(parameters["output_bias"])
    bias[-1] = np.nextafter(bias[-1], np.float32(1))
    nudged = network.with_parameters({**parameters, "output_bias": bias})
    renamed = {name: leaf for name, leaf in parameters.items() if name != "output_bias"}
    renamed = network.with_parameters({**renamed, "output_bios": parameters["output_bias"]})
    same = network.with_parameters(jax.tree.map(np.array, parameters))
    assert same.identity("a") == network.identity("a")
    identities = [network.identity("a"), network.identity("b")]
    identities += [changed.identity("a") for changed in (nudged, renamed, other)]
    assert len(set(identities)) == 5


def test_computing_activations_again_gives_the_same_loss_and_gradient():
    assert SMALL.dropout == 0.1  # the same numbers are dropped again
    network = Network.new(SMALL, transformer, 0)
    random = np.random.default_rng(0)
    moved = [leaf + 0.2 * random.standard_normal(leaf.shape, np.float32) for leaf in jax.tree.leaves(network)]
    network = jax.tree.unflatten(jax.tree.structure(network), moved)
    examples = Examples(*([random.integers(1, VOCABULARY, n) for n in lengths] for lengths in ((5, 3), (4, 6))))
    (batch,) = evaluation_batches(examples, BatchSettings(16, 16, 16), pad_id=PAD)
    batch = jax.tree.map(jnp.asarray, batch)
    objective, again = PolicyObjective(NLL()), network.on_devices(remat=True, row_groups=1)
    assert together(again.parameters, network.parameters) and again.settings == network.settings
    assert again.graph != network.graph and not network.module.remat

    def lowered(network: Network) -> jax.stages.Traced:
        def loss(parameters):
            return objective(network.with_parameters(parameters).module, batch, jax.random.key(0), {}).sum

        return jax.jit(jax.value_and_grad(loss)).trace(network.parameters)

    plain, second = lowered(network), lowered(again)
    assert [str(traced.jaxpr).count("remat2[") for traced in (plain, second)] == [0, 2]  # a layer each
    (loss, gradient), (wanted, expected) = (traced.lower().compile()(network.parameters) for traced in (second, plain))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient, expected)


def test_an_encoder_is_rematerialised_wherever_it_stands():
    kind = KINDS["joint reward"]
    network = Network.new(kind.settings, kind.build, 0)
    assert network.on_devices(remat=True, row_groups=1).module.body.remat and not network.module.body.remat
    assert jnp.all(
        network.on_devices(remat=True, row_groups=1).parameters["head"]["kernel"]
        == network.parameters["head"]["kernel"]
    )
