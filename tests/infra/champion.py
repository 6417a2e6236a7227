"""Code that pulls the champion of the example sweep."""

PULL = (
    "import mlflow, numpy; model = mlflow.pyfunc.load_model('models:/multi-shot-reid-walkers@champion');"
    "print(model.predict(numpy.zeros((2, 5, 64, 32, 3), numpy.uint8)).shape)"
)
"""Python code that prints the shape of the features of two sequences."""
