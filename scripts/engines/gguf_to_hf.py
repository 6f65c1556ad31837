#!/usr/bin/env python3
"""Write a GGUF file of a llama as a directory of safetensors in float32, with its tokenizer.

    gguf_to_hf.py MODEL.gguf DIRECTORY

Needs torch, transformers, gguf and accelerate, and has no network.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    source, out = map(pathlib.Path, sys.argv[1:3])
    named = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **named)
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **named)
    config = model.config
    # The weights are not quantised any more.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype, config.architectures = "float32", [type(model).__name__]
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    tensors = {name: tensor.float().contiguous()
               for name, tensor in model.state_dict().items() if name not in tied}
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
