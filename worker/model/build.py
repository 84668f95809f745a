"""From the spec of a model to the model: one ``match``, and nothing else knows the names."""

from typing import assert_never

import torch
from torch import nn

from service.contract.models import ConvnetPreset, GptPreset, MlpPreset, ModelSpec
from worker.data.base import Description
from worker.model.convnet import Convnet
from worker.model.gpt import Gpt
from worker.model.mlp import Mlp


def build_model(spec: ModelSpec, *, data: Description, seed: int) -> nn.Module:
    """Return the model on the CPU. Its weights are a function of the arguments alone.

    ``seed``: in [0, 2**63). The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        match spec:
            case MlpPreset():
                return Mlp(spec, data=data)
            case ConvnetPreset():
                return Convnet(spec, data=data)
            case GptPreset():
                return Gpt(spec, data=data)
            case _:
                assert_never(spec)
