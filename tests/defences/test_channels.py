"""Every mechanism against its own published law: what leaves follows it, and the truth is what explains it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from scipy import stats

from cutlayer.audit.scene import Scene
from cutlayer.defences.defence import MECHANISMS, build_channel, build_defence
from cutlayer.defences.exponential import gamma_limit
from cutlayer.defences.positions import History, Positions
from cutlayer.defences.scale import median_norm
from cutlayer.errors import InputError
from cutlayer.models.parts import load_client
from cutlayer.types import Cut, Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MATCHED = [
    "none", "topk:keep=0.25", "topk:keep=1", "quantise:bits=8", "quantise:bits=4", "quantise:bits=2", "clip:relative=0.5",
    "lowrank:rank=12", "lowrank:rank=12,basis=principal",
]  # fmt: skip
COINS = ["dropout:p=0.5", "quantise:bits=8,stochastic=true", "quantise:bits=4,stochastic=true"]
NOISE = ["gaussian:relative=0.5", "laplace:relative=0.5", "laplace:scale=0.5,clip=4", "dchi:relative=0.5"]
SHUFFLED = ["permute:axis=columns"]
RANDOM = [*COINS, *NOISE, "quantise:bits=2,stochastic=true"]

IDS = [7, 23, 90, 23, 41, 64]
WIDTH = 64
ROW = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def scene(tiny: Callable[[str], Path]) -> Scene:
    directory = tiny("llama")
    cut = Cut.parse("2:-2", layers=6)
    return Scene(directory, cut, load_client(directory, cut, torch.float32))


def secret(i: int) -> Secret:
    return Secret(i.to_bytes(4, "little") * 8)


def rows(spec: str, hidden: torch.Tensor, i: int = 0) -> torch.Tensor:
    """Release hidden states [T, D] at T positions of one session."""
    return build_defence(spec, secret(i)).release(hidden, History().extend(0, range(len(hidden))))


def test_all_registered_mechanisms_are_tested_here() -> None:
    """Those with pages of tests of their own aside."""
    ours = {spec.partition(":")[0] for spec in (*MATCHED, *SHUFFLED, *RANDOM)}
    assert ours == set(MECHANISMS.names()) - {"pripert"}
    assert all(MECHANISMS.get(name).card.name == name for name in ours)


@pytest.mark.parametrize("codec", ["fp32", "bf16"])
@pytest.mark.parametrize("sessions", [1, 5])
@pytest.mark.parametrize("spec", [*MATCHED, *SHUFFLED, *RANDOM])
def test_the_truth_is_accepted_and_beats_far_candidates(scene: Scene, spec: str, sessions: int, codec: str) -> None:
    """Against every token of the vocabulary, computed in one batch: other rounding than the victim's forward."""
    setting = scene.under(spec, codec)
    released = setting.observe(IDS, [secret(i) for i in range(sessions)]).released  # [N, T, D]
    for at, truth in enumerate(IDS):
        sequences = torch.tensor([[*IDS[:at], token] for token in range(101)])
        candidates = setting.hidden(sequences)[:, -1]  # [V, D]
        score = setting.channel.log_likelihood(released[:, at], candidates)
        accepted = setting.channel.accepts(released[:, at], candidates)
        distance = (candidates - candidates[truth]).norm(dim=-1)
        assert score.shape == accepted.shape == (101,)
        assert bool(accepted[truth])
        assert bool((score[truth] > score[distance > distance.median()]).all())
        if setting.channel.exact:
            assert score.argmax() == truth
            assert accepted.sum() == 1


@pytest.mark.parametrize("spec", [*COINS, *SHUFFLED, *NOISE])
def test_the_truth_is_never_rejected_by_bad_luck(scene: Scene, spec: str) -> None:
    setting = scene.under(spec)
    hidden = setting.hidden(torch.tensor([IDS]))[0]
    for sessions in (1, 2, 40):
        for start in range(0, 40, sessions):
            secrets = [secret(1000 * sessions + start + i) for i in range(sessions)]
            released = setting.observe(IDS, secrets).released
            assert all(setting.channel.accepts(released[:, at], hidden[at : at + 1]) for at in range(len(IDS)))


@pytest.mark.parametrize("shape", [6.4, 16, 576, 16 * 576])
def test_the_limit_of_acceptance_is_what_it_says(shape: float) -> None:
    assert stats.gamma(shape).sf(gamma_limit(shape)) == pytest.approx(1e-6, rel=0.4)


def test_noise_follows_its_law() -> None:
    """Kolmogorov–Smirnov over 2000 positions: lengths, single coordinates and, for one direction per token, directions."""
    hidden = ROW.double().repeat(2000, 1)
    gaussian = (rows("gaussian:sigma=0.7", hidden) - hidden).numpy()
    laplace = (rows("laplace:scale=0.7", hidden) - hidden).numpy()
    metric = (rows("dchi:eta=9", hidden) - hidden).numpy()
    length = (metric**2).sum(1) ** 0.5
    half = (WIDTH - 1) / 2  # a coordinate of a uniform unit vector, mapped to [0, 1], is Beta(½(D−1), ½(D−1))
    assert stats.kstest((gaussian**2).sum(1) / 0.49, stats.chi2(WIDTH).cdf).pvalue > 1e-3
    assert stats.kstest(abs(laplace).sum(1) / 0.7, stats.gamma(WIDTH).cdf).pvalue > 1e-3
    assert stats.kstest(laplace.flatten()[::7], stats.laplace(scale=0.7).cdf).pvalue > 1e-3
    assert stats.kstest(length * 9, stats.gamma(WIDTH).cdf).pvalue > 1e-3
    for i in (0, 17, WIDTH - 1):
        assert stats.kstest((metric[:, i] / length + 1) / 2, stats.beta(half, half).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    "spec", ["dropout:p=0.3", "quantise:bits=2,stochastic=true", "quantise:bits=4,stochastic=true"]
)
def test_coins_leave_the_mean_where_it_was(spec: str) -> None:
    released = rows(spec, ROW.double().repeat(4000, 1))
    error = released.mean(0) - ROW.double()
    assert bool((error.abs() <= 5 * released.std(0) / math.sqrt(4000) + 1e-9).all())


def _gaussian(other: torch.Tensor) -> float:
    return float((other - ROW).square().sum()) / (2 * 0.7**2)


def _laplace(other: torch.Tensor) -> float:
    steps = (other - ROW).abs() / 0.7
    return float((steps + torch.exp(-steps) - 1).sum())


def _rounding(other: torch.Tensor) -> float:
    unit = ROW.abs().max() / 7
    rounds = ROW.abs() < ROW.abs().max()  # the largest is a level itself
    p, q = (ROW[rounds] / unit) % 1, (other[rounds] / unit) % 1
    return float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum())


def _elsewhere(scale: float) -> torch.Tensor:
    return ROW + scale * torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))


def _in_the_same_cells() -> torch.Tensor:
    """Another row of the same scale whose coordinates lie between the same levels."""
    unit = ROW.abs().max() / 7
    share = torch.rand(WIDTH, generator=torch.Generator().manual_seed(5)) * 0.8 + 0.1
    moved = ((ROW / unit).floor() + share) * unit
    return torch.where(ROW.abs() == ROW.abs().max(), ROW, moved)


@pytest.mark.parametrize(
    ("spec", "other", "divergence"),
    [
        ("gaussian:sigma=0.7", _elsewhere(0.2), _gaussian),
        ("laplace:scale=0.7", _elsewhere(0.2), _laplace),
        ("quantise:bits=4,stochastic=true", _in_the_same_cells(), _rounding),
        ("dchi:eta=9", _elsewhere(0.5), None),
        ("dropout:p=0.9", _elsewhere(0.2), None),
    ],
)
def test_likelihood_ratios_average_to_the_divergence(
    spec: str, other: torch.Tensor, divergence: Callable[[torch.Tensor], float] | None
) -> None:
    """Over many sessions the mean log-likelihood ratio of truth and another row is the Kullback–Leibler divergence."""
    channel = build_channel(spec)
    released = rows(spec, ROW.repeat(3000, 1))  # [positions as sessions, D]
    both = torch.stack([ROW, other])
    scores = torch.stack([channel.log_likelihood(row[None], both) for row in released])  # [3000, 2]
    ratio = scores[:, 0] - scores[:, 1]
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert float(ratio.mean()) > 5 * error
    if "dropout" not in spec:  # there sessions are pooled into one comparison
        together = channel.log_likelihood(released, both)
        assert float(together[0] - together[1]) == pytest.approx(float(ratio.sum()), rel=1e-3)
    if divergence is not None:
        assert float(ratio.mean()) == pytest.approx(divergence(other), abs=4 * error)


@pytest.mark.parametrize("spec", [*MATCHED, *SHUFFLED, *RANDOM])
def test_resends_repeat_in_any_chunking_and_sessions_differ(scene: Scene, spec: str) -> None:
    hidden = scene.hidden(torch.tensor([IDS]))[0]
    defence = build_defence(spec, secret(1), scene.head)
    history = History()
    whole = defence.release(hidden, history.extend(0, IDS))
    parts = [defence.release(hidden[i : i + 2], history.extend(i, IDS[i : i + 2])) for i in range(0, len(IDS), 2)]
    other = build_defence(spec, secret(2), scene.head).release(hidden, history.extend(0, IDS))
    assert torch.equal(whole, defence.release(hidden, history.extend(0, IDS)))
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)
    assert torch.equal(whole, other) == (spec in MATCHED)
    assert whole.dtype is hidden.dtype
    again = build_defence(defence.describe(), secret(1), scene.head)
    assert torch.equal(whole, again.release(hidden, history.extend(0, IDS)))


@pytest.mark.parametrize("spec", RANDOM)
def test_fresh_sessions_average_away_and_a_repeated_one_does_not(scene: Scene, spec: str) -> None:
    if "clip" in spec:
        spec = "laplace:scale=0.5"  # what averages away is the noise, not the clip
    setting = scene.under(spec)
    hidden = setting.hidden(torch.tensor([IDS]))[0]

    def error(secrets: list[Secret]) -> float:
        return float((setting.channel.estimate(setting.observe(IDS, secrets).released) - hidden).norm())

    once = error([secret(0)])
    assert error([secret(0)] * 64) == pytest.approx(once, rel=1e-3)
    assert error([secret(i) for i in range(64)]) < once / 4


def test_the_median_estimates_laplace_noise_better_than_the_mean() -> None:
    released = torch.stack([rows("laplace:scale=1", ROW.repeat(32, 1), i) for i in range(33)])  # [N, T, D]
    channel = build_channel("laplace:scale=1")
    assert (channel.estimate(released) - ROW).norm() < 0.9 * (released.mean(0) - ROW).norm()
    assert torch.equal(channel.estimate(released[:2]), released[:2].sum(0) / 2)


def test_only_what_left_counts_as_transmitted() -> None:
    hidden = ROW.repeat(8, 1)
    for spec, share in (
        ("topk:keep=0.25", 0.25),
        ("quantise:bits=4", 1.0),
        ("lowrank:rank=3", 1.0),
        ("dchi:eta=1", 1.0),
    ):
        released = rows(spec, hidden)[None]
        assert float(build_channel(spec).transmitted(released).float().mean()) == share
    channel = build_channel("dropout:p=0.8")
    dropped = torch.stack([rows("dropout:p=0.8", hidden, i) for i in range(5)])  # [N, T, D]
    known = channel.transmitted(dropped)
    assert float(known.float().mean()) == pytest.approx(1 - 0.8**5, abs=0.07)
    assert torch.allclose(channel.estimate(dropped), hidden.where(known, 0.0))


def test_dropping_everything_leaves_every_candidate_possible() -> None:
    channel = build_channel("dropout:p=0.999")
    nothing, candidates = torch.zeros(1, WIDTH), torch.stack([ROW, -ROW])
    assert bool(channel.accepts(nothing, candidates).all())
    assert torch.equal(*channel.log_likelihood(nothing, candidates))


def test_top_k_keeps_the_largest_and_forgives_a_swap_at_the_edge() -> None:
    row = torch.tensor([3.0, -2.0, 2.0 - 1e-6, 0.5])
    swapped = torch.tensor([3.0, -2.0 + 2e-6, 2.0, 0.5])
    released = rows("topk:keep=0.5", row[None])
    assert torch.equal(released, torch.tensor([[3.0, -2.0, 0.0, 0.0]]))
    wrong = torch.tensor([3.0, -2.0, 2.5, 0.5])  # its third coordinate would have left
    accepted = build_channel("topk:keep=0.5").accepts(released, torch.stack([row, swapped, wrong]))
    assert accepted.tolist() == [True, True, False]


@pytest.mark.parametrize("stochastic", ["false", "true"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantisation_uses_its_levels_and_forgives_a_border(bits: int, stochastic: str) -> None:
    spec = f"quantise:bits={bits},stochastic={stochastic}"
    most = 2 ** (bits - 1) - 1
    unit = 1 / most
    row = torch.cat([torch.tensor([1.0, -1.0, (1 + 1e-7) * unit / 2, 0.0]), torch.linspace(-1, 1, 4000)])
    released = rows(spec, row[None])
    levels = released / unit
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert len(levels.round().unique()) == 2 * most + 1
    assert float((released - row).abs().max()) <= unit * (1.0 if stochastic == "true" else 0.5) + 1e-6
    across = row.clone()
    across[2] = (1 - 1e-6) * unit / 2  # the other side of the border
    other_scale = row * 1.01
    accepted = build_channel(spec).accepts(released, torch.stack([row, across, other_scale]))
    assert accepted.tolist() == [True, True, False]


def test_acceptance_is_not_called_unique_where_too_little_is_left() -> None:
    exact = {
        spec: build_channel(spec).exact
        for spec in ("quantise:bits=2", "quantise:bits=4", "lowrank:rank=3", "lowrank:rank=4")
    }
    assert list(exact.values()) == [False, True, False, True]


def test_quantisation_survives_a_row_of_zeros() -> None:
    for stochastic in ("false", "true"):
        assert torch.equal(rows(f"quantise:bits=4,stochastic={stochastic}", torch.zeros(2, 8)), torch.zeros(2, 8))


def test_clipping_keeps_the_direction() -> None:
    released = rows("clip:norm=2", torch.stack([ROW, 0.01 * ROW]))
    assert float(released[0].norm()) == pytest.approx(2)
    assert float(torch.cosine_similarity(released[0], ROW, dim=0)) == pytest.approx(1)
    assert torch.equal(released[1], 0.01 * ROW)


def test_low_rank_is_a_projection_of_that_rank(scene: Scene) -> None:
    hidden = scene.hidden(torch.randint(101, (8, 16), generator=torch.Generator().manual_seed(9))).flatten(0, 1)
    kept = {}
    for basis in ("random", "principal"):
        project = build_defence(f"lowrank:rank=12,basis={basis}", secret(0), scene.head)
        once = project.release(hidden, History().extend(0, range(len(hidden))))
        assert torch.linalg.matrix_rank(once, rtol=1e-5) == 12
        assert torch.allclose(project.release(once, History().extend(0, range(len(hidden)))), once, atol=1e-5)
        kept[basis] = float(once.square().sum() / hidden.square().sum())
    assert kept["random"] == pytest.approx(12 / 32, abs=0.1)
    assert kept["principal"] > kept["random"] + 0.1
    assert not torch.equal(rows("lowrank:rank=3", ROW[None]), rows("lowrank:rank=3,seed=1", ROW[None]))


@pytest.mark.parametrize("relative", [0.25, 2.0])
@pytest.mark.parametrize("name", ["gaussian", "laplace", "dchi", "clip"])
def test_relative_strengths_are_ratios_of_lengths(scene: Scene, name: str, relative: float) -> None:
    length, width = median_norm(scene.head, name)
    # far longer than any noise, so that a clip acts and noise is what is left of the difference
    hidden = torch.full((400, width), 1e3, dtype=torch.float64)
    positions = History().extend(0, range(400))
    released = build_defence(f"{name}:relative={relative}", secret(0), scene.head).release(hidden, positions)
    measured = released if name == "clip" else released - hidden
    assert float(measured.square().sum(-1).mean().sqrt()) == pytest.approx(relative * length, rel=0.05)


@pytest.mark.parametrize(
    ("spec", "option"),
    [
        ("laplace", "scale"), ("laplace:scale=1,relative=1", "relative"), ("laplace:scale=0", "scale"),
        ("laplace:scale=nan", "scale"), ("laplace:scale=1,clip=-1", "clip"), ("laplace:sigma=1", "sigma"),
        ("laplace:relative=1", "layers"), ("dchi", "eta"), ("dchi:eta=1,relative=1", "relative"), ("dchi:eta=-1", "eta"),
        ("dchi:relative=1", "layers"), ("topk", "keep"), ("topk:keep=0", "keep"), ("topk:keep=1.5", "keep"),
        ("dropout", "`p`"), ("dropout:p=1", r"\.p"), ("dropout:p=0", r"\.p"), ("quantise", "bits"),
        ("quantise:bits=3", "bits"), ("quantise:bits=4,stochastic=perhaps", "stochastic"), ("clip", "norm"),
        ("clip:norm=1,relative=1", "relative"), ("clip:relative=1", "layers"), ("lowrank", "rank"), ("lowrank:rank=0", "rank"),
        ("lowrank:rank=2,basis=learned", "basis"), ("lowrank:rank=2,basis=principal", "layers"),
        ("permute", "axis"), ("permute:axis=diagonal", "axis"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_by_name_on_both_sides(spec: str, option: str) -> None:
    with pytest.raises(InputError, match=option):
        build_defence(spec, secret(0))
    with pytest.raises(InputError, match=option):
        build_channel(spec)


def test_a_rank_beyond_the_hidden_size_is_refused(scene: Scene) -> None:
    for spec in ("lowrank:rank=33", "lowrank:rank=33,basis=principal"):
        with pytest.raises(InputError, match="rank 33 exceeds the hidden size 32"):
            build_defence(spec, secret(0), scene.head)
    with pytest.raises(InputError, match="rank 65 exceeds the hidden size 64"):
        build_defence("lowrank:rank=65", secret(0)).release(ROW[None], Positions([b"0"], lambda row: [0]))
    with pytest.raises(InputError, match="seed"):
        build_defence("lowrank:rank=3,basis=principal,seed=1", secret(0), scene.head)
