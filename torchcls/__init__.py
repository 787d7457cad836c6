"""Classification training in plain PyTorch: hand-written loops, losses and metrics.

>>> import torch
>>> import torchcls as tc
>>> (train_x, train_y), (valid_x, valid_y) = tc.drawn_digits(200), tc.drawn_digits(100, seed=1)
>>> train = tc.Batches(train_x, train_y, batch_size=50, shuffle=True)
>>> valid = tc.Batches(valid_x, valid_y, batch_size=100)
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
>>> history = tc.fit(model, train, valid, loss_fn=tc.cross_entropy, epochs=2,
...                  metrics=[tc.accuracy], progress=False)
"""

from torchcls import heads
from torchcls.data import Batches, drawn_digits, image_folder, mnist, photo_transforms
from torchcls.device import select_device
from torchcls.evaluation import Evaluation
from torchcls.export import export
from torchcls.find_lr import LRCurve, find_lr
from torchcls.fit import epochs, evaluate, fit
from torchcls.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    log_sigmoid,
    log_softmax,
    mse_loss,
    nll_loss,
    one_hot,
    sigmoid,
    softmax,
)
from torchcls.history import History, Record
from torchcls.loops import backward, train_one_epoch
from torchcls.metrics import (
    accuracy,
    confusion_matrix,
    error_rate,
    multilabel_accuracy,
    threshold_accuracy,
    top_k_accuracy,
)
from torchcls.optim import default_optimizer, each_step, on, one_cycle, warm_up_cosine
from torchcls.prediction import Predictions, predict
from torchcls.preflight import ContractError, Finding, check
from torchcls.processes import Streams, processes
from torchcls.run import Rest, Run
from torchcls.survival import DamagedError, load_checkpoint, save_checkpoint
from torchcls.version import __version__ as __version__

__all__ = [
    "Batches",
    "ContractError",
    "DamagedError",
    "Evaluation",
    "Finding",
    "History",
    "LRCurve",
    "Predictions",
    "Record",
    "Rest",
    "Run",
    "Streams",
    "accuracy",
    "backward",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "check",
    "confusion_matrix",
    "cross_entropy",
    "default_optimizer",
    "drawn_digits",
    "each_step",
    "epochs",
    "error_rate",
    "evaluate",
    "export",
    "find_lr",
    "fit",
    "heads",
    "image_folder",
    "load_checkpoint",
    "log_sigmoid",
    "log_softmax",
    "mnist",
    "mse_loss",
    "multilabel_accuracy",
    "nll_loss",
    "on",
    "one_cycle",
    "one_hot",
    "photo_transforms",
    "predict",
    "processes",
    "save_checkpoint",
    "select_device",
    "sigmoid",
    "softmax",
    "threshold_accuracy",
    "top_k_accuracy",
    "train_one_epoch",
    "warm_up_cosine",
]
