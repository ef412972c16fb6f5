"""Settings of every test, made through the environment so that processes started by a test have them too.

This file is read before JAX is imported. `pyproject.toml` adds to it: warnings are errors, and the shapes and
types in the signatures of `rest` are checked at every call (jaxtyping and beartype).
"""

import importlib.metadata
import json
import os
import pathlib
import shutil
from collections import Counter

import hypothesis
import pytest

CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Compiling takes most of the suite's time: programs are compiled in a hurry, and kept for other tests and runs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones lack these emitters, which take half the time
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(CACHE / "hypothesis"))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

# No verdict depends on the machine's load or on chance: no deadlines, the same examples every time.
hypothesis.settings.register_profile(
    "rest",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("rest")


# The longest files, which begin first, so that no core is idle at the end. The first makes `finished`.
LONGEST = [
    *("test_end_to_end.py", "test_improve.py", "test_study.py", "policy/test_sampler.py", "test_docs.py"),
    *("test_algorithm.py", "model/families/test_families.py", "test_grow.py", "test_processes.py"),
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Puts the longest files first, and marks as slow what trains a policy, draws from it or asks it something."""
    tests = pathlib.Path(__file__).parent
    place = {tests / name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))
    for item in items:
        if not {"policy", "finished"}.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Programs are let go before they fill the memory maps that Linux lets a process have: then compiling crashes."""
    yield
    maps, most = pathlib.Path("/proc/self/maps"), pathlib.Path("/proc/sys/vm/max_map_count")
    if most.exists() and len(maps.read_bytes().splitlines()) > int(most.read_text()) // 2:
        import jax

        jax.clear_caches()


# Small real parts that many tests share.


@pytest.fixture(scope="session")
def corpus():
    """A made-up language pair: 300 training, 24 dev and 24 test sentences."""
    from rest.data.corpus import Cleaning, SyntheticCorpus
    from rest.data.synthetic import SyntheticLanguage

    return SyntheticCorpus(SyntheticLanguage(train=300, dev=24, test=24)).load(Cleaning())


@pytest.fixture(scope="session")
def tokenizer(corpus):
    """SentencePiece with 256 pieces."""
    from rest.data.tokenizer import SentencePieceSettings

    return SentencePieceSettings(256).train([corpus.train.sources, corpus.train.references], 0)


@pytest.fixture(scope="session")
def policy(tokenizer):
    """An untrained policy: one layer on each side, 32 wide."""
    from rest.model.layers import TransformerSettings
    from rest.policy.policy import Policy

    settings = TransformerSettings(width=32, heads=2, feed_forward=64, encoder_layers=1, decoder_layers=1, dropout=0.1)
    return Policy.new(settings, tokenizer, seed=1)


@pytest.fixture(scope="session")
def batch():
    """Batches of eight rows of 64 positions."""
    from rest.data.batches import BatchSettings

    return BatchSettings(batch_tokens=512, source_tokens=64, target_tokens=64)


@pytest.fixture(scope="session")
def lively(policy):
    """The untrained policy, made to listen to what came before, and to end some hypotheses early."""
    import jax

    parameters = jax.tree.map(lambda leaf: leaf, policy.network.parameters)  # new dicts around the same arrays
    for layer, output in (("attention", "output"), ("cross", "output"), ("feed_forward", "outer")):
        parameters["decoder"][0][layer][output]["kernel"] *= 6
    bias = parameters["output_bias"].at[policy.tokenizer.eos_id].set(3.0)
    return policy.with_network(policy.network.with_parameters({**parameters, "output_bias": bias}))


@pytest.fixture(scope="session")
def scored(lively, corpus, tmp_path_factory):
    """A scored dataset of 30 rows: 10 sources with a human pair and two samples each; the reward counts words."""
    from rest.folder import open_stage
    from rest.grow import GrowSettings, grow, open_dataset
    from rest.learning.mesh import MachineSettings
    from rest.policy.sampler import SamplingSettings
    from rest.reward.reward import Reward

    def words(sources, hypotheses, references):
        import numpy as np

        return np.array([min(12, len(y.split())) for y in hypotheses], np.float32)

    short = [row for row, ids in enumerate(lively.encode_sources(corpus.train.sources)) if len(ids) <= 16]
    folder = tmp_path_factory.mktemp("scored") / "grow-1"
    sampling = SamplingSettings(temperature=0.8, max_target_tokens=12)
    settings, machine = GrowSettings(samples_per_source=2), MachineSettings(rows=24)
    with open_stage(folder, {"grow": settings}) as stage:
        text, reward = [corpus.train.take(short[:10])], Reward(words, (0.0, 12.0))
        grow(stage, lively, text, reward, settings, sampling, g=1, seed=0, machine=machine)
    return open_dataset(folder)


@pytest.fixture(scope="session")
def teacher_forced():
    """A function (policy, source, tokens) -> logits float64 [tokens, V] at temperature 1, of the plain network.

    One pair, not packed, without any cache: what every faster way to the same numbers is held to.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    @jax.jit
    def logits(network, source, length, target_input):
        network = network.module
        here = jnp.arange(source.shape[1])[None]
        there = jnp.arange(target_input.shape[1])[None]
        mask = (here < length)[:, None]
        causal = jnp.tril(jnp.ones((target_input.shape[1],) * 2, bool))[None]
        encoded = network.encode(source, here, mask)
        states = network.decode(target_input, there, causal, encoded, mask)
        return network.logits(states[0])

    def compute(policy, source, tokens):
        ids = policy.encode_sources([source])[0]
        padded = np.full((2, 64), policy.tokenizer.pad_id, np.int32)
        padded[0, : len(ids)] = ids
        padded[1, 0] = policy.tokenizer.prompt.start
        padded[1, 1 : len(tokens)] = tokens[:-1]
        out = logits(policy.network, padded[:1], len(ids), padded[1:])
        return np.asarray(out, np.float64)[: len(tokens)]

    return compute


@pytest.fixture(scope="session")
def together(tmp_path_factory):
    """A folder that all processes of the tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tokenised(finished, together):
    """How often each text was tokenised in the run of `finished`, as a source and as a target."""
    return json.loads((together / "finished.complete").read_text())


@pytest.fixture(scope="session")
def finished(tmp_path_factory, together):
    """The folder of the tiny experiment, run through by one process for all. Not to be written to."""
    import filelock

    from rest.__main__ import main
    from rest.data.tokenizer import SentencePieceTokenizer

    counts, encode = {"encode": Counter(), "encode_targets": Counter()}, SentencePieceTokenizer.encode

    def counted(side):
        def counting(self, texts):
            counts[side].update(texts)
            return encode(self, texts)

        return counting

    made, complete = together / "finished" / "tiny", together / "finished.complete"
    with filelock.FileLock(together / "finished.lock"):
        if not complete.exists():
            with pytest.MonkeyPatch.context() as patch:
                for side in counts:
                    patch.setattr(SentencePieceTokenizer, side, counted(side))
                main(["run", str(pathlib.Path(__file__).parent / "tiny.py"), "--out", str(made)])
            complete.write_text(json.dumps(counts))
    return pathlib.Path(shutil.copytree(made, tmp_path_factory.mktemp("runs") / "tiny"))
