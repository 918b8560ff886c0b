"""PriPert: perturbations have the length and the directions they claim, depend on the prefix alone, and are no secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from cutlayer.audit.pripert_calibration import calibrate_directions, sensitivity
from cutlayer.defences.defence import build_channel, build_defence
from cutlayer.defences.positions import History
from cutlayer.defences.pripert_directions import head_directions, principal, public_ids, response, write_directions
from cutlayer.defences.pripert_local import Jacobian, LocalMap, differentiable
from cutlayer.defences.pripert_readings import Backprop, Gradient, Power, attack_rate, unrolled
from cutlayer.errors import InputError
from cutlayer.models.parts import load_body, load_client
from cutlayer.types import Cut, Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cutlayer.models.parts import Head

SECRET = Secret(b"s" * 32)
IDS = [5, 17, 80, 9]
READINGS = ("static", "power", "gradient", "backprop", "decoy")
BETA = 0.4


@pytest.fixture(scope="module")
def directory(tiny: Callable[[str], Path]) -> Path:
    return tiny("llama")


@pytest.fixture(scope="module")
def head(directory: Path) -> Head:
    return load_client(directory, Cut.parse("2:-2", 6), torch.float32).head


def spec(reading: str) -> str:
    """A quick setting of a reading; what its numbers buy is tested by itself."""
    cheap = {
        "static": ",rank=8",
        "power": ",steps=2,solves=3",
        "gradient": ",steps=1,unroll=2",
        "backprop": ",steps=3",
        "decoy": "",
    }
    return f"pripert:reading={reading},beta={BETA}{cheap[reading]}"


def states(head: Head, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        hidden: torch.Tensor = head(torch.tensor([ids]), head.new_cache())[0]
    return hidden


def released(head: Head, setting: str, ids: list[int] = IDS, secret: Secret = SECRET) -> torch.Tensor:
    with torch.inference_mode():
        return build_defence(setting, secret, head).release(states(head, ids), History().extend(0, ids))


def jacobian(head: Head, ids: list[int]) -> torch.Tensor:
    """∂h_t / ∂e_t of the last position, [D, D], through whole forwards: an independent way to compute it."""
    with torch.inference_mode(False):
        table = head.shell.get_input_embeddings()(torch.tensor([ids]))  # [1, T, D]

        def last(embedding: torch.Tensor) -> torch.Tensor:
            inputs = torch.cat([table[0, :-1], embedding[None]])[None]
            output: torch.Tensor = head.shell.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            return output[0, -1]

        matrix: torch.Tensor = torch.autograd.functional.jacobian(last, table[0, -1])
    return matrix


def amplified(matrix: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """‖J⁺_λ δ‖ / ‖δ‖ of directions [D, C], as a converged attack sees it; [C]."""
    damping = (1e-3 * torch.linalg.matrix_norm(matrix, 2)) ** 2
    inverse = torch.linalg.solve(matrix.T @ matrix + damping * torch.eye(len(matrix)), matrix.T)
    return (inverse @ directions).norm(dim=0) / directions.norm(dim=0)


def at_random(count: int, width: int = 32) -> torch.Tensor:
    return normalize(torch.randn(width, count, generator=torch.Generator().manual_seed(7)), dim=0)


def test_products_with_the_jacobian_agree_with_whole_forwards(head: Head) -> None:
    matrix = jacobian(head, IDS)
    vector = at_random(1)[:, 0]
    with torch.inference_mode():
        local = LocalMap(head, torch.tensor([IDS]))
        assert torch.allclose(local(local.embedding)[0], states(head, IDS)[-1], atol=1e-4)
        with differentiable():
            products = Jacobian(local)
            assert torch.allclose(products.push(vector), matrix @ vector, rtol=1e-3, atol=1e-3)
            assert torch.allclose(products.pull(vector), matrix.T @ vector, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reading", READINGS)
def test_every_perturbation_is_beta_times_as_long_as_its_state(head: Head, reading: str) -> None:
    hidden = states(head, IDS)
    ratio = (released(head, spec(reading)) - hidden).norm(dim=-1) / hidden.norm(dim=-1)
    assert torch.allclose(ratio, torch.full_like(ratio, BETA), rtol=1e-4)


@pytest.mark.parametrize("reading", READINGS)
def test_the_same_prefix_gives_the_same_bits_in_any_chunking_and_resent(head: Head, reading: str) -> None:
    hidden = states(head, IDS)
    defence = build_defence(spec(reading), SECRET, head)
    history = History()
    with torch.inference_mode():
        whole = defence.release(hidden, history.extend(0, IDS))
        pieces = [defence.release(hidden[a:b], history.extend(a, IDS[a:b])) for a, b in ((0, 1), (1, 3), (3, 4))]
        resent = defence.release(hidden[2:], history.extend(2, IDS[2:]))
    assert torch.equal(whole, torch.cat(pieces))
    assert torch.equal(whole[2:], resent)


@pytest.mark.parametrize("reading", READINGS)
def test_another_session_or_prefix_perturbs_otherwise(head: Head, reading: str) -> None:
    ours = released(head, spec(reading))
    others = [released(head, spec(reading), secret=Secret(bytes([i]) * 32)) for i in range(2)]
    assert any(not torch.allclose(ours, other, rtol=1e-3) for other in others)
    longer = [8, *IDS[:2]]
    moved = released(head, spec(reading), longer)[1:] - states(head, longer)[1:]
    assert not torch.allclose(moved, (ours - states(head, IDS))[:2], rtol=1e-3)


def test_static_noise_lies_in_its_directions(head: Head) -> None:
    basis = head_directions(head, 8)
    noise = released(head, spec("static")) - states(head, IDS)
    assert (noise - noise @ basis @ basis.T).norm() < 1e-4 * noise.norm()
    assert (
        torch.linalg.matrix_rank(released(head, spec("static"), list(range(40))) - states(head, list(range(40)))) >= 8
    )


def test_static_directions_amplify_more_than_random_ones(head: Head) -> None:
    """By exact Jacobians at tokens the calibration never saw: the mean response is inverted, as the card says."""
    unseen = torch.randint(101, (24, 8), generator=torch.Generator().manual_seed(5)).tolist()
    exact = torch.stack([jacobian(head, ids) for ids in unseen])
    inverse = torch.linalg.inv((exact @ exact.mT).mean(0))

    def gain(directions: torch.Tensor) -> torch.Tensor:
        return (directions * (inverse @ directions)).sum(0).sqrt()  # [C]

    assert gain(head_directions(head, 4)).mean() > gain(at_random(200)).max()


def test_calibrated_response_is_the_mean_of_exact_ones(head: Head) -> None:
    ids = public_ids(101)[:2, :4]
    exact = torch.stack([jacobian(head, row[: t + 1].tolist()) for row in ids for t in (1, 2, 3)]).double()
    probed = response(head, ids.repeat(100, 1), tokens=600)

    def distance(expected: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_norm(probed - expected) / torch.linalg.matrix_norm(expected)

    assert distance((exact @ exact.mT).mean(0)) < 0.3
    assert distance((exact.mT @ exact).mean(0)) > 0.6


def test_principal_directions_solve_the_generalised_problem() -> None:
    """A diagonal case: the directions are the coordinates of largest 1 / ((m + λ)(g + γ))."""
    response_, utility = torch.tensor([1.0, 4.0, 2.0, 8.0]).diag(), torch.tensor([9.0, 1.0, 1.0, 1.0]).diag()
    assert torch.allclose(principal(response_, None, 1).abs(), torch.eye(4)[:, :1], atol=1e-5)
    assert torch.allclose(principal(response_, utility, 1).abs(), torch.eye(4)[:, 2:3], atol=1e-5)


def test_offline_calibration_spares_predictions(directory: Path, tmp_path: Path, head: Head) -> None:
    """With the whole model, fewer nats are lost per unit length than without, and the file drives the defence."""
    ids = torch.randint(101, (24, 16), generator=torch.Generator().manual_seed(1))
    basis = calibrate_directions(directory, 2, rank=4, ids=ids)
    client = load_client(directory, Cut(2, 6, 6), torch.float32)
    cost = sensitivity(client.head, load_body(directory, Cut(2, 6, 6), torch.float32), client.tail, ids).float()
    blind = head_directions(head, 4)
    assert (basis.T @ cost @ basis).trace() < 0.8 * (blind.T @ cost @ blind).trace()
    path = tmp_path / "directions.safetensors"
    write_directions(path, basis)
    noise = released(head, f"pripert:beta=0.3,directions={path}") - states(head, IDS)
    assert (noise - noise @ basis @ basis.T).norm() < 1e-4 * noise.norm()


def test_sensitivity_predicts_the_divergence_it_is_named_after(directory: Path) -> None:
    """½ δᵀGδ against the KL divergence of perturbed predictions, averaged over random directions."""
    cut = Cut(2, 6, 6)
    (head, tail), body = load_client(directory, cut, torch.float32), load_body(directory, cut, torch.float32)
    ids = torch.randint(101, (24, 4), generator=torch.Generator().manual_seed(2))
    predicted = 0.0
    for seed in range(10):
        predicted += 0.5 * float(sensitivity(head, body, tail, ids, seed).trace()) / 32 / 10
    length, measured = 0.02, []
    with torch.inference_mode():
        hidden = head(ids, head.new_cache())

        def log_probs(states: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = tail(body(states, body.new_cache()), tail.new_cache())
            return logits.double().log_softmax(-1)

        clean = log_probs(hidden)
        for position in (1, 2, 3):
            for direction in at_random(8).T:
                moved = hidden.clone()
                moved[:, position] += length * direction
                kl = (clean.exp() * (clean - log_probs(moved))).sum(-1).sum(-1)  # [S]
                measured.append(kl.mean() / length**2)
    assert float(torch.stack(measured).mean()) == pytest.approx(predicted, rel=0.25)


def test_power_directions_amplify_more_and_backprop_ones_pull_harder_than_random(head: Head) -> None:
    matrix, draws = jacobian(head, IDS), at_random(1)[:, 0].double()
    power = Power(head, 5, 10)(IDS, draws)[:, None]
    assert amplified(matrix, power)[0] > 1.5 * amplified(matrix, at_random(64)).mean()
    backprop = Backprop(head, 10)(IDS, draws)
    assert (matrix.T @ backprop).norm() > 0.9 * torch.linalg.matrix_norm(matrix, 2)


def test_gradient_directions_drive_the_unrolled_attack_further_than_random_ones(head: Head) -> None:
    chosen = Gradient(head, BETA, 10, 5)(IDS, at_random(1)[:, 0].double())
    with differentiable():
        local = LocalMap(head, torch.tensor([IDS]))
        hidden = local(local.embedding).detach()
        rate = attack_rate(local, at_random(1)[:, 0])

        def error(direction: torch.Tensor) -> float:
            target = hidden + BETA * hidden.norm() * direction
            return float((unrolled(local, target, 5, rate) - local.embedding).detach().norm())

        others = [error(direction) for direction in at_random(20).T]
    assert error(chosen) > max(others)


def test_decoys_point_to_the_state_of_another_similar_token(head: Head) -> None:
    noise = normalize((released(head, spec("decoy")) - states(head, IDS))[-1], dim=0)
    with torch.inference_mode():
        local = LocalMap(head, torch.tensor([IDS]))
        towards = normalize(local(head.shell.get_input_embeddings().weight) - states(head, IDS)[-1], dim=-1)  # [V, D]
        table = head.embedding()
        centred = normalize(table - table.mean(0), dim=-1)
    decoy = int((towards @ noise).nan_to_num(-1).argmax())
    assert towards[decoy] @ noise == pytest.approx(1, abs=1e-4)
    assert decoy in (centred @ centred[IDS[-1]]).topk(21).indices.tolist()
    assert decoy != IDS[-1]


@pytest.mark.parametrize(
    ("reading", "keep"), [*((reading, "") for reading in READINGS), ("static", ",keep=0.5"), ("decoy", ",keep=0.5")]
)
def test_the_channel_accepts_the_truth_and_ranks_it_first(head: Head, reading: str, keep: str) -> None:
    """All tokens of the vocabulary after the right prefix, the whole law known but the key: not one is mistaken."""
    setting = spec(reading) + keep
    channel = build_channel(setting, head)
    sessions = [Secret(bytes([i]) * 32) for i in range(2)]
    observed = torch.stack([released(head, setting, secret=secret) for secret in sessions])  # [N, T, D]
    for position in (1, 3):
        with torch.inference_mode():
            local = LocalMap(head, torch.tensor([IDS[: position + 1]]))
            candidates = local(head.embedding().clone())  # [V, D]
        assert channel.accepts(observed[:, position], candidates)[IDS[position]]
        assert int(channel.log_likelihood(observed[:, position], candidates).argmax()) == IDS[position]


def test_a_nearer_decoy_does_not_outrank_the_right_distance_but_the_nearest_wins_without_one() -> None:
    channel = build_channel("pripert:reading=decoy,beta=0.5")
    true = 10 * at_random(1, 576)[:, 0]
    away = normalize(torch.randn(576, generator=torch.Generator().manual_seed(9)), dim=0)
    observed = (true + 5 * away)[None]
    decoy, strayed, far = true + 4.5 * away, true + 0.3 * away, true - 3 * away
    assert int(channel.log_likelihood(observed, torch.stack([decoy, true, strayed])).argmax()) == 1
    assert channel.accepts(observed, torch.stack([decoy, true, strayed])).tolist() == [False, True, False]
    assert int(channel.log_likelihood(observed, torch.stack([far, strayed])).argmax()) == 1


def test_projecting_the_static_subspace_out_brings_the_estimate_nearer(head: Head) -> None:
    ids = torch.randint(101, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    hidden = states(head, ids)[1:]
    observed = released(head, "pripert:beta=1,rank=8", ids)[1:]
    estimate = build_channel("pripert:beta=1,rank=8", head).estimate(observed[None])
    assert (estimate - hidden).norm() < 0.6 * (observed - hidden).norm()


def test_sparsification_comes_first(head: Head) -> None:
    hidden = states(head, IDS)
    noise = released(head, "pripert:beta=0.001,rank=8,keep=0.25") - hidden
    largest = hidden.abs().topk(8, dim=-1).indices
    removed = torch.ones_like(hidden).scatter(-1, largest, 0).bool()
    assert torch.allclose(noise[removed], -hidden[removed], atol=2e-3 * float(hidden.norm(dim=-1).max()))
    assert noise[~removed].abs().max() <= 1e-3 * hidden.norm(dim=-1).max()


@pytest.mark.parametrize(
    "setting",
    [
        "pripert", "pripert:beta=0", "pripert:beta=nan", "pripert:beta=1,reading=magic", "pripert:beta=1,rank=0",
        "pripert:beta=1,rank=32", "pripert:beta=1,keep=0", "pripert:beta=1,keep=1.5", "pripert:beta=1,reading=power,rank=4",
        "pripert:beta=1,reading=decoy,unroll=2", "pripert:beta=1,reading=gradient,steps=0",
        "pripert:beta=1,directions=/nonexistent.safetensors",
    ],
)  # fmt: skip
def test_wrong_options_are_refused(head: Head, setting: str) -> None:
    with pytest.raises(InputError, match="pripert"):
        build_defence(setting, SECRET, head)


@pytest.mark.parametrize("reading", READINGS)
def test_without_layers_nothing_can_be_calibrated(reading: str) -> None:
    with pytest.raises(InputError, match="head"):
        build_defence(spec(reading), SECRET)


_GOOD = torch.linalg.qr(torch.randn(32, 4, generator=torch.Generator().manual_seed(0))).Q.contiguous()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"other": _GOOD}, "directions"),
        ({"directions": _GOOD.flatten()}, "matrix"),
        ({"directions": _GOOD.to(torch.int32)}, "floating"),
        ({"directions": _GOOD[:16].contiguous()}, "16 × 4"),
        ({"directions": _GOOD.T.contiguous()}, "4 × 32"),
        ({"directions": 2 * _GOOD}, "orthonormal"),
        ({"directions": _GOOD.clone().fill_(float("nan"))}, "finite"),
    ],
)
def test_bad_directions_are_refused(head: Head, tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError, match=said):
        build_defence(f"pripert:beta=1,directions={path}", SECRET, head)


def test_a_file_that_is_no_safetensors_or_holds_too_few_directions_is_refused(head: Head, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"not a tensor file at all")
    with pytest.raises(InputError, match="cannot be read"):
        build_defence(f"pripert:beta=1,directions={path}", SECRET, head)
    write_directions(path, _GOOD)
    with pytest.raises(InputError, match="rank 5"):
        build_defence(f"pripert:beta=1,rank=5,directions={path}", SECRET, head)
