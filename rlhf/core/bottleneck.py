"""Bottleneck adapters (Houlsby et al., arXiv:1902.00751), which peft does not have.

After the attention and after the MLP of each layer, before the residual is added, stands x + up(gelu(down(x))) with
`width` numbers in between. `up` begins at zero, so an untrained adapter changes nothing. Being nonlinear, it cannot
be folded into weights. The modules are children of their layers and act through forward hooks, so the layer's own
code stays as it is; its hidden states are those of the adapted model for everything that calls it.

On disk they look like an adapter of peft: adapter_config.json, with a peft_type that is ours, and
adapter_model.safetensors; `rlhf.core.adapters` writes and reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlhf.core.backbone import Backbone, Role
from rlhf.core.decoder import decoder_layers, share_clone
from rlhf.core.errors import ModelError

PEFT_TYPE = "BOTTLENECK"
ATTENTION_NAMES = ("self_attn", "attention", "attn")
MLP_NAMES = ("mlp", "feed_forward", "ffn")


class Bottleneck(nn.Module):
    """[.., hidden] -> [.., hidden], in fp32 inside."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, width)
        self.up = nn.Linear(width, hidden)
        nn.init.normal_(self.down.weight, std=hidden**-0.5)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        change = self.up(nn.functional.gelu(self.down(x.to(self.down.weight.dtype))))
        return x + change.to(x.dtype)


class _After:
    """A forward hook that puts an adapter behind a module; attention modules give a tuple."""

    def __init__(self, adapter: Bottleneck) -> None:
        self.adapter = adapter

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return self.adapter(output[0]), *output[1:]
        return self.adapter(output)


def add_bottlenecks(backbone: Backbone, name: str, *, width: int, first_layer: int, seed: int) -> Role:
    """A role with fresh adapters in the layers from first_layer up. Raises ModelError for layers of other parts."""
    model = share_clone(backbone.model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in list(decoder_layers(model.get_decoder()))[first_layer:]:
            for names in (ATTENTION_NAMES, MLP_NAMES):
                part = next((n for n in names if isinstance(getattr(layer, n, None), nn.Module)), None)
                if part is None:
                    found = ", ".join(n for n, _ in layer.named_children())
                    raise ModelError(
                        f"{backbone.name}: a layer holds {found}; method adapters expects one of {', '.join(names)}"
                    )
                adapter = Bottleneck(backbone.hidden_size, width).to(backbone.device)
                layer.add_module(f"{part}_adapter", adapter)
                getattr(layer, part).register_forward_hook(_After(adapter))
    role = Role(name, model.eval(), None, None, first_layer, bottleneck=width)
    backbone.adopt(role)
    return role


def bottleneck_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors under their names within the model."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        if isinstance(module, Bottleneck)
        for key, value in module.state_dict().items()
    }


@torch.no_grad()
def load_bottleneck_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors of the same names and shapes in their places."""
    for name, value in bottleneck_tensors(model).items():
        value.copy_(tensors[name])
