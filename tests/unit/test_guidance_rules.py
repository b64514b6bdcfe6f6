"""Each rule against its formula in float64."""

import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from host_reads import waits_to_bring
from kleinkit.guidance import stack
from kleinkit.guidance.adaptive import Adaptive, cosine
from kleinkit.guidance.apg import APG, SPACES
from kleinkit.guidance.auto import AutoGuidance
from kleinkit.guidance.base_uncond import BaseUncond
from kleinkit.guidance.cfg import CFG, Interval, combine
from kleinkit.guidance.distilled import Distilled
from kleinkit.guidance.fdg import FDG, weighted
from kleinkit.guidance.image import ImageCFG, image_cfg
from kleinkit.guidance.mambo_g import MamboG, damping
from kleinkit.guidance.momentum import Momentum
from kleinkit.guidance.nag import NAG, nag
from kleinkit.guidance.plan import plan_step
from kleinkit.guidance.renorm import MODES, Renorm, renorm
from kleinkit.guidance.rule import ATTENTION, COMBINE, Rule, ScaledVelocities, Step
from kleinkit.guidance.seg import SEG, blur
from kleinkit.guidance.skip_layer import SkipLayer, rescaled
from kleinkit.guidance.slerp import Slerp, slerp, slerp_weights
from kleinkit.guidance.tcfg import TCFG, damped
from kleinkit.guidance.zero_star import CFGZeroStar, optimized_scale

SCALES = (0.0, 0.25, 0.5, 1.0, 4.0, 100.0)
SHAPE = (128, 6, 4)


def random(batch, seed, dtype=torch.float32):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(result, exact, scale=1.0):
    assert result.dtype == torch.float32
    assert (result - exact).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("batch", (1, 2, 3, 4))
class TestFormulas:
    @pytest.fixture(autouse=True)
    def predictions(self, batch):
        self.batch = batch
        self.cond, self.uncond, self.other = (random(batch, seed) for seed in range(3))
        self.exact = [t.double() for t in (self.cond, self.uncond, self.other)]

    def each_sample(self, formula):
        """The formula of one sample's vectors, applied to every sample."""
        return torch.stack([formula(*(t[i] for t in self.exact)) for i in range(self.batch)])

    @pytest.mark.parametrize("cfg", SCALES)
    def test_cfg(self, cfg):
        close(combine(self.cond, self.uncond, cfg), self.each_sample(lambda c, u, _: u + cfg * (c - u)), max(1, cfg))

    def test_optimized_scale(self):
        exact = self.each_sample(lambda c, u, _: (c * u).sum() / (u * u).sum())
        close(optimized_scale(self.cond, self.uncond).flatten(), exact)

    @pytest.mark.parametrize("cfg", SCALES)
    def test_slerp(self, cfg):
        def formula(c, u, _):
            theta = torch.acos((c * u).sum() / c.norm() / u.norm())
            return torch.sin(cfg * theta) / torch.sin(theta) * c + torch.sin((1 - cfg) * theta) / torch.sin(theta) * u

        close(slerp(self.cond, self.uncond, cfg), self.each_sample(formula), max(1, cfg))

    @pytest.mark.parametrize("image_scale", SCALES)
    @pytest.mark.parametrize("cfg", SCALES)
    def test_image_cfg(self, cfg, image_scale):
        exact = self.each_sample(lambda c, u, i: i + image_scale * (u - i) + cfg * (c - u))
        close(image_cfg(self.cond, self.uncond, self.other, cfg, image_scale), exact, max(1, cfg, image_scale))

    @pytest.mark.parametrize("shrink_only", (True, False))
    @pytest.mark.parametrize("strength", (0.25, 1.0))
    @pytest.mark.parametrize("mode", MODES)
    def test_renorm(self, mode, strength, shrink_only):
        dims = {"global": (0, 1, 2), "token": (0,), "channel": (1, 2)}[mode]

        def formula(c, guided, _):
            factor = c.square().sum(dims, keepdim=True).sqrt() / guided.square().sum(dims, keepdim=True).sqrt()
            if shrink_only:
                factor = factor.clamp(max=1.0)
            return (1 - strength) * guided + strength * factor * guided

        close(renorm(self.uncond, self.cond, mode, strength, shrink_only), self.each_sample(formula))

    @pytest.mark.parametrize("rescale", (0.5, 1.0))
    def test_rescale(self, rescale):
        cond, guided, x = self.exact
        factor = torch.stack([(a - c).std() / (a - g).std() for a, c, g in zip(x, cond, guided)])[:, None, None, None]
        close(
            rescaled(self.uncond, self.cond, self.other, rescale),
            x - (x - guided) * (rescale * factor + 1 - rescale),
        )

    def test_damped(self):
        def formula(c, u, _):
            first = torch.linalg.svd(torch.stack([c, u]).flatten(1), full_matrices=False).Vh[0]
            return ((u.flatten() @ first) * first).reshape(u.shape)

        close(damped(self.cond, self.uncond), self.each_sample(formula))

    def test_damping(self):
        exact = self.each_sample(lambda c, u, _: torch.exp(-0.5 * (c - u).norm() / u.norm()))
        close(damping(self.cond, self.uncond, 0.5).flatten(), exact)

    @pytest.mark.parametrize("scale", (1.5, 5.0))
    def test_nag(self, scale):
        def formula(positive, negative, _):
            positive, negative = positive[:, 0], negative[:, 0]
            z = positive + (scale - 1) * (positive - negative)
            ratio = z.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
            return 0.25 * torch.where(ratio > 2.5, z * 2.5 / ratio, z) + 0.75 * positive

        close(nag(self.cond[:, :, 0], self.uncond[:, :, 0], scale, 2.5, 0.25), self.each_sample(formula))

    def test_cosine(self):
        exact = self.each_sample(lambda c, u, _: (c * u).sum() / c.norm() / u.norm())
        close(cosine(self.cond, self.uncond), exact)


# A blog's study of CFG in large models, at cos θ = 0.98: {w: (of v_c, of v_u)}.
GOLDEN_SLERP = {
    2: (1.96, -1.0),
    3: (2.8416, -1.96),
    4: (3.60954, -2.8416),
    5: (4.23309, -3.60954),
    6: (4.68732, -4.23309),
}


@pytest.mark.parametrize("cfg", GOLDEN_SLERP)
def test_slerp_weights(cfg):
    weights = slerp_weights(torch.tensor(math.acos(0.98), dtype=torch.float64), cfg)
    assert [float(w) for w in weights] == pytest.approx(GOLDEN_SLERP[cfg], abs=5e-6)


@pytest.mark.parametrize("theta", (0.0, math.pi))
def test_slerp_has_the_weights_of_the_line_where_no_arc_is(theta):
    assert [float(w) for w in slerp_weights(torch.tensor(theta, dtype=torch.float64), 4.0)] == [4.0, -3.0]


@pytest.mark.parametrize("angle", (0.0, 1e-9, 1e-4))
def test_slerp_is_plain_cfg_for_small_angles(angle):
    cond = random(2, 0)
    uncond = cond * math.cos(angle) + random(2, 1) * math.sin(angle)
    close(slerp(cond, uncond, 4.0), combine(cond, uncond, 4.0), 10)


@pytest.mark.parametrize("cap, cfg", [(60.0, 20.0), (60.0, 1.5), (5.0, 4.0), (60.0, 0.25)])
def test_a_cap_on_slerp_is_on_the_angle_beyond_the_positive(cap, cfg):
    cond, other = (torch.nn.functional.normalize(random(3, seed, torch.float64).flatten(1)) for seed in (0, 1))
    uncond = torch.nn.functional.normalize(cond + torch.tensor([[0.1], [0.5], [2.0]]) * other)
    theta = torch.acos((cond * uncond).sum(1))
    result = slerp(cond, uncond, cfg, cap)
    turned = torch.acos((result * cond).sum(1).clamp(max=1.0))
    assert torch.allclose(turned, ((cfg - 1.0) * theta).abs().clamp(max=math.radians(cap)), atol=1e-6)
    assert torch.allclose(result.norm(dim=1), torch.ones(3, dtype=torch.float64))


def angle_domain_guidance(cond, uncond, cfg, cap):
    """The authors' code of arXiv 2506.11039 (github.com/jinc7461/ADG, method/ADG_SD3.py), without its rounding of w."""
    c, u = cond.flatten(1), uncond.flatten(1)
    theta = torch.acos((c * u).sum(1, keepdim=True) / c.norm(dim=1, keepdim=True) / u.norm(dim=1, keepdim=True))
    turn = ((cfg - 1.0) * theta).clamp(max=math.radians(cap))
    beside = c - u - (c * u - u * u).sum(1, keepdim=True) / (u * u).sum(1, keepdim=True) * u
    return (turn.cos() * c + turn.sin() / theta.sin() * beside).reshape(cond.shape)


@pytest.mark.parametrize("small", (1e-2, 1e-3))
def test_capped_slerp_is_angle_domain_guidance_for_small_angles(small):
    cond = random(3, 0, torch.float64)
    # As long as the positive.
    other = random(3, 1, torch.float64)
    uncond = cond * math.cos(small) + other * math.sin(small)
    uncond = uncond / uncond.flatten(1).norm(dim=1)[:, None, None, None] * cond.flatten(1).norm(dim=1)[:, None, None, None]
    for cap in (60.0, math.degrees(small)):
        far = slerp(cond, uncond, 4.0, cap) - angle_domain_guidance(cond, uncond, 4.0, cap)
        assert far.norm() <= 10.0 * small**2 * cond.norm()
        # The cap counts in both.
        if cap < 60.0:
            assert (slerp(cond, uncond, 4.0, cap) - slerp(cond, uncond, 4.0)).norm() > 0.5 * small * cond.norm()


ALL_RULES = {
    "CFG": (CFG(),),
    "CFG-Zero*": (CFGZeroStar(zero_init_steps=0),),
    "slerp": (Slerp(),),
    "slerp with a cap": (Slerp(60.0),),
    "image CFG": (ImageCFG(3.0),),
    **{f"APG in {space}": (APG(0.0, 2.5, -0.5, space),) for space in SPACES},
    "MAMBO-G": (MamboG(),),
    "TCFG": (TCFG(),),
    "FDG": (FDG((1.0, 0.2, 0.7)),),
    "skip-layer": (SkipLayer(end=1.0),),
    "SEG": (SEG(end=1.0),),
    "autoguidance": (AutoGuidance(prompt="both"),),
    "skip-layer with rescale": (SkipLayer(end=1.0, rescale=1.0),),
    **{f"renorm of a {mode}": (Renorm(mode, shrink_only=False),) for mode in MODES},
    "all": (CFGZeroStar(zero_init_steps=0), Slerp(), SkipLayer(end=1.0), Renorm(), Adaptive(), BaseUncond(), CFG()),
}


def guided(rules, predictions, cfg):
    step = plan_step(rules, 0, 8, 1.0, cfg)
    ran = {name: predictions[name] for name in step.passes}
    extra = {name: v for name, v in ran.items() if name not in ("cond", "uncond")}
    velocities = ScaledVelocities(predictions["x"], predictions["cond"], ran.get("uncond"), extra)
    result = stack.apply(rules, velocities, step, defaultdict(dict))
    return stack.combined(velocities, step) if result is None else result


@pytest.mark.parametrize("cfg", SCALES)
@pytest.mark.parametrize("rules", ALL_RULES.values(), ids=ALL_RULES)
@pytest.mark.parametrize("special", ("v_u = 0", "v_c = v_u", "v_c = 0", "both are 0", "tiny", "huge", "opposite"))
def test_finite_where_plain_cfg_is(rules, special, cfg):
    p = {
        name: random(3, seed)
        for seed, name in enumerate(("x", "cond", "uncond", "image", "skip", "seg", "weak", "weak_uncond"))
    }
    if special == "v_u = 0":
        p["uncond"] = torch.zeros_like(p["uncond"])
    elif special == "both are 0":
        p["cond"] = p["uncond"] = torch.zeros_like(p["uncond"])
    elif special == "v_c = 0":
        p["cond"] = torch.zeros_like(p["cond"])
    elif special == "v_c = v_u":
        p["uncond"] = p["cond"].clone()
    elif special == "opposite":
        p["uncond"] = -p["cond"]
    else:
        p = {name: t * (1e-30 if special == "tiny" else 1e30) for name, t in p.items()}
    plain = guided((), p, cfg)
    assert torch.isfinite(plain).all()
    assert torch.isfinite(guided(rules, p, cfg)).all()


@pytest.mark.parametrize("rules", ALL_RULES.values(), ids=ALL_RULES)
def test_the_host_does_not_wait_for_the_device(rules):
    names = ("x", "cond", "uncond", "image", "skip", "seg", "weak", "weak_uncond")
    on_device = {name: torch.empty(2, *SHAPE, device="meta") for name in names}
    assert waits_to_bring(lambda: guided(rules, on_device, 4.0)) == []


def test_the_host_does_not_wait_for_a_blur():
    tokens = torch.empty(1, 2, 24, 8, device="meta")
    assert waits_to_bring(lambda: blur(tokens, 6, 4, 1.0)) == []


@pytest.mark.parametrize("move", (lambda t: t.to("meta"), lambda t: torch.empty(3, device="meta").copy_(t)))
def test_what_is_brought_is_found(move):
    assert len(waits_to_bring(lambda: move(torch.ones(3)))) == 1
    assert waits_to_bring(lambda: torch.ones(3).to("meta", non_blocking=True)) == []


@pytest.mark.parametrize(
    "rules",
    [
        (CFG(),),
        (CFGZeroStar(False, 0),),
        (Renorm(strength=0.0),),
        (SkipLayer(scale=0.0),),
        (SkipLayer(single_layers=()),),
        (SEG(scale=0.0),),
        (SEG(single_layers=()),),
        (AutoGuidance(scale=1.0),),
        (Momentum(alpha=0.0),),
        (AutoGuidance(single_layers=()),),
        (ImageCFG(1.0),),
        (APG(1.0, 0.0, 0.0),),
        (MamboG(0.0),),
        (FDG((1.0, 1.0)),),
        (Adaptive(1.0),),
        (BaseUncond(),),
    ],
)
def test_neutral_settings_leave_the_sampler_s_own_result(rules):
    p = {name: random(2, seed) for seed, name in enumerate(("x", "cond", "uncond"))}
    step = plan_step(rules, 0, 8, 1.0, 4.0)
    assert step.passes == ("cond", "uncond") and step.cfg == 4.0
    assert stack.apply(rules, ScaledVelocities(**p), step, defaultdict(dict)) is None


CFG_4 = {
    "slerp": (Slerp(), lambda c, u, **_: slerp(c, u, 4.0)),
    "image CFG": (ImageCFG(2.5), lambda c, u, image, **_: image_cfg(c, u, image, 4.0, 2.5)),
    "MAMBO-G": (MamboG(0.5), lambda c, u, **_: u + (1.0 + 3.0 * damping(c, u, 0.5)) * (c - u)),
    "FDG": (FDG((0.7, 0.2)), lambda c, u, **_: c + 3.0 * weighted(c - u, (0.7, 0.2))),
    "CFG-Zero*": (CFGZeroStar(), lambda c, u, **_: combine(c, optimized_scale(c, u) * u, 4.0)),
    "TCFG": (TCFG(), lambda c, u, **_: combine(c, damped(c, u), 4.0)),
    "skip-layer": (SkipLayer(2.5), lambda c, u, skip, **_: combine(c, u, 4.0) + 2.5 * (c - skip)),
    "skip-layer with rescale": (
        SkipLayer(2.5, rescale=0.7),
        lambda c, u, skip, x, **_: rescaled(combine(c, u, 4.0) + 2.5 * (c - skip), c, x, 0.7),
    ),
    "SEG": (SEG(2.5), lambda c, u, seg, **_: combine(c, u, 4.0) + 2.5 * (c - seg)),
    "autoguidance": (AutoGuidance(2.5), lambda c, u, weak, **_: combine(c, u, 4.0) + 1.5 * (c - weak)),
    "renorm": (Renorm("token", 0.5, False), lambda c, u, **_: renorm(combine(c, u, 4.0), c, "token", 0.5, False)),
}


@pytest.mark.parametrize("rule, formula", CFG_4.values(), ids=CFG_4)
def test_a_rule_of_the_stack_is_its_formula_where_both_predictions_are_there(rule, formula):
    p = {name: random(2, seed) for seed, name in enumerate(("x", "cond", "uncond", "image", "skip", "seg", "weak"))}
    close(guided((rule,), p, 4.0), formula(c=p["cond"], u=p["uncond"], **p).double(), 100)


@pytest.mark.parametrize("cfg", SCALES)
def test_autoguidance_of_both_prompts_compares_what_cfg_makes_of_them(cfg):
    p = {name: random(2, seed) for seed, name in enumerate(("x", "cond", "uncond", "weak", "weak_uncond"))}
    strong, weak = (combine(*pair, cfg) for pair in ((p["cond"], p["uncond"]), (p["weak"], p["weak_uncond"])))
    close(guided((AutoGuidance(2.5, prompt="both"),), p, cfg), (strong + 1.5 * (strong - weak)).double(), max(1.0, 10 * cfg))


@pytest.mark.parametrize("cfg", (0.0, 1.0))
@pytest.mark.parametrize("rule", (Slerp(), APG(), MamboG(), FDG(), TCFG()), ids=lambda rule: rule.node)
def test_a_prediction_that_stands_alone_is_left_alone(rule, cfg):
    v = ScaledVelocities(*(random(2, seed) for seed in range(3)))
    assert stack.apply((rule,), v, Step(0, 8, 1.0, cfg), defaultdict(dict)) is None


def test_cfg_zero_star_scales_the_negative_that_tcfg_leaves():
    p = {name: random(2, seed) for seed, name in enumerate(("x", "cond", "uncond"))}
    uncond = damped(p["cond"], p["uncond"])
    uncond = optimized_scale(p["cond"], uncond) * uncond
    for rules in ((TCFG(), CFGZeroStar(zero_init_steps=0)), (CFGZeroStar(zero_init_steps=0), TCFG())):
        assert torch.equal(guided(rules, p, 4.0), combine(p["cond"], uncond, 4.0))


def test_the_same_node_twice_counts_once():
    rules, replaced = stack.add((), Renorm("global"))
    assert not replaced
    rules, replaced = stack.add(rules, Renorm("token"))
    assert replaced and rules == (Renorm("token"),)


class Other(Rule):
    """A rule of another node, in whatever place of the stack."""

    node, title = "OfAnotherPack", "Another Node"

    def __init__(self, order):
        object.__setattr__(self, "order", order)


@pytest.mark.parametrize(
    "pair",
    [(Slerp(), ImageCFG(2.0)), (Slerp(), Other(COMBINE)), (ImageCFG(2.0), Other(COMBINE)), (NAG(), Other(ATTENTION))],
    ids=lambda pair: " and ".join(rule.node for rule in pair),
)
def test_rules_that_exclude_each_other_are_refused_with_both_names(pair):
    for one, other in (pair, pair[::-1]):
        with pytest.raises(ValueError, match=f"^(?=.*{one.title})(?=.*{other.title}).*: remove one"):
            stack.add((one,), other)


@pytest.mark.parametrize("cfg, effective", ((0.5, 0.5), (1.0, 1.0), (1.05, 1.0), (8.0, 1.0)))
def test_a_distilled_model_has_no_cfg_above_1(cfg, effective):
    assert plan_step((Distilled(),), 0, 4, 1.0, cfg).cfg == effective
    # Where the sampler takes a scale from elsewhere.
    v = ScaledVelocities(*(random(2, seed) for seed in range(3)))
    assert Distilled().transform(v, Step(0, 4, 1.0, cfg), {}).uncond is (v.cond if cfg > 1.0 else v.uncond)
    alone = replace(v, uncond=None)
    assert Distilled().transform(alone, Step(0, 4, 1.0, cfg), {}) is alone


@pytest.mark.parametrize("scale", [5.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nag_between_two_equal_texts_changes_no_bit(dtype, scale):
    z = torch.randn(2, 16, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(nag(z, z.clone(), scale, 2.5, 0.25), z)


def apg_run(calls, cfg=4.0, **settings):
    """The results of a run of model calls `(step, predictions)` with APG."""
    rule, memory, results = APG(**settings), {}, []
    for index, p in calls:
        step = plan_step((rule,), index, 8, 1.0 - index / 8, cfg)
        results.append(stack.combined(rule.transform(ScaledVelocities(**p), step, memory), step))
    return results


@pytest.mark.parametrize("space", SPACES)
def test_apg_counts_a_step_of_several_calls_once(space):
    one, other, last = ({name: random(2, seed + i) for i, name in enumerate(("x", "cond", "uncond"))} for seed in (0, 10, 20))
    settings = dict(momentum=-0.5, norm_threshold=0.0, space=space)
    once = apg_run([(0, one), (1, last)], **settings)
    assert torch.equal(apg_run([(0, other), (0, one), (1, last)], **settings)[-1], once[-1])
    assert not torch.allclose(apg_run([(1, last)], **settings)[-1], once[-1])


def test_apg_keeps_the_average_over_steps_that_are_not_guided():
    one, last = ({name: random(2, seed + i) for i, name in enumerate(("x", "cond", "uncond"))} for seed in (0, 20))
    same = one | {"uncond": one["cond"]}
    first, unguided, after = apg_run([(0, one), (1, same), (2, last)])
    assert torch.equal(unguided, one["cond"])
    assert torch.equal(after, apg_run([(0, one), (2, last)])[-1])


def test_apg_has_a_cfg_of_its_own_where_it_acts_and_the_model_is_guided():
    rules = (APG(start=0.5, scale=9.0),)
    assert [plan_step(rules, i, 4, 1.0, 3.0).cfg for i in range(4)] == [3.0, 3.0, 9.0, 9.0]
    assert [plan_step((*rules, Distilled()), i, 4, 1.0, 3.0).cfg for i in range(4)] == [1.0] * 4


@pytest.mark.parametrize(
    "size", [(16, 1, 1), (3, 1, 7), (128, 1, 1), (128, 2, 1), (128, 3, 5), (3, 17, 33), (3, 5, 1, 9)], ids=str
)
@pytest.mark.parametrize("bands", (1, 2, 8))
def test_the_bands_of_a_latent_of_any_size_are_the_latent(size, bands):
    v = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    close(weighted(v, (0.5,) * bands), 0.5 * v.double())
    assert torch.isfinite(weighted(v, tuple(range(1, bands + 1)))).all()


@pytest.mark.parametrize("alpha", (2.0, 0.1))
def test_momentum_counts_a_step_once_however_often_the_model_is_asked(alpha):
    """Calls `(step, velocity)`: m goes by the first of each step, also while the range leaves steps out."""
    beta, memory, results = 0.25, {}, []
    rule = Momentum(alpha, beta, start=0.5, end=1.0)
    sigmas = {0: 1.0, 1: 0.75, 2: 0.5, 3: 0.25}
    calls = [(0, 1.0), (0, 9.0), (1, 3.0), (2, 4.0), (2, 7.0), (3, 5.0)]
    for index, velocity in calls:
        step, scaled = Step(index, 4, sigmas[index], 1.0), torch.full((1, 1, 1, 1), velocity) * sigmas[index]
        result = rule.transform(ScaledVelocities(scaled, scaled, guided=scaled), step, memory)
        results.append(float(result.guided) / sigmas[index])
    m2 = 0.75 * 3.0 + 0.25 * 1.0
    m3 = 0.75 * 4.0 + 0.25 * m2
    led = [velocity + alpha * (velocity - m) for velocity, m in ((4.0, m2), (7.0, m2), (5.0, m3))]
    assert results == pytest.approx([1.0, 9.0, 3.0, *led])


@pytest.mark.parametrize("rule", (Momentum(), *(APG(space=space) for space in SPACES)))
def test_a_step_without_noise_is_left_out(rule):
    """At σ 0 every prediction is x, as where lcm adds noise to a picture."""
    x, memory, none = random(2, 0), {}, torch.zeros(2, *random(2, 0).shape[1:])
    for index, sigma in enumerate((0.0, 0.5, 0.0, 0.5)):
        cond, uncond = (sigma * random(2, seed) for seed in (index + 1, index + 9)) if sigma else (none, none)
        v = ScaledVelocities(x, cond, uncond, guided=cond if rule.order > COMBINE else None)
        after = rule.transform(v, Step(index, 4, sigma, 4.0), memory)
        assert (after is v) == (sigma == 0.0 or (rule.order > COMBINE and index == 1))
        assert torch.isfinite(stack.combined(after, Step(index, 4, sigma, 4.0))).all()


@pytest.mark.parametrize("sigma", (0.8, 0.0))
def test_what_is_reused_counts_for_the_rules_after_the_combination_too(sigma):
    rules, memories = (CFG(Interval(0.0, 0.5), "reuse"), AutoGuidance(2.0, prompt="both")), defaultdict(dict)
    p = {name: random(2, seed) for seed, name in enumerate(("x", "cond", "uncond", "weak", "weak_uncond"))}
    first = plan_step(rules, 0, 2, sigma, 4.0)
    of_all = ScaledVelocities(p["x"], p["cond"], p["uncond"], {name: p[name] for name in ("weak", "weak_uncond")})
    scaled = 0.5 if sigma else 0.0
    stack.apply(rules, replace(of_all, **({} if sigma else {"uncond": p["cond"]})), first, memories)
    reusing = plan_step(rules, 1, 2, 0.5 * sigma, 4.0, known=first.negatives)
    assert reusing.reuse and reusing.passes == ("cond", "weak")
    ran = ScaledVelocities(p["x"], p["cond"], None, {"weak": p["weak"]})
    rebuilt = {name: p["cond"] - scaled * (p["cond"] - p[name]) for name in ("uncond", "weak_uncond")}
    guided = combine(p["cond"], rebuilt["uncond"], 4.0)
    wanted = guided + (guided - combine(p["weak"], rebuilt["weak_uncond"], 4.0))
    assert torch.allclose(stack.apply(rules, ran, reusing, memories), wanted, atol=1e-5)
