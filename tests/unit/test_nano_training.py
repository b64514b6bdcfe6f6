"""Training of the nano family: captions, padding, and going on after a stop."""

import itertools

import numpy as np
import pytest
import torch
from kleinkit.nano import edits, train, world
from kleinkit.nano.prompts import FIXED, LENGTH, Table

OPTIONS = {
    "stage": 1,
    "steps": 2,
    "until": 2,
    "shares": (0.0, 0.5, 0.5),
    "batch": (2, 2, 2),
    "pads": 2,
    "kinds": edits.KINDS[: edits.PAIR],
    "logit_normal": (1.2, 1.3),
    "rate": 1e-3,
    "report": 100,
    "clean": 1,
    "misnamed": 0.3,
    "mismatched": 0.3,
    "misasked": 0.3,
    "drift": 0.3,
}
NOISE = 0.3
ROWS = int(np.prod(world.COUNTS)) + len(edits.every_sentence()) + 1


@pytest.fixture(scope="module")
def table():
    positions = torch.cat([torch.arange(FIXED), torch.arange(FIXED, LENGTH, 100)])
    return Table(torch.randn(ROWS, len(positions), 192, generator=torch.Generator().manual_seed(0)).half(), positions)


@pytest.fixture
def trained(table, monkeypatch):
    """Weights after training in a folder, for the steps given: `trained(folder, stop_at)`."""
    data = train.training_data()

    def run(folder, stop_at=None):
        monkeypatch.setattr(train, "STATE", folder)
        monkeypatch.setattr(train, "SAVE_SECONDS", 0)
        model = train.new_model()
        train.start(model)

        def loss(model, step):
            if step == stop_at:
                raise KeyboardInterrupt
            return train.base_loss(model, table, step, OPTIONS, data)

        return train.run("base", loss, model, OPTIONS)

    return run


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(trained, tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", stop_at=1)
    stopped = trained(tmp_path / "stopped")
    start = train.new_model()
    train.start(start)
    for one, other in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole.proj_out.weight, start.proj_out.weight)


def test_captions_are_wrong_as_often_as_meant_and_never_held_out():
    scenes, held_out, _ = train.training_data()
    rng = np.random.RandomState(0)
    chosen = scenes[rng.randint(len(scenes), size=4000)]
    captions = train.misname(chosen, NOISE, rng, held_out)
    assert not held_out[tuple(captions.T)].any()
    right = (captions == chosen).mean(0)
    chance = [1 / len(names) for names in world.ATTRIBUTES.values()]
    # Captions that would be held out are drawn again, which leaves a little less noise.
    assert np.all(right > [1 - NOISE * (1 - one) - 0.02 for one in chance])
    assert np.all(right < [1 - NOISE * (1 - one) + 0.06 for one in chance])


def test_each_token_of_padding_stands_for_its_share(table):
    columns, positions, weight = train.some_padding(table, 2, np.random.RandomState(0))
    assert positions[:FIXED].tolist() == list(range(FIXED))
    assert len(columns) - FIXED == 2
    assert 2 * np.exp(weight) == pytest.approx(LENGTH - FIXED)


def test_prompts_have_rows_of_their_own(table):
    scenes = np.array(list(itertools.product(*(range(len(names)) for names in world.ATTRIBUTES.values()))))
    rows = [*table.row(scenes), *table.asked(edits.every_sentence())]
    assert sorted(rows) == list(range(len(table.text) - 1))


@pytest.mark.parametrize("shares, count, references", [((1, 0, 0), 3, 0), ((0, 1, 0), 4, 1), ((0, 0, 1), 5, 2)])
def test_a_batch_has_the_references_of_its_sort(table, shares, count, references):
    options = {**OPTIONS, "shares": shares, "batch": (3, 4, 5)}
    batch = train.batch_of(np.random.RandomState(0), table, 0, options, train.training_data())
    assert batch.clean.shape == (count, 64, 128) and batch.rows.shape == (count,)
    assert [shown.shape for shown in batch.references] == [batch.clean.shape] * references


def test_a_reference_is_seen(table):
    model = train.new_model()
    train.start(model)
    torch.nn.init.normal_(model.proj_out.weight)
    for modulation in model.modules():
        if "Modulation" in type(modulation).__name__:
            torch.nn.init.normal_(modulation.linear.weight, std=0.1)
    x, one, other = torch.randn(3, 1, 64, 128, generator=torch.Generator().manual_seed(0))
    text, positions = table.text[:1].float(), table.positions.float()
    alone, shown, both, swapped = (
        train.velocity(model, x, torch.tensor([0.5]), text, positions, 0.0, references)
        for references in ((), (one,), (one, other), (other, one))
    )
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in itertools.combinations((alone, shown, both, swapped), 2))


def test_latents_and_pictures_are_inverse():
    pictures = world.draw(world.scenes()[0][:8])
    assert np.allclose(train.pictures(train.latents(pictures)), pictures, atol=1e-6)
