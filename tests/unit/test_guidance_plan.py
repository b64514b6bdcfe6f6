"""The plan: what each step does, before it runs."""

from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kleinkit.guidance.adaptive import Adaptive
from kleinkit.guidance.apg import APG
from kleinkit.guidance.auto import AutoGuidance
from kleinkit.guidance.cfg import CFG, SKIP_MODES, Constant, Curve, Diminishing, Interval, Skip, choose_schedule
from kleinkit.guidance.distilled import Distilled
from kleinkit.guidance.fdg import FDG, parse_shares
from kleinkit.guidance.image import ImageCFG
from kleinkit.guidance.plan import plan, plan_step, step_index
from kleinkit.guidance.renorm import Renorm
from kleinkit.guidance.rule import Step
from kleinkit.guidance.skip_layer import SkipLayer, parse_layers
from kleinkit.guidance.zero_star import CFGZeroStar
from kleinkit.scheduler.schedule import Schedule, make

HUNDREDTHS = st.integers(0, 100)


def sigmas(steps):
    return [1.0 - i / steps for i in range(steps + 1)]


def guided(schedule, steps, cfg=4.0):
    return [step.index for step in plan((CFG(schedule),), sigmas(steps), cfg) if "uncond" in step.passes]


class TestSchedules:
    def test_constant_guides_every_step(self):
        assert guided(Constant(), 7) == list(range(7))

    @given(steps=st.integers(1, 200), start=st.integers(0, 99), end=st.integers(1, 100))
    def test_interval(self, steps, start, end):
        if start < end:
            exact = [i for i in range(steps) if Fraction(start, 100) * steps <= i < Fraction(end, 100) * steps]
            assert guided(Interval(start / 100, end / 100), steps) == exact

    @given(steps=st.integers(1, 200), ratio=HUNDREDTHS)
    def test_skip_guides_the_share_of_the_steps(self, steps, ratio):
        k = floor(Fraction(ratio, 100) * steps)
        for mode in SKIP_MODES:
            assert len(guided(Skip(mode, ratio / 100), steps)) == k, mode

    @given(steps=st.integers(1, 200), ratio=HUNDREDTHS)
    def test_skip_as_in_musubi_tuner(self, steps, ratio):
        k = floor(Fraction(ratio, 100) * steps)
        skipped, everything = steps - k, range(steps)
        middle = range((steps - skipped) // 2, (steps - skipped) // 2 + skipped)
        assert guided(Skip("early", ratio / 100), steps) == list(everything[skipped:])
        assert guided(Skip("late", ratio / 100), steps) == list(everything[:k])
        assert guided(Skip("early_late", ratio / 100), steps) == list(everything[skipped // 2 : skipped // 2 + k])
        assert guided(Skip("middle", ratio / 100), steps) == [i for i in everything if i not in middle]
        accumulator, alternate = Fraction(0), []
        for i in everything:
            accumulator += Fraction(ratio, 100)
            if accumulator >= 1:
                accumulator -= 1
                alternate.append(i)
        assert guided(Skip("alternate", ratio / 100), steps) == alternate

    def test_diminishing_falls_to_1_at_the_cutoff(self):
        steps = plan((CFG(Diminishing(0.5)),), sigmas(8), 5.0)
        assert [step.cfg for step in steps] == pytest.approx([5.0, 4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        assert ["uncond" in step.passes for step in steps] == [True] * 4 + [False] * 4

    def test_curve_is_stretched_over_the_steps(self):
        steps = plan((CFG(Curve((5.0, 3.0, 0.0))),), sigmas(9), 7.0)
        assert [step.cfg for step in steps] == pytest.approx(np.interp(np.linspace(0, 2, 9), range(3), (5.0, 3.0, 0.0)))
        assert steps[-1].passes == ("uncond",)
        assert [step.cfg for step in plan((CFG(Curve((2.0, 3.0))),), sigmas(1), 7.0)] == [2.0]
        assert [step.cfg for step in plan((CFG(Curve((2.0, 3.0))),), sigmas(2), 7.0)] == [2.0, 3.0]

    @pytest.mark.parametrize("text", ["5, 3, 0", "5,3,0,", " 5 , 3,, 0 , "])
    def test_a_curve_takes_the_commas_that_layers_take(self, text):
        assert Curve.parse(text) == Curve((5.0, 3.0, 0.0))

    def test_a_step_of_a_curve_reads_two_scales_however_many_there_are(self):
        reads = []

        class Scales(tuple):
            def __getitem__(self, index):
                reads.append(index)
                return super().__getitem__(index)

            def __iter__(self):
                reads.extend(range(len(self)))
                return super().__iter__()

        curve = Curve(Scales(range(100)))
        reads.clear()
        assert curve.cfg(Step(3, 4, 0.5, 7.0)) == 99.0 and len(reads) == 2

    def test_unguided_steps_are_the_positive_or_the_negative(self):
        for unguided, passes in (("conditional", ("cond",)), ("unconditional", ("uncond",))):
            first, second = plan((CFG(Interval(0.0, 0.5), unguided),), sigmas(2), 4.0)
            assert (first.passes, second.passes) == (("cond", "uncond"), passes)


SCALE_PASSES = ((0.0, ("uncond",)), (0.5, ("cond", "uncond")), (1.0, ("cond",)), (4.0, ("cond", "uncond")))


@pytest.mark.parametrize("cfg, passes", SCALE_PASSES)
def test_passes_of_a_scale(cfg, passes):
    assert plan_step((), 0, 4, 1.0, cfg).passes == passes


@pytest.mark.parametrize(
    "rules, cfg, passes",
    [
        ((CFGZeroStar(zero_init_steps=1),), 4.0, ()),
        ((CFGZeroStar(zero_init_steps=1), SkipLayer(), ImageCFG(2.0)), 4.0, ()),
        ((CFGZeroStar(zero_init_steps=0),), 1.0, ("cond",)),
        ((CFGZeroStar(zero_init_steps=0),), 0.0, ("cond", "uncond")),
        ((SkipLayer(),), 1.0, ("cond", "skip")),
        ((SkipLayer(),), 4.0, ("cond", "uncond", "skip")),
        ((SkipLayer(), CFG(Interval(0.5, 1.0), "unconditional")), 4.0, ("cond", "uncond", "skip")),
        ((ImageCFG(2.0),), 1.0, ("cond", "uncond", "image")),
        ((ImageCFG(2.0),), 4.0, ("cond", "uncond", "image")),
        ((ImageCFG(1.0),), 4.0, ("cond", "uncond")),
        ((ImageCFG(2.0), CFG(Interval(0.5, 1.0))), 4.0, ("cond",)),
        ((Renorm(),), 1.0, ("cond",)),
        ((Renorm(), CFG(Interval(0.5, 1.0), "unconditional")), 4.0, ("uncond",)),
        ((Renorm(strength=0.05),), 0.0, ("cond", "uncond")),
        ((Renorm(strength=0.0),), 0.0, ("uncond",)),
        ((AutoGuidance(prompt="both"),), 0.0, ("cond", "uncond", "weak_uncond")),
        ((AutoGuidance(prompt="both"),), 1.0, ("cond", "weak")),
        ((Distilled(), SkipLayer()), 8.0, ("cond", "skip")),
        ((Distilled(), CFGZeroStar(zero_init_steps=0), Renorm()), 8.0, ("cond",)),
    ],
)
def test_passes_of_the_first_of_eight_steps(rules, cfg, passes):
    for order in (rules, rules[::-1]):
        assert plan_step(order, 0, 8, 1.0, cfg).passes == passes


def test_zero_init_steps_count_from_the_run_s_first():
    assert [step.zero for step in plan((CFGZeroStar(zero_init_steps=2),), sigmas(4), 4.0)] == [True, True, False, False]


def passes_of(*rules, steps=10, cfg=4.0):
    return [step.passes for step in plan(rules, sigmas(steps), cfg)]


BOTH, ONE = ("cond", "uncond"), ("cond",)


@pytest.mark.parametrize("unguided", ("reuse", "extrapolate"))
class TestReuse:
    @pytest.mark.parametrize("mode", SKIP_MODES)
    def test_off_the_schedule_one_pass_runs_at_the_schedule_s_cfg(self, mode, unguided):
        guided_too = {0, *guided(Skip(mode, 0.4), 10)}
        steps = plan((CFG(Skip(mode, 0.4), unguided),), sigmas(10), 4.0)
        assert [step.passes for step in steps] == [BOTH if i in guided_too else ONE for i in range(10)]
        assert [step.reuse for step in steps] == [i not in guided_too for i in range(10)]
        assert all(step.guided and step.cfg == 4.0 and step.negatives == ("uncond",) for step in steps)

    def test_zero_init_leaves_nothing_to_reuse(self, unguided):
        rules = CFG(Skip("late", 0.0), unguided), CFGZeroStar(zero_init_steps=2)
        assert passes_of(*rules) == [(), (), BOTH, *[ONE] * 7]

    def test_every_pass_of_the_negative_s_prompt_is_reused_and_no_other(self, unguided):
        rules = CFG(Interval(0.0, 0.2), unguided), ImageCFG(2.0)
        assert passes_of(*rules)[:3] == [("cond", "uncond", "image")] * 2 + [ONE]
        rules = CFG(Interval(0.0, 0.2), unguided), SkipLayer(end=1.0)
        assert passes_of(*rules)[1:3] == [("cond", "uncond", "skip"), ("cond", "skip")]

    def test_where_nothing_is_to_be_guided_nothing_is_reused(self, unguided):
        for rules, cfg in (((), 1.0), ((Distilled(),), 5.0)):
            steps = plan((CFG(Interval(0.0, 0.5), unguided), *rules), sigmas(4), cfg)
            assert [step.passes for step in steps] == [ONE] * 4 and not any(step.reuse for step in steps)
        assert passes_of(CFG(Interval(0.0, 0.5), unguided), cfg=0.0) == [("uncond",)] * 10

    def test_a_threshold_of_minus_1_is_met_before_the_run(self, unguided):
        rules = CFG(unguided=unguided), Adaptive(-1.0, every=4)
        assert passes_of(*rules) == [BOTH, *[ONE] * 4] * 2 and not rules[1].decides
        assert passes_of(rules[0], Adaptive(-0.999, every=4)) == [BOTH] * 10

    def test_adaptive_reuses_once_it_has_decided(self, unguided):
        rules, observed = (CFG(unguided=unguided), Adaptive(0.9)), {Adaptive.node: 1.0}
        assert plan_step(rules, 3, 8, 0.5, 4.0, observed).passes == BOTH
        step = plan_step(rules, 3, 8, 0.5, 4.0, observed, known={"uncond"})
        assert step.passes == ONE and step.reuse and step.cfg == 4.0


@given(steps=st.integers(1, 60), start=HUNDREDTHS, every=st.integers(0, 9))
def test_adaptive_begins_where_it_is_told_and_measures_anew(steps, start, every):
    first = -(-start * steps // 100)
    rules = (Adaptive(0.9, start / 100, every),)
    for i in range(steps):
        guided_anyway = i < first or (every and (i - first) % (every + 1) == 0)
        passes = plan_step(rules, i, steps, 0.5, 4.0, {Adaptive.node: 1.0}).passes
        assert passes == (BOTH if guided_anyway else ONE)


def test_adaptive_decides_from_what_was_observed():
    rules = (Adaptive(0.9),)
    for observed, passes in (
        ({}, ("cond", "uncond")),
        ({Adaptive.node: 0.89}, ("cond", "uncond")),
        ({Adaptive.node: 0.9}, ("cond",)),
    ):
        assert plan_step(rules, 3, 8, 0.5, 4.0, observed).passes == passes


DESCENDING = st.lists(
    st.floats(0.01, 1.0, allow_subnormal=False), min_size=1, max_size=30, unique_by=lambda s: round(s, 4)
).map(lambda found: [*sorted(found, reverse=True), 0.0])


class TestStepIndex:
    @given(DESCENDING)
    def test_at_its_own_sigma(self, run):
        assert [step_index(sigma, run) for sigma in run[:-1]] == list(range(len(run) - 1))

    @given(DESCENDING, st.floats(0.05, 0.95))
    def test_between_two_sigmas_belongs_to_the_first(self, run, share):
        for i in range(len(run) - 1):
            between = run[i] + (run[i + 1] - run[i]) * share
            assert step_index(between, run) == i

    def test_beyond_the_ends(self):
        assert step_index(1.1, sigmas(4)) == 0
        assert step_index(0.0, sigmas(4)) == 3

    def test_rounding_of_a_sampler_s_own_arithmetic(self):
        run = [float(np.float32(s)) for s in sigmas(50)]
        for i, sigma in enumerate(run[:-1]):
            for noise in (1 - 3e-7, 1 + 3e-7):
                assert step_index(sigma * noise, run) == i

    def test_equal_neighbours_are_told_apart_by_the_call_before(self):
        run = [1.0, 0.5, 0.5, 0.5, 0.2, 0.0]
        index, indices = None, []
        for sigma in run[:-1]:
            index = step_index(sigma, run, index)
            indices.append(index)
        assert indices == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("side", (1024, 2048, 4096, 8192, 16384))
    @pytest.mark.parametrize("steps", (4, 20, 50))
    def test_sigmas_that_lie_closer_than_rounding(self, side, steps):
        # The larger the picture, the closer its first sigmas are to 1: down to neighbouring floats.
        run = make(Schedule(steps=steps), (side // 16) ** 2)[0].tolist()
        index, indices = None, []
        for sigma in run[:-1]:
            index = step_index(sigma, run, index)
            indices.append(index)
        assert indices == list(range(steps))

    @pytest.mark.parametrize("run", [
        [0.0, 0.2, 0.5, 0.9, 1.0],
        [1.0, 0.9, 0.7, 0.4, 0.7, 0.4, 0.2, 0.0],
    ])  # fmt: skip
    def test_runs_that_rise_or_begin_again(self, run):
        index, indices = None, []
        for sigma, after in pairwise(run):
            for called in (sigma, (sigma + after) / 2):
                index = step_index(called, run, index)
                indices.append(index)
        assert indices == [i for i in range(len(run) - 1) for _ in range(2)]

    def test_a_call_again_at_a_lone_sigma_is_the_same_step(self):
        assert [step_index(0.75, sigmas(4), previous) for previous in (None, 0, 1)] == [1, 1, 1]


class TestLayers:
    @pytest.mark.parametrize(
        "text, layers",
        [
            ("9", (9,)),
            ("7-9, 12", (7, 8, 9, 12)),
            ("", ()),
            (" 3 , 1,1", (1, 3)),
            ("0-19", tuple(range(20))),
            ("2 - 2", (2,)),
            ("９", (9,)),
        ],
    )
    def test_good(self, text, layers):
        assert parse_layers("single_layers", text, 20) == layers

    @pytest.mark.parametrize("text", ("a", "-1", "3-1", "99", "20", "1;2", "1.5", "0-20", "1 2", "9" * 5000, None, 0, [0]))
    def test_bad_says_what_is_valid(self, text):
        with pytest.raises(ValueError, match="^Expected `single_layers` to be layers of this model, 0 to 19 .*but got "):
            parse_layers("single_layers", text, 20)

    def test_a_model_without_such_layers(self):
        with pytest.raises(ValueError, match="^Expected `single_layers` to be empty"):
            parse_layers("single_layers", "0", 0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Interval(0.5, 0.5), "`end` to be above `start`"),
        (lambda: Interval(0.6, 0.5), "`end` to be above `start`"),
        (lambda: Interval(-0.1, 0.5), "`start` to be between 0.0 and 1.0"),
        (lambda: SkipLayer(start=0.7, end=0.3), "`end` to be above `start`"),
        (lambda: Interval(0.0, float("nan")), "`end`"),
        (lambda: Skip("first", 0.5), "`mode` to be one of early"),
        (lambda: Skip("late", 1.5), "`guided_ratio`"),
        (lambda: Diminishing(0.0), "`cutoff`"),
        (lambda: Curve.parse(""), "`scales` to be numbers"),
        (lambda: Curve.parse(" , "), "`scales` to be numbers"),
        (lambda: Curve.parse("5, x"), "`scales` to be numbers"),
        (lambda: Curve.parse("5, nan"), "`scales` to be numbers"),
        (lambda: Curve.parse("5, -1"), "`scales` to be numbers"),
        (lambda: Curve.parse("1e9"), "`scales` to be numbers"),
        (lambda: choose_schedule("sometimes"), "`schedule` to be one of constant, interval"),
        (lambda: choose_schedule("skip", end=0.5), r"`schedule\.end` to be absent \(skip takes mode, guided_ratio\)"),
        (lambda: choose_schedule("constant", end=0.5), r"absent \(constant takes no input\)"),
        (lambda: CFG(unguided="neither"), "`unguided` to be one of"),
        (lambda: CFGZeroStar(zero_init_steps=-1), "`zero_init_steps`"),
        (lambda: Renorm("row"), "`mode` to be one of global"),
        (lambda: Renorm(strength=2.0), "`strength`"),
        (lambda: ImageCFG(float("inf")), "`image_scale`"),
        (lambda: APG(space="latent"), "`space` to be one of denoised, velocity"),
        *(
            (lambda shares=shares: FDG(shares), "`shares` to be 1 to 8 numbers between 0 and 10")
            for shares in ((), (1.0,) * 9, (10.1,), (-0.1,), (float("nan"),))
        ),
        (lambda: parse_shares("1, x"), "`shares` to be 1 to 8 numbers between 0 and 10"),
        (lambda: Adaptive(float("nan")), "`threshold`"),
    ],
)
def test_bad_settings_name_the_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shares", ["0", "10, 0, 10, 0, 10, 0, 10, 0"])
def test_shares_up_to_their_limits(shares):
    assert FDG(parse_shares(shares)).shares == tuple(map(float, shares.split(",")))
