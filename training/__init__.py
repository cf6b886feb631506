"""From data to a measured family: data, the objective, the training loop, distillation, evaluation."""
