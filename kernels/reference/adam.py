"""AdamW (Kingma, Ba 2014, arXiv:1412.6980; Loshchilov, Hutter 2017, arXiv:1711.05101).

    g      = gradient_scale * gradients
    first  = beta1 * first  + (1 - beta1) * g
    second = beta2 * second + (1 - beta2) * g^2
    parameters *= 1 - learning_rate * weight_decay
    parameters -= learning_rate * first / (1 - beta1^step) / (sqrt(second / (1 - beta2^step)) + eps)
"""

import numpy as np


def adamw(
    parameters,
    first,
    second,
    gradients,
    gradient_scale,
    learning_rate,
    beta1,
    beta2,
    eps,
    weight_decay,
    step,
):
    """One step, in place.

    parameters, first, second  (P,)  updated; the moments start at zero
    gradients                  (P,)
    step                       counts from 1
    """
    g = gradient_scale * gradients
    first[...] = beta1 * first + (1 - beta1) * g
    second[...] = beta2 * second + (1 - beta2) * g * g
    deviation = np.sqrt(second / (1 - beta2**step))
    parameters *= 1 - learning_rate * weight_decay
    parameters -= learning_rate * (first / (1 - beta1**step)) / (deviation + eps)
