"""What people look at after a run: tables, pictures and a page from one pass of ``predict``."""

from torchcls.looking.classes import (
    Calibration,
    ClassReport,
    calibration,
    class_report,
    most_confused,
    wilson_interval,
    worst,
)
from torchcls.looking.pictures import (
    plot_calibration,
    plot_confusion,
    plot_history,
    plot_lr,
    plot_worst,
)
from torchcls.looking.report import report

__all__ = [
    "Calibration",
    "ClassReport",
    "calibration",
    "class_report",
    "most_confused",
    "plot_calibration",
    "plot_confusion",
    "plot_history",
    "plot_lr",
    "plot_worst",
    "report",
    "wilson_interval",
    "worst",
]
