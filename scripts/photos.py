"""Photographs of any size, grey ones among them, and a network of torchvision.

    python scripts/photos.py FOLDER    # with train/CLASS/*.jpg and valid/CLASS/*.jpg

With --smoke it draws small ones, and fails where fewer than four in five are told apart.
"""

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader
from torchvision.models import resnet18

import torchcls as tc

STEPS = {"dots": 12, "plain": 1000, "stripes": 4}  # from one dot of a row to the next


def draw_photos(folder: Path, n: int, seed: int) -> None:
    """Write n JPEGs for each of three classes, in four sizes, every fifth one grey."""
    rng = torch.Generator().manual_seed(seed)
    for i in range(3 * n):
        name, size = list(STEPS)[i % 3], (64 + 16 * (i % 4), 112 - 16 * (i % 4))
        dark, bright = torch.randint(90, (2, 3), generator=rng) + torch.tensor([[0], [160]])
        photo = Image.new("RGB", size, tuple(dark.tolist()))
        for y in range(i % 12, photo.height, 12):
            for x in range(-9, photo.width, STEPS[name]):
                ImageDraw.Draw(photo).ellipse((x, y, x + 6, y + 6), fill=tuple(bright.tolist()))
        (folder / name).mkdir(parents=True, exist_ok=True)
        photo.convert("L" if i % 5 == 0 else "RGB").save(folder / name / f"{i}.jpg")


def train(data: Path, size: int, epochs: int, least: float = 0.0) -> int:
    photos = tc.image_folder(data / "train", transform=tc.photo_transforms(size, train=True))
    others = tc.image_folder(data / "valid", transform=tc.photo_transforms(size, train=False))
    batches = DataLoader(photos, batch_size=16, shuffle=True, num_workers=2)
    valid, loss_fn = DataLoader(others, batch_size=64, num_workers=2), torch.nn.CrossEntropyLoss()
    model = resnet18(num_classes=len(photos.classes))
    tc.fit(model, batches, valid, loss_fn=loss_fn, epochs=epochs, metrics=[tc.accuracy])
    counts = tc.evaluate(model, valid, metrics=[tc.confusion_matrix]).metrics["confusion_matrix"]
    for name, row, right in zip(photos.classes, counts, counts.diag(), strict=True):
        print(f"{name}: {right / row.sum():.3f} of {row.sum()} are right")
    return int(counts.trace() < least * counts.sum())


def main(argv: list[str]) -> int:
    torch.manual_seed(0)
    if argv != ["--smoke"]:
        return train(Path(argv[0]), size=224, epochs=20)
    with tempfile.TemporaryDirectory() as folder:
        draw_photos(Path(folder, "train"), 48, seed=0)
        draw_photos(Path(folder, "valid"), 16, seed=1)
        return train(Path(folder), size=32, epochs=3, least=0.8)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
