"""A GPU's clock, power and temperature at one moment."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Condition:
    """SM clock in MHz, power in watts, temperature in °C; None where NVML does not say."""

    sm_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None


class GpuCondition:
    """Reads one GPU through NVML; without NVML everything reads None."""

    def __init__(self, uuid: str) -> None:
        """``uuid`` as in ``torch.cuda.get_device_properties(0).uuid``."""
        self._nvml: Any = None
        try:
            pynvml = import_module("pynvml")
            pynvml.nvmlInit()
            name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(name)
            self._nvml = pynvml
        except Exception:  # noqa: BLE001  no NVML, no library, no permission: all the same
            return

    def read(self) -> Condition:
        """What the GPU is like now."""
        nvml = self._nvml
        if nvml is None:
            return Condition()
        try:
            return Condition(
                sm_mhz=float(nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)),
                power_w=nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000.0,
                temperature_c=float(
                    nvml.nvmlDeviceGetTemperature(self._handle, nvml.NVML_TEMPERATURE_GPU)
                ),
            )
        except nvml.NVMLError:
            return Condition()
