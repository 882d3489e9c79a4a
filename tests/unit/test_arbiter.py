"""The arbiter: who gets what several want."""

from itertools import permutations

from gpuloop.actuators.arbiter import Lease, Wish, arbitrate

MOVE = Wish(actuator="migration", target="j1", purpose="mitigation", resources=("room/p", "job/j1"),
            until_us=100)  # fmt: skip
MOVE_TOO = Wish(actuator="migration", target="j2", purpose="mitigation",
                resources=("room/p", "job/j2"), until_us=120)  # fmt: skip
SHRINK = Wish(actuator="scaling", target="p", purpose="cost", resources=("room/p",), until_us=50)
GROW = Wish(actuator="scaling", target="q", purpose="service", resources=(), until_us=50)


def test_mitigation_comes_before_cost_in_whatever_order_they_ask():
    for order in permutations([MOVE, SHRINK, GROW, MOVE_TOO]):
        granted, refused, _ = arbitrate(order, {}, 0)
        assert granted == [GROW, MOVE, MOVE_TOO]
        assert [(one.wish, one.resource, one.holder) for one in refused] == [
            (SHRINK, "room/p", "mitigation")
        ]


def test_a_lease_outlasts_the_tick_and_ends_by_itself():
    _, _, leases = arbitrate([MOVE], {}, 0)
    assert arbitrate([SHRINK], leases, 99)[0] == []
    assert arbitrate([SHRINK], leases, 100)[0] == [SHRINK]


def test_the_more_important_purpose_takes_a_lease_over():
    _, _, leases = arbitrate([SHRINK], {}, 0)
    granted, _, held = arbitrate([MOVE], leases, 10)
    assert granted == [MOVE]
    assert held["room/p"].actuator == "migration"


def test_one_actuator_shares_its_leases_and_the_longer_one_holds():
    _, _, held = arbitrate([MOVE, MOVE_TOO], {}, 0)
    assert held["room/p"] == Lease(actuator="migration", purpose="mitigation", until_us=120)


def test_equal_purposes_do_not_displace_each_other():
    rival = Wish(actuator="remediation", target="n", purpose="mitigation", resources=("room/p",),
                 until_us=500)  # fmt: skip
    _, _, leases = arbitrate([MOVE], {}, 0)
    granted, refused, _ = arbitrate([rival], leases, 1)
    assert granted == []
    assert refused[0].wish == rival
