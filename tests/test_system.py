"""Systems: units refused in words, routes over several hops, files that come back equal, shipped figures that are the chip table's own."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import InputError
from fourfold.host import chip
from fourfold.machine import Device, Efficiency, Link, Machine, plain_dtype, systems

ONE = '[[device]]\nname = "a"\nkind = "cpu"\nbandwidth = "10 GB/s"\nmemory = "1 GiB"\nlaunch = "2 us"\npeak = { float32 = "50 GFLOP/s" }\n'
TWO = ONE.replace('name = "a"', 'names = ["a", "b"]')
WIRE = '[[link]]\na = "a"\nb = "b"\nlatency = "10 us"\nbandwidth = "12 GB/s"\n'


def device(name: str) -> Device:
    return Device(name, "cpu", {"float32": 1e9}, 1e9, 0.0, 1e9)


@pytest.mark.parametrize("name", systems())
def test_shipped_systems_read_and_come_back_equal(name: str, tmp_path: Path) -> None:
    system = Machine.read(name)
    system.write(tmp_path / "copy.toml")
    again = Machine.read(tmp_path / "copy.toml")
    assert again == system and again.hash == system.hash
    assert Machine.from_json(system.to_json()) == system
    for key, figure in system.figures.items():
        assert figure.source and (again.figures[key].grade, again.figures[key].source) == (figure.grade, figure.source), key
    for a in range(len(system)):
        for b in range(len(system)):
            assert (a == b) == (not system.route(a, b).lanes)


def test_p100_figures_are_the_chip_tables() -> None:
    found, card = Machine.read("p100x8"), chip("P100-PCIe")
    assert len(found) == 8 and found.devices[7].peak["float32"] == card.peak["fp32"].value
    assert card.bandwidth is not None and found.devices[0].bandwidth == card.bandwidth.value
    assert found.route("gpu0", "gpu1").bandwidth == 11.7e9
    assert found.figures["gpu3.peak.float32"].grade == card.peak["fp32"].grade


@pytest.mark.parametrize(("line", "said"), [
    ("bandwidth = 12", "no unit"), ('bandwidth = "12"', "number with a unit"), ('bandwidth = "12 GB"', "unit of size, not of rate"),
    ('bandwidth = "12 Gb/s"', "not a unit known"), ('bandwidth = "fast"', "number with a unit"), ('bandwidth = "-1 GB/s"', "out of range"),
    ('bandwidth = "0 GB/s"', "out of range"), ("bandwidth = true", "no unit"),
    ('bandwidth = { value = 3, unit = "W" }', "unit of power, not of rate"),
    ('bandwidth = { unit = "GB/s" }', "no value"), ('bandwidth = { value = 3, unit = "GB/s", grade = "sure" }', "grade 'sure'"),
    ('bandwidth = "1e999 GB/s"', "out of range"), ('bandwith = "1 GB/s"', "Did you mean 'bandwidth'"),
])
def test_wrong_figures_are_refused_with_what_was_expected(line: str, said: str) -> None:
    text = ONE.replace('bandwidth = "10 GB/s"', line)
    with pytest.raises(InputError) as caught:
        Machine.parse(text, "my.toml")
    assert said in str(caught.value) and "my.toml" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(("text", "said"), [
    ("", "has no device"), ("[[device]\n", "not TOML"), (ONE + ONE, "a name twice"), (TWO, "lead from 'a' to 'b'"),
    (ONE.replace('launch = "2 us"\n', "").replace('memory = "1 GiB"\n', ""), "lacks 'memory' and 'launch'"),
    (ONE.replace('name = "a"\n', ""), "has no name"), (TWO + WIRE.replace('"b"', '"c"'), "no such device"),
    (TWO + WIRE.replace('latency = "10 us"\n', ""), "lacks 'latency'"), (TWO + WIRE + "duplex = 1\n", "duplex = 1"),
    (ONE + "[device.efficiency]\nmatmul = 1.5\n", "at most 1"), (ONE + "[device.efficiency]\nmatmul = 0\n", "above 0"),
    (ONE + '[device.efficiency.conv]\npeak = [["1 GFLOP", 0.5], ["1 MFLOP", 0.6]]\n', "do not grow"),
    (ONE + '[device.efficiency.conv]\npeak = [["1 GB", 0.5]]\n', "unit of size, not of work"),
    (ONE + 'chip = "no such chip"\n', "no such chip"), ("device = 3\n", "not a list of tables"),
    (TWO + WIRE.replace('a = "a"\nb = "b"', 'between = "a"'), "two ends"),
])
def test_broken_documents_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        Machine.parse(text, "my.toml")
    message = str(caught.value)
    assert said.lower() in message.lower() and len(message.splitlines()) <= 2


def test_missing_file_names_what_there_is() -> None:
    with pytest.raises(InputError, match="p100x2"):
        Machine.read("/nowhere/at/all.toml")
    with pytest.raises(InputError, match="cannot be read"):
        Machine.read("no-such-system")


def test_unreachable_devices_are_named() -> None:
    with pytest.raises(InputError, match="'c' and 'd'"):
        Machine("x", tuple(map(device, "abcd")), (Link("a", "b", 0, 1e9), Link("c", "d", 0, 1e9)))
    with pytest.raises(InputError, match="no 'z'"):
        Machine("x", tuple(map(device, "ab")), (Link("a", "z", 0, 1e9),))


def test_routes_take_several_hops_and_never_cross_a_device() -> None:
    links = (Link("a", "s", 1e-6, 10e9), Link("s", "t", 2e-6, 5e9), Link("t", "b", 3e-6, 20e9, duplex=False),
             Link("a", "c", 0, 1e12), Link("c", "b", 0, 1e12))
    system = Machine("tree", tuple(map(device, "abc")), links, hubs=("s", "t"))
    route = system.route("a", "b")                                      # by way of device c it would be quicker, but devices pass nothing on
    assert route.lanes == (0, 2, 4) and route.bandwidth == 5e9 and math.isclose(route.latency, 6e-6)
    assert system.route("b", "a").lanes == (4, 3, 1)                    # the link that is not duplex has one lane
    assert math.isclose(route.seconds(5e6), 6e-6 + 1e-3) and system.route(1, 1).seconds(1e9) == 0
    with pytest.raises(InputError, match="no device 'q'"):
        system.route("a", "q")


def test_route_takes_the_quicker_of_two() -> None:
    links = (Link("a", "b", 0, 1e9), Link("a", "s", 0, 10e9), Link("s", "b", 0, 10e9))
    assert Machine("x", tuple(map(device, "ab")), links, hubs=("s",)).route(0, 1).lanes == (2, 4)


@given(st.lists(st.tuples(st.floats(1, 1e12), st.floats(0.01, 10)), min_size=1, max_size=6, unique_by=lambda pair: pair[0]), st.floats(1e-3, 1e14))
@settings(max_examples=60, deadline=None)
def test_curves_stay_between_their_points(points: list[tuple[float, float]], size: float) -> None:
    curve = tuple(sorted(points))
    share = float(Efficiency.at(curve, size))
    assert min(y for _, y in curve) * 0.999999 <= share <= max(y for _, y in curve) * 1.000001
    assert math.isclose(float(Efficiency.at(curve, curve[-1][0] * 10)), curve[-1][1])


def test_a_curve_may_say_how_fast_weights_are_laid_out_anew() -> None:
    text = ONE + '[device.efficiency.conv]\nrelay = "7 GB/s"\npeak = 0.5\n'
    system = Machine.parse(text)
    curve = system.devices[0].efficiency["conv"]
    assert curve.relay == 7e9 and Machine.from_json(system.to_json()) == system and Machine.parse(system.to_toml()) == system
    plain = Machine.parse(ONE + "[device.efficiency.conv]\npeak = 0.5\n")
    assert plain.devices[0].efficiency["conv"].relay == math.inf and plain.hash != system.hash and "relay" not in plain.to_toml()
    with pytest.raises(InputError, match="relay"):
        Machine.parse(text.replace("7 GB/s", "7 GB"))


def test_dtypes_without_a_figure_run_as_the_next_wider() -> None:
    card = Machine.read("p100x2").devices[0]
    assert card.speed("torch.bfloat16") == card.speed("float32") == 9.3e12 and card.speed("fp16") == 18.7e12 and card.speed("int8") == 18.7e12
    assert device("a").speed("float64") == 0 and plain_dtype("torch.float32") == "float32"


def test_here_is_this_machine(tmp_path: Path) -> None:
    system = Machine.here(3, folder=tmp_path)
    assert len(system) == 3 and system.local and Machine.read("p100x2").local is False
    assert {figure.grade for figure in system.figures.values()} <= {"assumed"}
    with pytest.raises(InputError, match="0 workers"):
        Machine.here(0, folder=tmp_path)
    (tmp_path / ".fourfold").mkdir()
    Machine("measured", system.devices[:2], system.links[:1], system.fingerprint).write(tmp_path / ".fourfold" / "machine.toml")
    assert Machine.here(folder=tmp_path).name == "measured" and Machine.here(2, folder=tmp_path).name == "measured"
    assert Machine.here(3, folder=tmp_path).name != "measured"
