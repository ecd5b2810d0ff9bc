"""The Frechet distance between two sets of features, the last step of FID (Heusel et al., arXiv:1706.08500)."""

import numpy as np


def frechet_distance(features1: np.ndarray, features2: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of feature vectors, (n, d) and (m, d), n, m >= 2.

    FID is this distance for the pool features of the Inception-v3 network of pytorch-fid.
    """
    shapes = np.shape(features1), np.shape(features2)
    if any(len(s) != 2 or s[0] < 2 for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f'frechet_distance needs features (n, d) and (m, d) of at least 2 images, got {shapes}')
    (mean1, covariance1), (mean2, covariance2) = (_gaussian(features) for features in (features1, features2))
    # tr((C1 C2)^(1/2)) is the sum of the square roots of the eigenvalues of R C2 R, where R R = C1.
    values, vectors = np.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance2 @ root).clip(0)).sum()
    return float(np.square(mean1 - mean2).sum() + np.trace(covariance1) + np.trace(covariance2) - 2 * cross)


def _gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features = np.asarray(features, dtype=np.float64)
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))
