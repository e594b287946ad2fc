"""Distillation losses: against naive float64 references, against their own laws, and refusals."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
import yaml
from hydra.utils import instantiate

from forge.distillation.losses import DIST, DKD, KL, MSE, Attention, Hidden, capture_qkv

B, C, L, D = 5, 4, 6, 8
DIVERGENCES = ("forward", "reverse", "jsd", "skew")
SOFT = [*(KL(divergence=d) for d in DIVERGENCES), DKD(), DIST(), DIST(temperature=3)]
YAMLS = sorted(Path(__file__).parents[2].glob("conf/mode/loss/*.yaml"))


def out(seed, *, classes=C, batch=B, width=D, layers=3, dtype=torch.float32, scale=2.0):
    """A fake model output; its tensors are leaves, so that gradients can be read."""
    g = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return (scale * torch.randn(*shape, generator=g)).to(dtype).requires_grad_()

    return SimpleNamespace(
        logits=leaf(batch, classes),
        hidden_states=tuple(leaf(batch, L, width) for _ in range(layers)),
        qkv={name: leaf(batch, L, width) for name in ("query", "key", "value")},
    )


def leaves(output):
    return [output.logits, *output.hidden_states, *output.qkv.values()]


def config(width=D, depth=2, heads=2):
    return SimpleNamespace(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads)


def batch(size=B, classes=C):
    lengths = torch.tensor([L, 3, 1, 5, 2])[:size]
    mask = (torch.arange(L) < lengths[:, None]).long()
    return {"labels": torch.arange(size) % classes, "attention_mask": mask}


def bound(loss, student=None, teacher=None):
    loss.bind(student or config(), teacher or config())
    return loss


def every_loss():
    cosine, few = Hidden(distance="cosine"), Hidden(layers=[[1, 1], [-1, 2]])
    return [*SOFT, MSE(), *map(bound, (Hidden(), cosine, few, Attention()))]


def name_of(value):
    return type(value).__name__ if isinstance(value, torch.nn.Module) else None


# --- naive references, in probabilities and float64 -------------------------------------------


def softmax(row, temperature):
    powers = [math.exp(x / temperature) for x in row]
    return [x / sum(powers) for x in powers]


def naive_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mix(p, q, share):
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def naive_divergence(p, q, name, skew):
    if name == "jsd":
        return (naive_kl(p, mix(p, q, 0.5)) + naive_kl(q, mix(p, q, 0.5))) / 2
    pairs = {"forward": (p, q), "reverse": (q, p), "skew": (p, mix(p, q, skew))}
    return naive_kl(*pairs[name])


def naive_dkd(p, q, label, alpha, beta):
    binary = naive_kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    rest = [[x[i] / (1 - x[label]) for i in range(len(x)) if i != label] for x in (p, q)]
    return alpha * binary + beta * naive_kl(*rest)


def pearson(a, b):
    return torch.corrcoef(torch.tensor([list(a), list(b)], dtype=torch.float64))[0, 1].item()


def rows(output, temperature):
    return [softmax(row, temperature) for row in output.logits.double().tolist()]


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_kl_is_the_formula(name, temperature):
    s, t = out(0), out(1)
    pairs = zip(rows(t, temperature), rows(s, temperature), strict=True)
    expected = temperature**2 * mean([naive_divergence(p, q, name, 0.3) for p, q in pairs])
    loss = KL(temperature=temperature, divergence=name, skew=0.3)(s, t, {})
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_is_the_formula(temperature, classes):
    s, t, b = out(0, classes=classes), out(1, classes=classes), batch(classes=classes)
    triples = zip(rows(t, temperature), rows(s, temperature), b["labels"].tolist(), strict=True)
    expected = temperature**2 * mean([naive_dkd(p, q, y, 1.5, 2.0) for p, q, y in triples])
    loss = DKD(temperature=temperature, alpha=1.5, beta=2)(s, t, b)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_dkd_with_the_teachers_own_weights_is_kl():
    """Zhao et al. 2022, eq. 6: KD = TCKD + (1 - p_target) NCKD, example by example."""
    for i in range(B):
        s, t, y = out(0), out(1), {"labels": batch()["labels"][i : i + 1]}
        s.logits, t.logits = s.logits[i : i + 1], t.logits[i : i + 1]
        beta = 1 - softmax(t.logits[0].tolist(), 4.0)[y["labels"].item()]
        expected = KL(temperature=4)(s, t, {})
        assert torch.allclose(DKD(temperature=4, beta=beta)(s, t, y), expected, rtol=1e-4)


def test_dkd_with_two_classes_has_no_second_part():
    s, t, b = out(0, classes=2), out(1, classes=2), batch(classes=2)
    assert DKD(alpha=0)(s, t, b).item() == 0
    assert torch.allclose(DKD(temperature=2)(s, t, b), KL(temperature=2)(s, t, b), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dist_is_the_formula(temperature):
    s, t = out(0), out(1)
    p, q = rows(t, temperature), rows(s, temperature)
    inter = 1 - mean([pearson(a, b) for a, b in zip(p, q, strict=True)])
    columns = zip(zip(*p, strict=True), zip(*q, strict=True), strict=True)
    intra = 1 - mean([pearson(a, b) for a, b in columns])
    loss = DIST(temperature=temperature, beta=2, gamma=0.5)(s, t, {})
    assert loss.item() == pytest.approx(temperature**2 * (2 * inter + 0.5 * intra), rel=1e-4)


@pytest.mark.parametrize("classes", [1, C])
def test_mse_is_the_formula(classes):
    s, t = out(0, classes=classes), out(1, classes=classes)
    expected = (s.logits.double() - t.logits.double()).pow(2).sum().item() / (B * classes)
    assert MSE()(s, t, {}).item() == pytest.approx(expected, rel=1e-6)


def naive_hidden(s, t, mask, distance):
    examples = []
    for a, b, real in zip(s.double(), t.double(), mask.bool(), strict=True):
        pairs = zip(a[real], b[real], strict=True)
        if distance == "mse":
            examples.append(mean([((x - y) ** 2).mean().item() for x, y in pairs]))
        else:
            examples.append(mean([1 - (x @ y / x.norm() / y.norm()).item() for x, y in pairs]))
    return mean(examples)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("layers", [None, [[0, 2], [-1, -2]]])
def test_hidden_is_the_formula(layers, distance):
    s, t, mask = out(0, layers=3), out(1, layers=5), batch()["attention_mask"]
    pairs = [(0, 0), (1, 2), (2, 4)] if layers is None else [(0, 2), (2, 3)]
    parts = [naive_hidden(s.hidden_states[i], t.hidden_states[j], mask, distance) for i, j in pairs]
    loss = bound(Hidden(layers=layers, distance=distance), teacher=config(depth=4))
    assert loss.pairs == pairs and not list(loss.parameters())
    assert loss(s, t, batch()).item() == pytest.approx(mean(parts), rel=1e-5)


def naive_relations(states, heads):
    """[L, D] -> per head the rows of softmax(x x^T / sqrt(d))."""
    tables = []
    for x in states.double().chunk(heads, dim=-1):
        scores = (x @ x.T / math.sqrt(x.shape[1])).tolist()
        tables += [softmax(row, 1.0) for row in scores]
    return tables


@pytest.mark.parametrize("heads", [None, 1, 4])
def test_attention_is_the_formula(heads):
    s, t, mask = out(0, scale=0.7), out(1, width=16, scale=0.7), batch()["attention_mask"]
    used, total = heads or 2, 0.0
    for name in ("query", "key", "value"):
        examples = []
        for a, b, real in zip(s.qkv[name], t.qkv[name], mask.bool(), strict=True):
            q, p = naive_relations(a[real], used), naive_relations(b[real], used)
            examples.append(mean([naive_kl(x, y) for x, y in zip(p, q, strict=True)]))
        total += mean(examples)
    loss = bound(Attention(relation_heads=heads), teacher=config(width=16, heads=4))
    assert loss(s, t, batch()).item() == pytest.approx(total, rel=1e-4)


# --- laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", every_loss(), ids=name_of)
def test_same_outputs_cost_nothing(loss):
    assert loss(out(0), out(0), batch()).item() == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("loss", every_loss(), ids=name_of)
def test_gradient_reaches_the_student_and_not_the_teacher(loss):
    s, t = out(0), out(1)
    value = loss(s, t, batch())
    value.backward()
    assert value.ndim == 0 and value.item() > 0 and value.dtype == torch.float32
    assert any(x.grad is not None and x.grad.abs().sum() > 0 for x in leaves(s))
    assert all(x.grad is None for x in leaves(t))


def test_the_gradient_keeps_its_size_over_temperatures():
    """D1: without T^2 it would shrink 400-fold from T=1 to T=20."""
    sizes = []
    for temperature in (1, 2, 5, 8, 20):
        s, t = out(0, batch=64, classes=3, scale=1.0), out(1, batch=64, classes=3, scale=1.0)
        KL(temperature=temperature)(s, t, {}).backward()
        sizes.append(s.logits.grad.norm().item())
    assert max(sizes) < 2 * min(sizes)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_kl_depends_on_neither_batch_size_nor_class_count(name):
    """D2: splitting every class into two equal halves, or doubling the batch, changes nothing."""
    loss, s, t = KL(divergence=name), out(0), out(1)
    expected = loss(s, t, {})
    for repeats in ((2, 1), (1, 2)):
        twice = [SimpleNamespace(logits=x.logits.repeat(repeats)) for x in (s, t)]
        assert torch.allclose(loss(*twice, {}), expected, rtol=1e-5)


def test_jsd_is_symmetric_and_at_most_ln_2():
    loss = KL(divergence="jsd", temperature=1)
    assert torch.allclose(loss(out(0), out(1), {}), loss(out(1), out(0), {}), rtol=1e-5)
    far = [SimpleNamespace(logits=torch.eye(2)[[i]] * 1e4) for i in (0, 1)]
    assert loss(*far, {}).item() == pytest.approx(math.log(2))


def test_skew_bounds_the_divergence_and_tends_to_kl():
    far = [SimpleNamespace(logits=torch.eye(2)[[i]] * 1e4) for i in (0, 1)]
    loss = KL(divergence="skew", skew=0.2, temperature=1)
    assert loss(*far, {}).item() == pytest.approx(-math.log(0.2))
    near = KL(divergence="skew", skew=1e-7)(out(0), out(1), {})
    assert torch.allclose(near, KL()(out(0), out(1), {}), rtol=1e-4)


def test_dist_ignores_scale_and_shift_of_the_probabilities():
    p = out(1).logits.detach().softmax(1)
    flatter = SimpleNamespace(logits=(0.3 * p + 0.7 / C).log())  # rows still sum to 1
    assert DIST()(flatter, SimpleNamespace(logits=p.log()), {}).item() == pytest.approx(0, abs=1e-5)


def test_dist_of_one_example_has_no_relation_over_the_batch():
    s, t = out(0, batch=1), out(1, batch=1)
    assert DIST(beta=0)(s, t, {}).item() == 0
    assert torch.equal(DIST()(s, t, {}), DIST(gamma=0)(s, t, {}))


@pytest.mark.parametrize("loss", [x for x in every_loss() if x.same_tokens], ids=name_of)
def test_padding_has_no_influence(loss):
    s, t, b = out(0), out(1), batch()
    before = loss(s, t, b)
    before.backward()
    padded = b["attention_mask"] == 0
    with torch.no_grad():
        for x in leaves(s)[1:] + leaves(t)[1:]:
            assert x.grad is None or not x.grad[padded].any()
            x[padded] = 1e4
    assert torch.allclose(loss(s, t, b), before, rtol=1e-6)


@pytest.mark.parametrize("loss", every_loss(), ids=name_of)
def test_micro_batches_average_to_the_whole_batch(loss):
    """D7; DIST relates the examples of a batch, so its second part cannot."""
    if isinstance(loss, DIST):
        loss = DIST(gamma=0)
    s, t, b = out(0, batch=4), out(1, batch=4), batch(4)

    def half(x, i):
        cut = slice(2 * i, 2 * i + 2)
        hidden, qkv = tuple(h[cut] for h in x.hidden_states), {k: v[cut] for k, v in x.qkv.items()}
        return SimpleNamespace(logits=x.logits[cut], hidden_states=hidden, qkv=qkv)

    halves = [
        loss(half(s, i), half(t, i), {k: v[2 * i : 2 * i + 2] for k, v in b.items()})
        for i in range(2)
    ]
    assert torch.allclose(torch.stack(halves).mean(), loss(s, t, b), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("make", [KL, DKD, DIST, MSE], ids=lambda make: make.__name__)
def test_extreme_logits_give_finite_gradients(make, temperature, dtype):
    """D8: softmax underflows here in any precision; log space does not."""
    settings = [{}] if make is MSE else [{"temperature": temperature}]
    if make is KL:
        settings = [{**settings[0], "divergence": d} for d in DIVERGENCES]
    rows = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0], [1e4, 1e4, 1e4]])
    for options in settings:
        s = SimpleNamespace(logits=rows.to(dtype).requires_grad_())
        t = SimpleNamespace(logits=rows.flip(0, 1).to(dtype))
        value = make(**options)(s, t, {"labels": torch.tensor([0, 0, 1, 2])})
        value.backward()
        assert value.isfinite() and s.logits.grad.isfinite().all(), options


@pytest.mark.parametrize("loss", [x for x in every_loss() if x.same_tokens], ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_fp32(loss, dtype):
    s, t, b = out(0, dtype=dtype, scale=50), out(1, dtype=dtype, scale=50), batch()
    exact = out(0), out(1)
    for theirs, ours in zip(exact, (s, t), strict=True):
        for x, y in zip(leaves(theirs), leaves(ours), strict=True):
            x.data = y.data.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(s, t, b)
    value.backward()
    assert torch.allclose(value, loss(*exact, b), rtol=1e-6)
    assert all(x.grad is None or x.grad.isfinite().all() for x in leaves(s))


def test_an_example_without_real_tokens_costs_nothing():
    for loss in (bound(Hidden()), bound(Attention())):
        s, b = out(0), {"attention_mask": torch.zeros(B, L)}
        value = loss(s, out(1), b)
        value.backward()
        assert value.item() == 0
        assert all(x.grad is None or x.grad.isfinite().all() for x in leaves(s))


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_hidden_learns_a_projection_only_where_the_widths_differ(distance):
    loss = bound(Hidden(distance=distance), teacher=config(width=12))
    assert [tuple(w.shape) for w in loss.parameters()] == [(12, D)] * 3
    s, t = out(0), out(1, width=12)
    loss(s, t, batch()).backward()
    assert all(w.grad.abs().sum() > 0 for w in loss.parameters())
    with torch.no_grad():
        for i, w in enumerate(loss.projections):
            t.hidden_states[i].copy_(s.hidden_states[i] @ w.T)
    assert loss(s, t, batch()).item() == pytest.approx(0, abs=2e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(s, t, batch()).item() == pytest.approx(0, abs=2e-6)
    assert not list(bound(loss).parameters())  # bound anew


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", SOFT, ids=name_of)
def test_one_logit_is_refused_with_the_way_out(loss):
    with pytest.raises(ValueError, match="mode/loss=mse"):
        loss(out(0, classes=1), out(1, classes=1), batch(classes=1))


@pytest.mark.parametrize("loss", [*SOFT, MSE()], ids=name_of)
def test_different_numbers_of_classes_are_refused(loss):
    with pytest.raises(ValueError, match=r"student \[5, 4\], teacher \[5, 1\].*num_labels"):
        loss(out(0), out(1, classes=1), batch())


@pytest.mark.parametrize(
    "make",
    [
        *(lambda v=v: KL(temperature=v) for v in (0, -1, math.nan, math.inf)),
        *(lambda v=v: KL(divergence="skew", skew=v) for v in (-0.1, 0, 1, 1.1)),
        lambda: KL(divergence="kl"),
        *(lambda c=c: c(weight=-1) for c in (KL, MSE, DKD, DIST, Hidden, Attention)),
        *(lambda c=c: c(temperature=0) for c in (DKD, DIST)),
        lambda: DKD(alpha=-1),
        lambda: DIST(gamma=math.nan),
        *(lambda v=v: Hidden(layers=v) for v in ([], [[1]], [[1, 2, 3]])),
        lambda: Hidden(distance="l1"),
        lambda: Attention(relation_heads=0),
        lambda: Hidden()(out(0), out(1), batch()),
        lambda: Attention()(out(0), out(1), batch()),
        lambda: DKD()(out(0), out(1), {}),
        lambda: bound(Hidden(layers=[[3, 0]])),
        lambda: bound(Hidden(layers=[[0, -4]])),
        lambda: bound(Attention(layer=2)),
        lambda: bound(Attention(teacher_layer=-3)),
        lambda: bound(Attention(relation_heads=3)),
        lambda: bound(Attention(), teacher=config(width=9)),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make):
    with pytest.raises(ValueError) as error:
        make()
    assert "\n" not in str(error.value) and len(str(error.value)) < 140


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_makes_its_loss(path):
    first, *_ = path.read_text().splitlines()
    (name, settings), *others = yaml.safe_load(path.read_text()).items()
    assert first.startswith("# ") and name == path.stem and not others
    assert instantiate(settings).needs <= {"logits", "hidden_states", "qkv"}


# --- capture_qkv ------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}


def model(name, **settings):
    torch.manual_seed(0)
    return hf.AutoModel.from_config(hf.AutoConfig.for_model(name, **SMALL, **settings)).eval()


def distilbert():
    torch.manual_seed(0)
    small = {"vocab_size": 20, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 16}
    return hf.DistilBertModel(hf.DistilBertConfig(**small)).eval()


MODELS = {
    **{name: lambda n=name: model(n) for name in ("bert", "roberta", "electra", "mpnet")},
    "modernbert": lambda: model("modernbert", pad_token_id=0, cls_token_id=1, sep_token_id=2),
    "deberta-v2": lambda: model(
        "deberta-v2", relative_attention=True, share_att_key=True, pos_att_type=["c2p", "p2c"]
    ),
    "distilbert": distilbert,
}
IDS = torch.arange(2, 12).view(2, 5)


@pytest.mark.parametrize("name", MODELS)
def test_capture_leaves_the_model_as_it_was(name):
    net = MODELS[name]()
    plain = net(IDS).last_hidden_state
    with capture_qkv(net, -1) as qkv:
        assert torch.equal(net(IDS).last_hidden_state, plain)
        first = dict(qkv)
        net(IDS.flip(0))
    assert list(first) == ["query", "key", "value"]
    assert all(x.shape == (2, 5, 16) and x.requires_grad for x in first.values())
    assert all(torch.allclose(qkv[k].flip(0), first[k], atol=1e-5) for k in qkv)  # refilled
    net(IDS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_captured_queries_and_keys_give_the_models_attention(layer):
    net = model("bert", attn_implementation="eager")
    with capture_qkv(net, layer) as qkv:
        attentions = net(IDS, output_attentions=True).attentions
    q, k = (qkv[name].view(2, 5, 2, 8).transpose(1, 2) for name in ("query", "key"))
    probabilities = (q @ k.mT / math.sqrt(8)).softmax(-1)
    assert torch.allclose(probabilities, attentions[layer], atol=1e-6)


def test_a_fused_projection_is_split():
    net = MODELS["modernbert"]()
    inputs = []
    net.layers[1].attn.Wqkv.register_forward_hook(lambda m, i, o: inputs.append(i[0]))
    with capture_qkv(net, 1) as qkv:
        net(IDS)
    weights = net.layers[1].attn.Wqkv.weight.chunk(3)
    for name, weight in zip(("query", "key", "value"), weights, strict=True):
        assert torch.allclose(qkv[name], inputs[0] @ weight.T, atol=1e-6)


def test_attention_trains_a_student_through_capture():
    student, teacher = distilbert(), model("bert")
    loss = bound(Attention(layer=1, teacher_layer=2), student.config, teacher.config)
    with capture_qkv(student, 1) as ours, capture_qkv(teacher, 2) as theirs:
        student(IDS)
        teacher(IDS)
        outputs = SimpleNamespace(qkv=ours), SimpleNamespace(qkv=theirs)
        loss(*outputs, {"attention_mask": torch.ones(2, 5)}).backward()
    assert student.transformer.layer[1].attention.q_lin.weight.grad.abs().sum() > 0
    assert student.transformer.layer[2].attention.q_lin.weight.grad is None
    assert all(w.grad is None for w in teacher.parameters())


@pytest.mark.parametrize(
    ("name", "settings", "layer", "message"),
    [
        ("albert", {"embedding_size": 8}, -1, "found 1 layers .* expected 3; use mode/loss=hidden"),
        ("fnet", {}, -1, "found 0 layers .* expected 3; use mode/loss=hidden"),
        ("bert", {}, 3, "layer 3: does not exist; the model has 3"),
    ],
)
def test_capture_refuses_what_it_cannot_find(name, settings, layer, message):
    with pytest.raises(ValueError, match=message), capture_qkv(model(name, **settings), layer):
        pass
