"""The peer of benchmark_improve.py: MarianMTModel trained in PyTorch, asked line by line. Runs in .venv-benchmark.

A request is a JSON line {"batch_tokens": target positions a batch, "seconds": how long}; the answer is one too.
"""

import json
import random
import resource
import sys
import time


def network(settings: dict, vocabulary: int):
    """A random Marian of the same sizes, float32, on two threads."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=vocabulary, d_model=settings["width"], encoder_layers=settings["encoder_layers"],
        decoder_layers=settings["decoder_layers"], encoder_attention_heads=settings["heads"],
        decoder_attention_heads=settings["heads"], encoder_ffn_dim=settings["feed_forward"],
        decoder_ffn_dim=settings["feed_forward"], dropout=settings["dropout"], attention_dropout=0.0,
        activation_dropout=0.0, activation_function="relu", scale_embedding=True, pad_token_id=vocabulary - 1,
        decoder_start_token_id=vocabulary - 1, eos_token_id=0, max_position_embeddings=512,
    )  # fmt: skip
    return MarianMTModel(config).train()


def batches(pairs: list, batch_tokens: int, pad: int):
    """Endless: pairs of like lengths padded to the longest of their batch; the order of batches is random."""
    import torch

    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][1]), len(pairs[i][0])))
    groups, group = [], []
    for i in order:
        if group and (len(group) + 1) * len(pairs[i][1]) > batch_tokens:
            groups.append(group)
            group = []
        group.append(i)
    groups.append(group)

    def padded(rows: list, fill: int):
        width = max(map(len, rows))
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows])

    made = []
    for group in groups:
        sources, targets = ([pairs[i][side] for i in group] for side in (0, 1))
        ids, labels = padded(sources, pad), padded(targets, -100)
        start = padded([[pad, *target[:-1]] for target in targets], pad)
        made.append((ids, (ids != pad).long(), start, labels, sum(map(len, targets))))
    shuffle = random.Random(0)
    while True:
        shuffle.shuffle(made)
        yield from made


def main() -> None:
    with open(sys.argv[1]) as file:
        task = json.load(file)
    import torch

    vocabulary = -(-(task["vocabulary"] + 1) // 64) * 64
    model = network(task["settings"], vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=-100)
    streams = {}
    for line in sys.stdin:
        ask = json.loads(line)
        size = ask["batch_tokens"]
        if size not in streams:
            streams[size] = batches(task["pairs"], size, vocabulary - 1)
        stream, tokens, began = streams[size], 0, time.perf_counter()
        while time.perf_counter() - began < ask["seconds"]:
            ids, mask, start, labels, count = next(stream)
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=False).logits
            loss = loss_of(logits.view(-1, logits.shape[-1]), labels.view(-1))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()
            tokens += count
        answer = {
            "tokens": tokens,
            "seconds": time.perf_counter() - began,
            "megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
