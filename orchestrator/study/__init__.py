"""The Optuna study of a job: suggestions, results and what follows from them."""
