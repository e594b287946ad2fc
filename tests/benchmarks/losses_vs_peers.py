"""Forge's distillation losses next to torchdistill's and TextBrewer's own functions.

    python tests/benchmarks/losses_vs_peers.py

Prints one line per loss: Forge's value, the peer's as it comes, the peer's after undoing the
difference named in the note, and what is left. In a venv of its own, so that nothing moves torch:

    pip install torch==2.13.0
    pip install --no-deps torchdistill==1.1.5 torchvision==0.28.0 pillow pyyaml
    pip install --no-deps textbrewer==0.2.1.post1 tqdm tensorboardX protobuf packaging

Neither has decoupled KD, reverse KL, JSD, skew KL or MiniLMv2 relations; the last is checked
against TextBrewer's attention cross-entropy, fed with the same scaled scores.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

Row = tuple[str, Tensor, Tensor, Tensor, str]
B, C, L, D, HEADS, T = 8, 5, 10, 16, 4, 4.0
MASK = (torch.arange(L) < torch.tensor([10, 3, 7, 10, 1, 5, 8, 2])[:, None]).long()
FULL = torch.ones_like(MASK)
CONFIG = SimpleNamespace(hidden_size=D, num_hidden_layers=1, num_attention_heads=HEADS)


def fake(seed: int) -> Any:
    """A model output of random numbers."""
    g = torch.Generator().manual_seed(seed)
    hidden = [torch.randn(B, L, D, generator=g) for _ in range(5)]
    qkv = dict(zip(("query", "key", "value"), hidden[2:], strict=True))
    logits = 2 * torch.randn(B, C, generator=g)
    return SimpleNamespace(logits=logits, hidden_states=hidden[:2], qkv=qkv)


def against_torchdistill(s: Any, t: Any) -> Iterator[Row]:
    from torchdistill.losses.mid_level import DISTLoss, KDLoss

    from forge.distillation.losses import DIST, KL

    place = ("model", "output", "model", "output")
    io = [{"model": {"output": x.logits}} for x in (s, t)]
    labels, ours = torch.arange(B) % C, KL(temperature=T)(s, t, {})
    # Without targets (as its GLUE scripts call it) KDLoss is the KL alone and leaves T^2 out.
    peer = KDLoss(*place, temperature=T, alpha=0.9)(*io)
    yield "KL / KDLoss, no targets", ours, peer, T**2 * peer, "times T^2"
    # With targets: alpha CE + (1 - alpha) T^2 KL; here alpha weighs CE, in Forge the distillation.
    peer = KDLoss(*place, temperature=T, alpha=0.9)(*io, labels)
    soft = (peer - 0.9 * F.cross_entropy(s.logits, labels)) / 0.1
    yield "KL / KDLoss, alpha .9", ours, peer, soft, "less .9 CE, over .1"
    # The same formula; Forge's floor under a norm is 1e-4 (finite fp16 gradients), here 1e-8.
    peer = DISTLoss(*place, beta=2.0, gamma=0.5, tau=T)(*io)
    yield "DIST / DISTLoss", DIST(temperature=T, beta=2, gamma=0.5)(s, t, {}), peer, peer, "same"


def against_textbrewer(s: Any, t: Any) -> Iterator[Row]:
    from textbrewer.losses import kd_ce_loss, kd_mse_loss

    from forge.distillation.losses import KL, MSE

    # Cross-entropy instead of KL (larger by the teacher's entropy) and no T^2.
    peer, entropy = kd_ce_loss(s.logits, t.logits, T), kd_ce_loss(t.logits, t.logits, T)
    ours, undone = KL(temperature=T)(s, t, {}), T**2 * (peer - entropy)
    yield "KL / kd_ce_loss", ours, peer, undone, "less teacher entropy, times T^2"
    # It divides the logits by T before squaring, which only divides the loss by T^2.
    peer = kd_mse_loss(s.logits, t.logits, T)
    yield "MSE / kd_mse_loss", MSE()(s, t, {}), peer, T**2 * peer, "times T^2"
    yield from hidden_against_textbrewer(s, t)
    yield from attention_against_textbrewer(s, t)


def hidden_against_textbrewer(s: Any, t: Any) -> Iterator[Row]:
    from textbrewer.losses import cos_loss, hid_mse_loss, pkd_loss

    from forge.distillation.losses import Hidden

    pair = s.hidden_states[1], t.hidden_states[1]
    for distance, peer in (("mse", hid_mse_loss), ("cosine", cos_loss)):
        loss = Hidden(layers=[[1, 1]], distance=distance)
        loss.bind(CONFIG, CONFIG)
        name = f"Hidden {distance} / {peer.__name__}"
        whole = peer(*pair, FULL)
        yield f"{name}, no padding", loss(s, t, {"attention_mask": FULL}), whole, whole, "same"
        # It averages over all tokens of the batch, so long texts count more; Forge over the tokens
        # of each example and then over the examples, so the micro-batches average to the batch.
        each = [peer(*(x[i : i + 1] for x in (*pair, MASK))) for i in range(B)]
        ours, mean = loss(s, t, {"attention_mask": MASK}), torch.stack(each).mean()
        yield f"{name}, padded", ours, peer(*pair, MASK), mean, "example by example"
    # PKD: [CLS] only, and the squared distance of unit vectors = 2 (1 - cos).
    cls = FULL * (torch.arange(L) == 0)
    ours, whole = loss(s, t, {"attention_mask": cls}), pkd_loss(*pair)
    yield "Hidden cosine / pkd_loss", ours, whole, whole / 2, "halved; Forge's mask = [CLS]"


def attention_against_textbrewer(s: Any, t: Any) -> Iterator[Row]:
    from textbrewer.losses import att_ce_loss

    from forge.distillation.losses import Attention

    def scores(x: Tensor) -> Tensor:
        x = x.view(B, L, HEADS, -1).transpose(1, 2)
        return x @ x.mT / x.shape[-1] ** 0.5

    def peer(other: Any, mask: Tensor) -> Tensor:
        pairs = ((scores(other.qkv[n]), scores(t.qkv[n])) for n in t.qkv)
        return torch.stack([att_ce_loss(a, b, mask) for a, b in pairs]).sum()

    loss = Attention()
    loss.bind(CONFIG, CONFIG)
    ce, entropy = peer(s, FULL), peer(t, FULL)
    ours = loss(s, t, {"attention_mask": FULL})
    yield "Attention / att_ce_loss, no padding", ours, ce, ce - entropy, "less teacher entropy"
    # It masks after the softmax: padded keys keep their share of the probability, so what remains
    # of a row does not sum to 1 and the value moves with the padding. Not undone: no equality here.
    ce, entropy = peer(s, MASK), peer(t, MASK)
    ours = loss(s, t, {"attention_mask": MASK})
    yield "Attention / att_ce_loss, padded", ours, ce, ce - entropy, "DIFFERS: padded keys count"


def main() -> None:
    student, teacher = fake(0), fake(1)
    try:
        rows = [*against_torchdistill(student, teacher), *against_textbrewer(student, teacher)]
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name}: not installed; the pip lines are at the top of {__file__}")
    print(f"{'forge / peer':42} {'forge':>10} {'peer':>10} {'undone':>10} {'rel. diff':>10}  note")
    for name, ours, peer, undone, note in rows:
        apart = ((ours - undone).abs() / ours.abs()).item()
        print(f"{name:42} {ours:10.6f} {peer:10.6f} {undone:10.6f} {apart:10.1e}  {note}")


if __name__ == "__main__":
    main()
