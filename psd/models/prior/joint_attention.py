"""Joint-view self-attention (MVDream) for diffusers' UNet2DConditionModel.

The network runs on rows ``(b v)``; inside self-attention the views of one group become one long sequence
``b (v l) c``, so that they agree.  Cross-attention stays per view.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange
from torch import Tensor


class JointViewAttention(AttnProcessor2_0):
    """Self-attention over all tokens of the ``views`` images of a group; rows must be ordered ``(b v)``."""

    def __init__(self, views: int) -> None:
        super().__init__()
        self.views = views

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        joint = rearrange(hidden_states, "(b v) l c -> b (v l) c", v=self.views)
        joint = super().__call__(attn, joint, *args, **kwargs)
        return rearrange(joint, "b (v l) c -> (b v) l c", v=self.views)


def join_views(unet: UNet2DConditionModel, views: int) -> None:
    """Give every self-attention of ``unet`` (named attn1 in diffusers) the joint-view processor; 1 view is plain."""
    plain = AttnProcessor2_0()
    joint = JointViewAttention(views) if views > 1 else plain
    unet.set_attn_processor({name: joint if ".attn1." in name else plain for name in unet.attn_processors})
