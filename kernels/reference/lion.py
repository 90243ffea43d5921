"""Lion (Chen et al. 2023, arXiv:2302.06675).

    g = gradient_scale * gradients
    parameters -= learning_rate * (sign(beta1 * momentum + (1 - beta1) * g) + weight_decay * parameters)
    momentum    = beta2 * momentum + (1 - beta2) * g
"""

import numpy as np


def lion(parameters, momentum, gradients, gradient_scale, learning_rate, beta1, beta2, weight_decay):
    """One step, in place.

    parameters, momentum  (P,)  updated; momentum starts at zero
    gradients             (P,)
    """
    g = gradient_scale * gradients
    update = np.sign(beta1 * momentum + (1 - beta1) * g)
    parameters -= learning_rate * (update + weight_decay * parameters)
    momentum[...] = beta2 * momentum + (1 - beta2) * g
