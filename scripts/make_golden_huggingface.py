"""Makes tests/golden/huggingface: tiny random checkpoints, as `transformers` saves them, and PyTorch's logits.

    bash scripts/benchmarks/setup_environment.sh
    .venv-benchmark/bin/python scripts/make_golden_huggingface.py

Every parameter is random, also biases and the scales of norms, so that each of them matters to the logits.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    MarianConfig,
    MarianMTModel,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.t5.modeling_t5 import T5Attention

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "huggingface"
VOCABULARY = 70
MARIAN = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "activation_function": "swish",
    "scale_embedding": True,
    "pad_token_id": VOCABULARY - 1,
    "decoder_start_token_id": VOCABULARY - 1,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 6,
    "num_heads": 3,
    "d_ff": 24,
    "num_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}


def models() -> dict[str, torch.nn.Module]:
    """By folder."""
    return {
        "marian": MarianMTModel(MarianConfig(**MARIAN)),
        "marian_gelu": MarianMTModel(
            MarianConfig(**MARIAN | {"activation_function": "gelu", "scale_embedding": False})
        ),
        "t5": T5ForConditionalGeneration(T5Config(**T5)),
        "t5_1_1": T5ForConditionalGeneration(
            T5Config(**T5, feed_forward_proj="gated-gelu", num_decoder_layers=1, tie_word_embeddings=False)
        ),
        "mt5": MT5ForConditionalGeneration(MT5Config(**T5, feed_forward_proj="gated-gelu")),
    }


def randomise(model: torch.nn.Module, name: str) -> None:
    if name in ("t5_1_1", "mt5"):  # published with an output layer of their own
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCABULARY, 16))
    for key, tensor in model.state_dict(keep_vars=True).items():
        if "embed_positions" not in key:
            scale = 1.0 if "norm" in key and "weight" in key else 0.0
            tensor.data = scale + 0.4 * torch.randn(tensor.shape)
    if name == "marian":  # as published: the decoder starts from a zero embedding
        model.model.shared.weight.data[VOCABULARY - 1] = 0


def main() -> None:
    torch.manual_seed(0)
    shutil.rmtree(GOLDEN, ignore_errors=True)
    random = np.random.default_rng(0)
    lengths = [(7, 9), (4, 6), (1, 2)]
    for name, model in models().items():
        randomise(model, name)
        model.eval()
        pad = model.config.pad_token_id
        source, target = (np.full((3, max(ns)), pad) for ns in zip(*lengths, strict=True))
        for row, (m, n) in enumerate(lengths):
            source[row, :m] = random.integers(1, VOCABULARY - 1, m)
            target[row, :n] = random.integers(1, VOCABULARY - 1, n)
        inputs = np.concatenate([np.full((3, 1), pad), target[:, :-1]], 1)
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor(source),
                attention_mask=torch.tensor([[j < m for j in range(source.shape[1])] for m, _ in lengths]).long(),
                decoder_input_ids=torch.tensor(inputs),
            ).logits.numpy()
        folder = GOLDEN / name
        model.save_pretrained(folder)
        if name == "t5_1_1":  # published files do not know scale_decoder_outputs, and say that the output is not tied
            config = json.loads((folder / "config.json").read_text())
            del config["scale_decoder_outputs"]
            (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=1) + "\n")
        np.savez_compressed(
            folder / "logits.npz", source=source, target=target, lengths=lengths, logits=logits.astype(np.float32)
        )
    distances = torch.arange(-300, 301)
    buckets = {
        f"{'causal' if causal else 'both'}_{n}_{far}": T5Attention._relative_position_bucket(
            distances, bidirectional=not causal, num_buckets=n, max_distance=far
        )
        for causal in (True, False)
        for n, far in ((8, 12), (32, 128), (64, 200))
    }
    np.savez_compressed(GOLDEN / "buckets.npz", distances=distances, **buckets)
    note = {
        "command": ".venv-benchmark/bin/python scripts/make_golden_huggingface.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    (GOLDEN / "made_by.json").write_text(json.dumps(note, indent=1) + "\n")


if __name__ == "__main__":
    main()
