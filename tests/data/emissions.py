"""How emissions.csv beside this was made: codecarbon 3.3.2 from PyPI in an environment of its own, Python 3.11, on a virtual machine with two threads
of an unknown processor, 23.5 GiB of memory and no energy meter; one busy loop in both tracking modes, a short one, and one with a PUE.

    pip install codecarbon==3.3.2 && python emissions.py
"""

import time

from codecarbon import OfflineEmissionsTracker  # pyright: ignore[reportMissingImports]


def busy(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(i * i for i in range(10000))


if __name__ == "__main__":
    for name, mode, seconds, country, extra in (("busy-machine", "machine", 6.0, "USA", {}), ("busy-process", "process", 6.0, "FRA", {}),
                                                ("short-process", "process", 0.4, "FRA", {}), ("busy-pue", "machine", 3.0, "DEU", {"pue": 1.5})):
        tracker = OfflineEmissionsTracker(project_name=name, country_iso_code=country, tracking_mode=mode, measure_power_secs=1, output_dir=".",
                                          log_level="error", **extra)
        tracker.start()
        busy(seconds)
        tracker.stop()
