"""The peer of benchmark_scoring.py: the same network in PyTorch, asked line by line. Runs in .venv-benchmark.

A request is a JSON line {"sources": [[id, ...], ...], "targets": [[id, ...], ...], "batch_tokens": target positions at
once, "kernel": [...], "bias": b}, ids as the exported model has them; the answer has the seconds and the scores.
"""

import json
import sys
import time

import torch
from transformers import MarianMTModel


def padded(rows: list[list[int]], pad: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


@torch.inference_mode()
def score(model: MarianMTModel, ask: dict) -> list[float]:
    """The head on the mean decoder state, the mean log p, the mean p and the lowest log p; like lengths together."""
    sources, targets, pad = ask["sources"], ask["targets"], model.config.pad_token_id
    order = sorted(range(len(targets)), key=lambda i: (len(targets[i]), len(sources[i])))
    kernel, scores = torch.tensor(ask["kernel"]), [0.0] * len(targets)
    start = 0
    while start < len(order):
        # as many rows as give about batch_tokens positions
        end = start + 1
        while end < len(order) and (end - start + 1) * len(targets[order[end]]) <= ask["batch_tokens"]:
            end += 1
        part = order[start:end]
        source, target = padded([sources[i] for i in part], pad), padded([targets[i] for i in part], pad)
        read = torch.cat([torch.full((len(part), 1), pad), target[:, :-1]], 1)
        states = model.model(input_ids=source, attention_mask=(source != pad).long(), decoder_input_ids=read)[0]
        logits = model.lm_head(states) + model.final_logits_bias
        chosen = logits.gather(-1, target[..., None])[..., 0] - logits.logsumexp(-1)
        real = torch.arange(target.shape[1])[None] < torch.tensor([[len(targets[i])] for i in part])
        length = real.sum(1, keepdim=True)
        columns = torch.cat([states, chosen[..., None], chosen.exp()[..., None]], -1)
        means = (columns * real[..., None]).sum(1) / length
        features = torch.cat([means, chosen.masked_fill(~real, 0.0).min(1, keepdim=True).values], 1)
        for i, value in zip(part, (features @ kernel + ask["bias"]).tolist(), strict=True):
            scores[i] = value
        start = end
    return scores


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    model = MarianMTModel.from_pretrained(sys.argv[1]).eval()
    for line in sys.stdin:
        ask = json.loads(line)
        began = time.perf_counter()
        scores = score(model, ask)
        print(json.dumps({"seconds": time.perf_counter() - began, "scores": scores}), flush=True)


if __name__ == "__main__":
    main()
