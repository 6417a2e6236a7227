"""Export of a trained network as an MLflow model."""
