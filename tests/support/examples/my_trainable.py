import json

from mlflow.models import infer_signature
from pydantic import BaseModel


class MyTrainable:
    """Moves a number towards 1, by ``rate`` of the distance in each epoch."""

    class Config(BaseModel, extra="forbid"):
        seed: int = 0
        epochs: int = 3
        rate: float = 0.5

    InputError, metrics, throughput = ValueError, {"val/loss": "min"}, None

    def prepare(self, config):
        return []

    def check(self, config, workers, metrics): ...

    def fit(self, config, context):
        start = context.restore()
        last, x = json.loads((start / "state").read_text()) if start else (0, 0.0)
        for epoch in range(last + 1, config.epochs + 1):
            x += config.rate * (1 - x)
            metrics, state = {"epoch": epoch, "val/loss": 1 - x}, json.dumps([epoch, x])
            context.report(metrics, lambda folder, state=state: (folder / "state").write_text(state))

    def evaluate(self, config, checkpoint):
        return {"test/number/loss": 1 - json.loads((checkpoint / "state").read_text())[1]}

    def export(self, config, checkpoint, directory):
        x = json.loads((checkpoint / "state").read_text())[1]
        return {
            "python_model": lambda model_input: [x],
            "signature": infer_signature([0.0], [x]),
            "pip_requirements": ["mlflow"],
        }
