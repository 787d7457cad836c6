"""Whether anyone but a module's type has a say in what it computes."""

import torch
from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of this very module may do more than its type says.

    So it may with a hook, its own or one on all modules; with a ``forward`` put in place of its
    type's; and compiled. Submodules are not looked at.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> is_hooked(layer)
        False
        >>> handle = layer.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
        >>> is_hooked(layer)
        True
    """
    everywhere = vars(torch.nn.modules.module)
    return (
        any(getattr(module, name, None) for name in _HOOKS)
        or any(everywhere.get(name) for name in _GLOBAL_HOOKS)
        or "forward" in vars(module)
        or getattr(module, "_compiled_call_impl", None) is not None
    )
