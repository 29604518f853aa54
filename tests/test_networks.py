"""Every registered network, narrow, before every check of irstd_nb.training.checks."""

import pytest

from irstd_nb.methods.registry import find_method, hyper_parameters, methods
from irstd_nb.training.checks import candidate, network_checks, slow_checks

NARROW = {  # for networks without a `lite` version of their own
    "istdunet": {"widths": [8, 8, 16, 32], "blocks": [1, 1, 1, 1], "slots": 16},
    "mdvsfa": {"width": 8, "critic": 8, "patch": 64},
    "pixelgame": {"width": 16},
    "tbcnet": {"widths": [8, 16, 32, 64]},
    "uiunet": {"width": 8},
}
NETWORKS = [entry.name for entry in methods("network") if entry.task == "mask"]


def narrow(name):
    return dict(find_method(name).lite) or NARROW.get(name, {})


@pytest.mark.parametrize("check", network_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_passes_the_check(name, check):
    check(candidate(find_method(name), narrow(name)))


@pytest.mark.slow
@pytest.mark.parametrize("check", slow_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns(name, check):
    check(candidate(find_method(name), narrow(name)))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_narrow_version_has_the_same_parts_and_fewer_weights(name):
    entry = find_method(name)
    small, published = (entry.build(hyper_parameters(entry, values)) for values in (narrow(name), {}))
    parts, size = (lambda network: [part for part, _ in network.named_children()]), (lambda network: sum(p.numel() for p in network.parameters()))
    assert parts(small) == parts(published) and size(small) < min(1e6, size(published) / 3)
