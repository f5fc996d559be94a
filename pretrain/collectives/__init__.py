"""What happens between ranks inside a forward pass: rows gathered, norms shared, gradients exact."""
