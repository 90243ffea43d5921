"""Gradient descent with momentum (Polyak 1964; in the form of Sutskever et al. 2013 and torch.optim.SGD).

    g        = gradient_scale * gradients + weight_decay * parameters
    velocity = momentum * velocity + g
    parameters -= learning_rate * velocity
"""


def sgd(parameters, velocity, gradients, gradient_scale, learning_rate, momentum, weight_decay):
    """One step, in place.

    parameters, velocity  (P,)  updated; velocity starts at zero
    gradients             (P,)
    """
    g = gradient_scale * gradients + weight_decay * parameters
    velocity[...] = momentum * velocity + g
    parameters -= learning_rate * velocity
