"""Write the digit images that the data set ``demo`` draws from, out of scikit-learn's copy of them.

The harness ships the result, so that a device needs numpy and nothing else to make the clips. The source is the UCI "Optical
Recognition of Handwritten Digits" test set (Alpaydin and Kaynak, 1998; CC BY 4.0): 1,797 images of 8 x 8 pixels in 0..16.

    python benchmarks/demo_model/make_digits.py
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

OUT = Path(__file__).parents[1] / "shallowvit_bench" / "data" / "digits.npz"


def main() -> None:
    """Write ``digits.npz``: images uint8 [1797, 8, 8] in 0..16 and labels uint8 [1797]."""
    digits = load_digits()
    np.savez_compressed(OUT, images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
