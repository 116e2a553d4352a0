"""The CUDA toolkits that the image can be built with, and the hosts that each of them runs on.

A host's driver reports the newest CUDA that it knows. An image of CUDA 12 runs on every driver that
knows 12.8 or anything later; one of CUDA 13 on none that knows only 12. RunPod's
`allowedCudaVersions` is a list of what a host may report, compared for equality, so it names the
later ones too; `minCudaVersion` is a floor.
"""

from __future__ import annotations

from dataclasses import dataclass

ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
"""Compute capabilities that extensions are compiled for: A100; A40, A6000, 3090; L4, L40S, 4090;
H100, H200; B200; 5090, RTX PRO 6000."""

_REPORTED = ("12.8", "12.9", "13.0", "13.1", "13.2", "13.3", "13.4")


@dataclass(frozen=True, slots=True)
class Toolkit:
    """One variant of the image: `name` is that of its file in toolkits/."""

    name: str
    cuda: str
    driver: int

    @property
    def floor(self) -> str:
        """The least CUDA version that a host has to report."""
        return self.cuda.rpartition(".")[0]

    @property
    def hosts(self) -> tuple[str, ...]:
        """The CUDA versions that a host may report, least first."""
        return _REPORTED[_REPORTED.index(self.floor) :]


TOOLKITS = {
    toolkit.name: toolkit
    for toolkit in (Toolkit("cuda12", "12.8.1", 570), Toolkit("cuda13", "13.0.2", 580))
}
DEFAULT = TOOLKITS["cuda12"]
"""What the Dockerfile builds without arguments, and what the Hub's files describe."""
