"""What meters really look like: files and lines in the forms that their makers document, with values of a board."""

from __future__ import annotations

from pathlib import Path

ORIN_NANO_LINE = (
    "11-26-2026 10:00:01 RAM 2568/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [2%@1510,0%@1510,1%@1510,0%@729,0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 37%@[305] NVDEC off NVJPG off "
    "VIC off OFA off APE 200 cpu@49.687C soc2@48.25C soc0@48.625C gpu@48.5C tj@49.687C soc1@48.843C "
    "VDD_IN 4828mW/4790mW VDD_CPU_GPU_CV 1020mW/995mW VDD_SOC 1461mW/1461mW"
)
AGX_ORIN_LINE = (
    "RAM 6402/30536MB (lfb 5x4MB) SWAP 0/15268MB (cached 0MB) CPU [1%@729,off,off] GR3D_FREQ 0% GPU@44.281C "
    "VDD_GPU_SOC 3205mW/3204mW VDD_CPU_CV 801mW/801mW VIN_SYS_5V0 4133mW/4130mW"
)
NANO_LINE = (
    "RAM 1402/3964MB (lfb 97x4MB) SWAP 10/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [12%@1479,6%@1479] "
    "EMC_FREQ 3%@1600 GR3D_FREQ 99%@921 APE 25 PLL@38C PMIC@100C AO@45.5C POM_5V_IN 6245/4013 POM_5V_GPU 2342/823 "
    "POM_5V_CPU 1015/790"
)
NO_POWER_LINE = "RAM 2568/7620MB (lfb 4x4MB) CPU [2%@1510] EMC_FREQ 0%@2133 GR3D_FREQ 37%@[305] cpu@49.687C"


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n", encoding="ascii")


def rapl(powercap: Path, package_uj: int = 1_000_000, dram_uj: int = 500_000) -> None:
    """A machine of one package, its memory counted apart, its cores counted within."""
    for zone, name, energy_uj in (
        ("intel-rapl:0", "package-0", package_uj),
        ("intel-rapl:0:0", "core", package_uj // 2),
        ("intel-rapl:0:1", "dram", dram_uj),
        ("intel-rapl:1", "psys", 9_000_000),
    ):
        write(powercap / zone / "name", name)
        write(powercap / zone / "energy_uj", str(energy_uj))
        write(powercap / zone / "max_energy_range_uj", "262143328850")


def orin_nano(drivers: Path, *, milliamperes: int = 968, labels: tuple[str, ...] = ()) -> Path:
    """The three rails of an Orin Nano, the sum of shunts that the kernel adds, and the monitor's folder."""
    folder = drivers / "ina3221/1-0040/hwmon/hwmon3"
    names = labels or ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
    for channel, name in enumerate((*names, "sum of shunt voltages"), start=1):
        at = 7 if channel > 3 else channel
        write(folder / f"in{at}_label", name)
        write(folder / f"in{at}_input", "5008")
        write(folder / f"curr{at}_input", str(milliamperes if channel == 1 else 200))
    return folder


def jetpack_4(drivers: Path) -> None:
    folder = drivers / "ina3221x/6-0040/iio:device0"
    for channel, (name, milliwatts) in enumerate((("POM_5V_IN", 2532), ("POM_5V_GPU", 81), ("POM_5V_CPU", 283))):
        write(folder / f"rail_name_{channel}", name)
        write(folder / f"in_power{channel}_input", str(milliwatts))
